"""Real vLLM servers for tests, a gateway over them, and what the tests of it ask."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from gateway_process import PROJECT, answers, gateway_process, get, until
from openai import AsyncOpenAI

from loadtest.proxies import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway_process import Gateway

SCRIPTS = PROJECT.parent / "shared" / "vllm"
VLLM_START_S = 600
"""It takes one minute on two free cores."""
STOP_S = 60
TIMEOUT_S = 300
MASTER = "sk-master-0123456789"
GREEDY: dict[str, Any] = {
    "model": "llama",
    "messages": [{"role": "user", "content": "Why are there tides?"}],
    "temperature": 0,
}


class Worker(NamedTuple):
    """A real vLLM server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    events: str
    """Where it publishes what its prefix cache stores and evicts, if it does so."""
    replay: str
    """Where what was published is told again."""

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


@contextmanager
def three_workers(logs: Path) -> Iterator[list[Worker]]:
    """Servers with the same model, ready for calls; killed when the block is left. The last publishes its KV events."""
    workers: list[Worker] = []
    try:
        workers += [
            _begun(f"vllm-{number}", logs / f"{number}.log", publishes=number == 3) for number in (1, 2, 3)
        ]
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


def _begun(name: str, log: Path, *, publishes: bool) -> Worker:
    port, events, replay = free_port(), free_port(), free_port()
    # Where the tests are killed nobody else would end it.
    command = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    command += ["bash", str(SCRIPTS / "serve.sh"), str(folder()), str(port)]
    if publishes:
        published = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{events}",
            "replay_endpoint": f"tcp://*:{replay}",
            "topic": "kv-events",
        }
        command += ["--kv-events-config", json.dumps(published)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    return Worker(name, port, process, log, f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}")


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
    with gateway_process(home, models, auth={"master_key": MASTER}) as running:
        yield running


def draining(gateway: Gateway, method: str, name: str) -> None:
    """Have a worker get nothing new (POST), or get calls again (DELETE). It keeps what it has."""
    connection = HTTPConnection(urlsplit(gateway.url).netloc, timeout=TIMEOUT_S)
    body = b'{"within_s": 3600}' if method == "POST" else None
    headers = {"authorization": f"Bearer {MASTER}", "content-type": "application/json"}
    connection.request(method, f"/admin/nodes/{name}/drain", body, headers)
    assert connection.getresponse().status == 200
    connection.close()


def async_client(gateway: Gateway, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT_S)


async def comes_true(true: Callable[[], bool], within_s: float = TIMEOUT_S) -> None:
    """Wait for what another process does and tells nobody."""
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)
