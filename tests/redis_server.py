"""A real Redis for tests: Debian's, on a free port of this machine's own address, with nothing on disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_S = 60


def program() -> str | None:
    return shutil.which("redis-server")


class Server:
    """A server that can be stopped and started anew at the same address, having forgotten everything."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        words = f"{self._path} --port {self.port} --bind 127.0.0.1 --appendonly no --loglevel warning --save"
        self._process = subprocess.Popen([*words.split(), ""], stdout=subprocess.DEVNULL)
        ends_s = time.monotonic() + _START_S
        while not self.answers():
            assert self._process.poll() is None, "redis-server has ended"
            assert time.monotonic() < ends_s
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True)


@contextmanager
def running(path: str) -> Iterator[Server]:
    server = Server(path)
    server.start()
    try:
        yield server
    finally:
        server.stop()
