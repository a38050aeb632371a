"""Real vLLM servers for tests, and a gateway over them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway_process import PROJECT, answers, gateway_process, get, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from gateway_process import Gateway

SCRIPTS = PROJECT.parent / "shared" / "vllm"
VLLM_START_S = 600
"""It takes one minute on two free cores."""
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


def unavailable() -> str | None:
    """Why there can be no real vLLM here, or None."""
    if not (SCRIPTS / "serve.sh").is_file():
        return "no real vLLM: the project stands alone, without ../shared/vllm"
    if not (folder() / "ready").is_file():
        return f"no real vLLM: none in {folder()} (../shared/vllm/install.sh puts one there)"
    return None


def folder() -> Path:
    return Path(os.environ.get("TIDEGATE_VLLM_DIR") or PROJECT / ".vllm")


def two_workers(logs: Path) -> AbstractContextManager[list[Worker]]:
    """Two servers with the same model, ready for calls; killed when the block is left."""
    return workers_with(logs, 2)


@contextmanager
def workers_with(logs: Path, count: int, *options: str) -> Iterator[list[Worker]]:
    """Servers with these options of `vllm serve`, ready for calls; killed when the block is left."""
    workers: list[Worker] = []
    try:
        for number, port in enumerate(free_ports(count), start=1):
            name = f"vllm-{number}"
            log = logs / f"{name}.log"
            command = ["bash", str(SCRIPTS / "serve.sh"), str(folder()), str(port), *options]
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
    """A gateway for the model `llama`, which the workers call `tiny`.

    The first worker is the cheapest, so that it is where calls of the tier `flex` go.
    """
    endpoints = [
        {"worker": worker.url, "name": worker.name, "model": "tiny", "cost": {"input": cost, "output": cost}}
        for cost, worker in enumerate(workers, start=1)
    ]
    price = {"input": 0.05, "output": 0.10}
    models = {"llama": {"aliases": ["llama-small"], "price": price, "endpoints": endpoints}}
    with gateway_process(home, models) as running:
        yield running


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
