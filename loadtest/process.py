"""A simulated worker as a process of its own, for whatever has to survive or notice its death."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_START_S = 120.0


class WorkerProcess:
    """A worker that runs. It exits on its own when the process that started it is gone, however that one ended."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self._process = process
        self.url = url
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def kill(self) -> None:
        """SIGKILL: all its connections are gone at once."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM: what that does is up to `shutdown_timeout`."""
        self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGSTOP: connections stay open and nothing is ever answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def wait(self) -> int:
        return await self._process.wait()

    def _signal(self, signum: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signum)


@asynccontextmanager
async def worker_process(**options: object) -> AsyncIterator[WorkerProcess]:
    """Start `python -m loadtest worker` and wait until it listens; at the end it is killed.

    `options` are those of the command line with underscores, `worker_process(model="sim", max_num_seqs=4)`; True is a
    flag. RuntimeError where it does not start, TimeoutError where that takes two minutes.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loadtest", "worker", *_arguments(options), "--exit-with-stdin"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield WorkerProcess(process, await _ready(process))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


async def _ready(process: asyncio.subprocess.Process) -> str:
    stdout = process.stdout
    if stdout is None:
        raise RuntimeError("a worker's stdout must be a pipe")
    async with asyncio.timeout(_START_S):
        line = (await stdout.readline()).decode().strip()
    word, _, url = line.partition(" ")
    if word != "ready":
        raise RuntimeError(f"the simulated worker did not start: {line or 'see its stderr'}")
    return url


def _arguments(options: dict[str, object]) -> list[str]:
    arguments = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(option)
        elif value is not False and value is not None:
            arguments += [option, str(value)]
    return arguments
