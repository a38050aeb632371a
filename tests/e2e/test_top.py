"""`tidegate top` against a gateway that runs: in a terminal, in a pipe, and while the gateway goes away."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import pytest
from gateway_process import PROJECT
from pool import HELLO, INSTANT, LIMIT_S, Gateway, gateway

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

MASTER = "sk-master-0123456789"
COMMAND = [sys.executable, "-m", "gateway", "top", "--interval", "0.1"]


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[Gateway]:
    async with SimWorker(INSTANT) as worker:
        async with gateway(home, worker, auth={"master_key": MASTER}) as gw:
            yield gw


def environment(key: str = MASTER) -> dict[str, str]:
    return {**os.environ, "TIDEGATE_ADMIN_KEY": key, "PYTHONPATH": str(PROJECT), "TERM": "xterm-256color"}


async def asked(*arguments: str, key: str = MASTER) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return await asyncio.to_thread(
        subprocess.run,
        command,
        env=environment(key),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


class Terminal:
    """In which `top` runs."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._ours = ours
        self._shown = b""

    async def until(self, *words: str) -> None:
        """All of these have been shown since the last time."""
        async with asyncio.timeout(LIMIT_S):
            while not all(word.encode() in self._shown for word in words):
                try:
                    self._shown += os.read(self._ours, 65_536)
                except BlockingIOError:
                    assert self.process.poll() is None, self._shown.decode()
                    await asyncio.sleep(0.02)
        self._shown = b""

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    async def ended(self) -> int:
        async with asyncio.timeout(LIMIT_S):
            while self.process.poll() is None:
                try:
                    self._shown += os.read(self._ours, 65_536)
                except OSError:  # nothing there, or its other end is closed
                    await asyncio.sleep(0.02)
        return self.process.returncode


@contextmanager
def terminal(*arguments: str, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    os.set_blocking(ours, False)
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(),
        start_new_session=True,
    ) as process:
        try:
            yield Terminal(ours, process)
        finally:
            process.kill()
            os.close(theirs)
            os.close(ours)


async def test_calls_are_seen_as_they_happen_until_q_is_pressed(tmp_path: Path):
    async with serving(tmp_path) as gw:
        with terminal("--url", gw.url) as top:
            await top.until("worker-1", "serving", "live", "No calls of late")
            await gw.client().chat.completions.create(**HELLO)
            await top.until("worker-1", "ok", "default")
            top.press(b"q")
            assert await top.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_ctrl_c_is_no_failure_and_leaves_the_terminal_as_it_was(tmp_path: Path, number: signal.Signals):
    async with serving(tmp_path) as gw:
        with terminal("--url", gw.url) as top:
            before = termios.tcgetattr(top._ours)
            await top.until("live")
            top.process.send_signal(number)
            assert await top.ended() == 0
            assert termios.tcgetattr(top._ours) == before


class Door:
    """In front of a gateway, at an address that stays when it is closed."""

    def __init__(self, gw: Gateway) -> None:
        self.open = True
        self.later = asyncio.Event()
        """Whether more than the first connection get through."""
        self.later.set()
        self._port = int(gw.url.rpartition(":")[2])
        self._within: set[asyncio.StreamWriter] = set()

    async def pass_through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.close()
            return
        if self._within:
            await self.later.wait()
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._within |= {writer, their_writer}
        await asyncio.gather(_pass(reader, their_writer), _pass(their_reader, writer))

    def close(self) -> None:
        self.open = False
        for writer in self._within:
            writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while block := await reader.read(65_536):
            writer.write(block)
    writer.close()


async def test_a_gateway_that_goes_away_is_said_to_and_is_found_again(tmp_path: Path):
    async with serving(tmp_path) as gw:
        door = Door(gw)
        server = await asyncio.start_server(door.pass_through, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with terminal("--url", f"http://127.0.0.1:{port}") as top:
            await top.until("live")
            door.close()
            await top.until("away, trying again")
            door.open = True
            await top.until("live", "worker-1")
            top.press(b"q")
            assert await top.ended() == 0
        server.close()
        door.close()


async def test_a_call_after_the_first_look_and_before_there_are_events_is_not_missed(tmp_path: Path):
    async with serving(tmp_path) as gw:
        door = Door(gw)
        door.later.clear()
        server = await asyncio.start_server(door.pass_through, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with terminal("--url", f"http://127.0.0.1:{port}") as top:
            await top.until("No calls of late")
            await gw.client().chat.completions.create(**HELLO)
            door.later.set()
            await top.until("worker-1", "ok", "default")
        server.close()
        door.close()


async def test_in_a_pipe_it_is_one_picture_in_tables_or_as_json(tmp_path: Path):
    async with serving(tmp_path) as gw:
        await gw.client().chat.completions.create(**HELLO)
        await gw.rows()
        tables = await asked("--url", gw.url)
        assert (tables.returncode, tables.stderr) == (0, "")
        totals, nodes, calls = tables.stdout.split("\n\n")
        assert "calls_per_s" in totals
        assert nodes.splitlines()[1].startswith("worker-1")
        assert "harbour" in calls
        picture = json.loads((await asked("--url", gw.url, "--once", "--json")).stdout)
        assert [each["name"] for each in picture["endpoints"]] == ["worker-1"]
        assert [(each["state"], each["completion_tokens"]) for each in picture["calls"]] == [("ok", 5)]
        assert picture["totals"]["ttft_p50_ms"] is None


async def test_json_is_a_line_for_each_picture(tmp_path: Path):
    async with serving(tmp_path) as gw:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "--json", "--url", gw.url, env=environment(), stdout=subprocess.PIPE, limit=1 << 20
        )
        async with asyncio.timeout(LIMIT_S):
            for _ in range(3):
                assert json.loads(await process.stdout.readline())["away"] is None
            process.send_signal(signal.SIGINT)
            await process.stdout.read()
            assert await process.wait() == 0


async def test_a_gateway_that_cannot_be_asked_or_will_not_answer_is_exit_code_1(tmp_path: Path):
    away = await asked("--url", "http://127.0.0.1:9")
    assert (away.returncode, away.stdout) == (1, "")
    assert away.stderr.startswith("cannot ask http://127.0.0.1:9: ")
    async with serving(tmp_path) as gw:
        refused = await asked("--url", gw.url, "--json", key=gw.key)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "answered 403" in refused.stderr
