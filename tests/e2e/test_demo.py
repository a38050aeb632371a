from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from loadtest.proxies import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LAST_LINE = "Ctrl-C stops all of it."
TIMEOUT_S = 60


class Demo(NamedTuple):
    process: Process
    temporary: Path
    """What the demo takes for the system's folder of temporary files."""

    async def printed(self) -> str:
        lines = []
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, f"ended early: {''.join(lines)}"
                lines.append(line)
                if line.strip() == LAST_LINE:
                    return "".join(lines)

    def workers(self) -> list[int]:
        """The processes it has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    async def ended(self) -> int:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.process.wait()


@asynccontextmanager
async def running(temporary: Path, *arguments: str) -> AsyncIterator[Demo]:
    process = await create_subprocess_exec(
        *(sys.executable, "-m", "gateway", "demo", *arguments),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    try:
        yield Demo(process, temporary)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # what nobody has waited for yet runs no more


async def all_gone(pids: list[int]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while any(map(is_running, pids)):  # noqa: ASYNC110 - they are no children of ours that could be waited for
            await asyncio.sleep(0.02)


async def leaves_nothing(demo: Demo, signalled: signal.Signals, workers: list[int]) -> None:
    demo.process.send_signal(signalled)
    assert await demo.ended() == 0
    assert not any(map(is_running, workers))
    assert list(demo.temporary.iterdir()) == []


async def output_of(*command: str, stdin: str = "") -> str:
    process = await create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


def pasted(printed: str, first_word: str) -> str:
    """From the line that starts with the word to the next empty line."""
    start = printed.index(f"\n{first_word} ") + 1
    return printed[start : printed.index("\n\n", start)] + "\n"


async def test_what_the_demo_prints_works_when_pasted_and_sigterm_leaves_nothing_behind(tmp_path: Path):
    port = free_port()
    async with running(tmp_path, "--port", str(port)) as demo:
        printed = await demo.printed()
        assert "\x1b" not in printed
        assert f"Base URL: http://127.0.0.1:{port}/v1\n" in printed
        workers = demo.workers()
        assert len(workers) == 3

        if shutil.which("curl"):
            reply = json.loads(await output_of("bash", "-c", pasted(printed, "curl")))
            assert reply["choices"][0]["message"]["content"]
            assert reply["model"] == "llama-3.1-8b"
        answer = await output_of(sys.executable, "-", stdin=pasted(printed, "from"))
        assert answer.strip()
        plan = await output_of("bash", "-c", pasted(printed, "echo"))
        assert all(f"worker-{number}" in plan for number in (1, 2, 3))
        usage = pasted(printed, sys.executable)
        async with asyncio.timeout(TIMEOUT_S):  # rows reach the database in batches
            while "worker-" not in await output_of("bash", "-c", usage):
                pass

        await leaves_nothing(demo, signal.SIGTERM, workers)


async def test_ctrl_c_stops_the_demo_and_every_worker(tmp_path: Path):
    async with running(tmp_path, "--port", "0", "--nodes", "1") as demo:
        await demo.printed()
        workers = demo.workers()
        await leaves_nothing(demo, signal.SIGINT, workers)


async def test_a_signal_while_it_is_still_starting_leaves_nothing_behind_either(tmp_path: Path):
    async with running(tmp_path, "--port", "0") as demo:
        async with asyncio.timeout(TIMEOUT_S):
            while not (workers := demo.workers()):  # noqa: ASYNC110 - another process's children tell nobody
                await asyncio.sleep(0.01)
        await leaves_nothing(demo, signal.SIGTERM, workers)


async def test_workers_of_a_demo_that_is_killed_end_by_themselves(tmp_path: Path):
    async with running(tmp_path, "--port", "0", "--nodes", "2") as demo:
        await demo.printed()
        workers = demo.workers()
        demo.process.kill()
        await all_gone(workers)


async def test_a_worker_that_dies_is_said_aloud_and_the_demo_goes_on(tmp_path: Path):
    async with running(tmp_path, "--port", "0", "--nodes", "2") as demo:
        printed = await demo.printed()
        os.kill(demo.workers()[0], signal.SIGKILL)
        async with asyncio.timeout(TIMEOUT_S):
            said = (await demo.process.stderr.readline()).decode()
        assert said.startswith("worker-1 ")
        assert "exit code -9" in said
        assert (await output_of(sys.executable, "-", stdin=pasted(printed, "from"))).strip()
        demo.process.send_signal(signal.SIGTERM)
        assert await demo.ended() == 0


@pytest.mark.parametrize("nodes", ["0", "17"])
async def test_a_number_of_nodes_that_makes_no_sense_is_an_error(tmp_path: Path, nodes: str):
    async with running(tmp_path, "--nodes", nodes) as demo:
        assert await demo.ended() == 2
        assert b"nodes" in await demo.process.stderr.read()
