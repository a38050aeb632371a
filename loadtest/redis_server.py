"""A real Redis for tests and benches: Debian's, on a free port of this machine's own address, with nothing on disk unless told."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from redis import Redis
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_START_S = 60


def program() -> str | None:
    return shutil.which("redis-server")


class Server:
    """A server that can be stopped and started anew at the same address, having forgotten everything, or with its data
    where it has a folder to keep them in.
    """

    def __init__(self, path: str, folder: Path | None = None, *options: str) -> None:
        """`options` are more words for its command line."""
        self._path = path
        self._options = options
        self._keeping = (
            "--appendonly no" if folder is None else f"--appendonly yes --appendfsync always --dir {folder}"
        )
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL)  # noqa: S603 - Debian's program
        ends_s = time.monotonic() + _START_S
        while not self.answers():
            if self._process.poll() is not None or time.monotonic() > ends_s:
                raise RuntimeError("redis-server has ended, or does not answer")
            time.sleep(0.02)

    def command(self) -> list[str]:
        words = f"{self._path} --port {self.port} --bind 127.0.0.1 {self._keeping} --loglevel warning --save"
        return [*words.split(), "", *self._options]

    def start_empty(self) -> None:
        """Without the data that it has kept."""
        if self._folder is not None:
            for path in self._folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Take connections and questions, and answer none."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("redis-server is not running")
        return self._process.pid

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True)


@contextmanager
def running(path: str, folder: Path | None = None) -> Iterator[Server]:
    server = Server(path, folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
