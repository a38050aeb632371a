"""The whole product on one machine, for somebody who has just installed it.

The simulated workers are real HTTP servers in processes of their own. They are started as programs, since the gateway
must not import the load generator, and each reads a pipe whose writing end is here: however this process ends, even
by SIGKILL, the pipe ends with it, and so do they.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import uvloop
import yaml
from rich.console import Console
from rich.text import Text

from gateway import app
from gateway.audit import Actor
from gateway.config import load
from gateway.store import Store
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

Stream = TypeVar("Stream", asyncio.StreamReader, asyncio.StreamWriter)

MODEL = "llama-3.1-8b"
HOST = "127.0.0.1"
CALL = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Why are there tides?"}]})
READY_WITHIN_S = 30
STOP_WITHIN_S = 5

FASTEST_PREFILL_TOKENS_PER_S = 16_000
FASTEST_DECODE_S_PER_TOKEN = 0.008
FASTEST_USD_PER_MILLION = 0.08
SLOWDOWN = 1.6
"""By this factor each worker is slower than the one before it, and cheaper."""


class DemoError(Exception):
    """The demo cannot run; the text says why."""


class WorkerPlan(NamedTuple):
    name: str
    prefill_tokens_per_s: float
    decode_s_per_token: float
    usd_per_million: float


class Worker(NamedTuple):
    plan: WorkerPlan
    url: str
    process: Process


class Keys(NamedTuple):
    tenant: str
    """For calls."""
    master: str
    """For administration."""


def run(port: int, nodes: int) -> int:
    """Runs until SIGINT or SIGTERM and returns the exit code. Raises DemoError where it cannot run."""
    port = _free_port(port)
    with TemporaryDirectory(prefix="tidegate-demo-") as folder:
        return uvloop.run(_demo(Path(folder), port, nodes))


async def _demo(folder: Path, port: int, nodes: int) -> int:
    """Runs the demo in a task of its own, so that a signal that comes before the gateway serves, and takes signals
    itself, cancels that task and never what cleans up after it.
    """
    loop = asyncio.get_running_loop()
    async with _ended_together() as processes:
        story = asyncio.create_task(_story(folder, port, nodes, processes))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, story.cancel)
        try:
            return await story
        except asyncio.CancelledError:
            return 0


async def _story(folder: Path, port: int, nodes: int, processes: list[Process]) -> int:
    plans = [_plan(index) for index in range(nodes)]
    for plan in plans:
        await _start(plan, processes)
    urls = await asyncio.gather(*map(_url_when_ready, plans, processes))
    workers = [Worker(*each) for each in zip(plans, urls, processes, strict=True)]
    path = folder / "tidegate.yaml"
    master_key = f"tg-master-{secrets.token_urlsafe(16)}"
    written = yaml.safe_dump(_config(folder, port, master_key, workers), sort_keys=False)
    path.write_text(written, encoding="utf-8")
    config = load(path, os.environ)
    with Store.open(config.database.get_secret_value()) as store:
        keys = Keys(Subjects(store, Actor("demo")).create_key("demo", "demo").secret, master_key)
    watching = [asyncio.create_task(_watch(worker)) for worker in workers]
    try:
        return await app.serve(config, on_ready=partial(_announce, path, port, keys, workers))
    finally:
        for watch in watching:
            watch.cancel()  # from here on the workers are meant to end


@contextlib.asynccontextmanager
async def _ended_together() -> AsyncIterator[list[Process]]:
    """A list of processes, none of which outlives the block: the end of its stdin ends each."""
    processes: list[Process] = []
    try:
        yield processes
    finally:
        for process in processes:
            _pipe(process.stdin).close()
        try:
            await asyncio.wait_for(_all_ended(processes), STOP_WITHIN_S)
        except TimeoutError:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await _all_ended(processes)


async def _all_ended(processes: Sequence[Process]) -> None:
    await asyncio.gather(*(process.wait() for process in processes))


def _plan(index: int) -> WorkerPlan:
    factor = SLOWDOWN**index
    return WorkerPlan(
        name=f"worker-{index + 1}",
        prefill_tokens_per_s=round(FASTEST_PREFILL_TOKENS_PER_S / factor),
        decode_s_per_token=round(FASTEST_DECODE_S_PER_TOKEN * factor, 4),
        usd_per_million=round(FASTEST_USD_PER_MILLION / factor, 4),
    )


async def _start(plan: WorkerPlan, processes: list[Process]) -> None:
    command = [sys.executable, "-m", "loadtest", "worker", "--host", HOST, "--port", "0", "--model", MODEL]
    command += ["--prefill-tokens-per-s", str(plan.prefill_tokens_per_s)]
    command += ["--decode-s-per-token", str(plan.decode_s_per_token), "--exit-with-stdin"]
    # In a session of its own: Ctrl-C goes to the whole foreground group, and the gateway must drain before they end.
    processes.append(await create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True))


async def _url_when_ready(plan: WorkerPlan, process: Process) -> str:
    try:
        line = await asyncio.wait_for(_pipe(process.stdout).readline(), READY_WITHIN_S)
    except TimeoutError:
        raise DemoError(f"{plan.name} was not ready within {READY_WITHIN_S} s") from None
    word, _, url = line.decode().strip().partition(" ")
    if word != "ready":
        raise DemoError(f"{plan.name} did not start; what it said is above")
    return url


async def _watch(worker: Worker) -> None:
    while await _pipe(worker.process.stdout).read(65_536):
        pass  # so that it never waits for a reader
    code = await worker.process.wait()
    message = (
        f"{worker.plan.name} ({worker.url}) has ended with exit code {code}; the gateway goes on without it"
    )
    _say(Console(stderr=True), message, "bold red")


def _pipe(stream: Stream | None) -> Stream:
    if stream is None:
        raise AssertionError("processes here are started with pipes")
    return stream


def _config(folder: Path, port: int, master_key: str, workers: Sequence[Worker]) -> dict[str, Any]:
    endpoints = [
        {
            "worker": worker.url,
            "name": worker.plan.name,
            "cost": {"input": worker.plan.usd_per_million / 2, "output": worker.plan.usd_per_million},
        }
        for worker in workers
    ]
    return {
        "listen": {"host": HOST, "port": port},
        "auth": {"master_key": master_key},
        "database": f"sqlite:///{folder}/tidegate.db",
        "journal": {"folder": f"{folder}/journal"},
        "models": {MODEL: {"price": {"input": 0.05, "output": 0.10}, "endpoints": endpoints}},
    }


def _announce(path: Path, port: int, keys: Keys, workers: Sequence[Worker]) -> None:
    """Lines to be pasted stand alone, unwrapped and without a frame."""
    base_url, key, command = f"http://{HOST}:{port}/v1", keys.tenant, _own_command()
    console = Console()
    _say(console, f"Tidegate is serving {MODEL} from {len(workers)} simulated workers:")
    for plan, url, _ in workers:
        pace = (
            f"{plan.prefill_tokens_per_s} prompt tokens/s, {plan.decode_s_per_token * 1000:.1f} ms per token"
        )
        _say(console, f"  {plan.name}  {url}  {pace}", "dim")
    _say(console, "")
    _say(console, f"Base URL: {base_url}", "bold green")
    _say(console, f"API key:  {key}", "bold green")
    _say(console, f"Console:  http://{HOST}:{port}/console, with the key {keys.master}", "bold green")
    _say(console, "\nWith curl:\n")
    _say(console, _curl_line(base_url, key), "cyan")
    _say(console, "\nWith Python (pip install openai):\n")
    _say(console, _python_snippet(base_url, key), "cyan")
    _say(console, "\nFrom another terminal, where that call would go now, and why:\n")
    ask = f"{command} explain - --url {base_url} --key {keys.master}"
    _say(console, f"echo {shlex.quote(CALL)} | {ask}", "cyan")
    _say(console, "\nAnd what was used:\n")
    _say(console, f"{command} usage --by endpoint --config {shlex.quote(str(path))}", "cyan")
    _say(console, "\nCtrl-C stops all of it.")
    sys.stdout.flush()


def _say(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style), soft_wrap=True)


def _own_command() -> str:
    """As it can be called from anywhere: an environment that is not activated has none on the path."""
    own = Path(sys.argv[0])
    if own.name != "tidegate":
        return f"{shlex.quote(sys.executable)} -m gateway"
    found = shutil.which("tidegate")
    return "tidegate" if found is not None and own.samefile(found) else shlex.quote(str(own.absolute()))


def _curl_line(base_url: str, key: str) -> str:
    headers = f"-H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
    return f"curl -sS {base_url}/chat/completions {headers} -d {shlex.quote(CALL)}"


def _python_snippet(base_url: str, key: str) -> str:
    return f"""\
from openai import OpenAI
client = OpenAI(base_url="{base_url}", api_key="{key}")
messages = [{{"role": "user", "content": "Why are there tides?"}}]
reply = client.chat.completions.create(model="{MODEL}", messages=messages)
print(reply.choices[0].message.content)"""


def _free_port(port: int) -> int:
    """The port, or any free one for 0. Asked before anything is started, to say so early and clearly."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: not stopped by TIME_WAIT
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DemoError(
                f"cannot listen on {HOST}:{port}: {reason}; choose another port with --port"
            ) from None
        return int(probe.getsockname()[1])
