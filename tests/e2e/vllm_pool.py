"""Processes for the tests on real vLLM servers: the servers themselves, and the gateway as its users start it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PROJECT = Path(__file__).parents[2]
SCRIPTS = PROJECT.parent / "shared" / "vllm"
VLLM_START_S = 600
"""It takes one minute on two free cores."""
GATEWAY_START_S = 60
STOP_S = 60


class Worker(NamedTuple):
    """A real vLLM server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        _, page = get(f"{self.url}/metrics")
        lines = page.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))

    def kill(self) -> None:
        """The server and its engine, at once and without a word."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_S)


class Gateway(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str
    config: Path
    log: Path

    def command(self, *arguments: str) -> Any:
        """What an administration command prints as JSON."""
        command = [
            sys.executable,
            "-m",
            "gateway",
            *arguments,
            "--config",
            str(self.config),
            "--format",
            "json",
        ]
        return json.loads(subprocess.run(command, check=True, capture_output=True, cwd=PROJECT).stdout)

    def new_key(self, tenant: str) -> str:
        """A key that the gateway has seen; that takes it a second or two."""
        key = self.command("keys", "create", "--tenant", tenant)[0]["key"]
        headers = {"authorization": f"Bearer {key}"}
        until(lambda: answers(f"{self.url}/v1/models", headers), self.process, self.log, GATEWAY_START_S)
        return key

    def metrics(self) -> str:
        return get(f"{self.url}/metrics")[1]


def unavailable() -> str | None:
    """Why there can be no real vLLM here, or None."""
    if not (SCRIPTS / "serve.sh").is_file():
        return "no real vLLM: the project stands alone, without ../shared/vllm"
    if not (folder() / "ready").is_file():
        return f"no real vLLM: none in {folder()} (../shared/vllm/install.sh puts one there)"
    return None


def folder() -> Path:
    return Path(os.environ.get("TIDEGATE_VLLM_DIR") or PROJECT / ".vllm")


@contextmanager
def two_workers(logs: Path) -> Iterator[list[Worker]]:
    """Two servers with the same model, ready for calls; killed when the block is left."""
    workers: list[Worker] = []
    try:
        for name, port in zip(("vllm-1", "vllm-2"), free_ports(2), strict=True):
            log = logs / f"{name}.log"
            command = ["bash", str(SCRIPTS / "serve.sh"), str(folder()), str(port)]
            with log.open("wb") as output:
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
                )
            workers.append(Worker(name, port, process, log))
        for worker in workers:
            until(
                lambda worker=worker: answers(f"{worker.url}/health"),
                worker.process,
                worker.log,
                VLLM_START_S,
            )
        yield workers
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.kill()


@contextmanager
def gateway_over(workers: list[Worker], home: Path) -> Iterator[Gateway]:
    """A gateway for the model `llama`, which the workers call `tiny`; killed when the block is left.

    The first worker is the cheapest, so that it is where calls of the tier `flex` go.
    """
    endpoints = [
        {"worker": worker.url, "name": worker.name, "model": "tiny", "cost": {"input": cost, "output": cost}}
        for cost, worker in enumerate(workers, start=1)
    ]
    price = {"input": 0.05, "output": 0.10}
    config = home / "tidegate.yaml"
    text = yaml.safe_dump(
        {
            "listen": {"port": 0},
            "database": f"sqlite:///{home}/tidegate.db",
            "journal": {"folder": f"{home}/journal"},
            "health": {"interval_s": 1},
            "models": {"llama": {"aliases": ["llama-small"], "price": price, "endpoints": endpoints}},
        }
    )
    config.write_text(text)
    log = home / "gateway.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT)
    try:
        until(lambda: b"serving on" in log.read_bytes(), process, log, GATEWAY_START_S)
        url = re.search(r"serving on (\S+)", log.read_text())[1]
        until(lambda: answers(f"{url}/health/ready"), process, log, GATEWAY_START_S)
        yield Gateway(process, url, config, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def until(true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, within_s: float) -> None:
    """Wait for something that another process does and tells nobody."""
    ends_s = time.monotonic() + within_s
    while not true():
        assert process.poll() is None, f"ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < ends_s, f"not within {within_s} s:\n{log.read_text()[-4000:]}"
        time.sleep(0.05)


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    try:
        return get(url, headers)[0] == 200
    except (OSError, HTTPException):
        return False


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Status and body. The standard library's client: it costs next to nothing, and tests ask again and again."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
