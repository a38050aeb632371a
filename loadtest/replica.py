"""A replica of the gateway, of several processes, that is stopped and started anew as a rollout does it.

What it must leave behind when it has been stopped is nothing: exit code 0, no process, no row that is not in the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from loadtest import procfs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loadtest.balancer import Balancer

_START_S = 120.0
_END_S = 120.0


class Replica:
    def __init__(self, folder: Path, port: int, config: Mapping[str, Any]) -> None:
        folder.mkdir()
        self.port = port
        self.config = folder / "tidegate.yaml"
        self.journal = folder / "journal"
        own = {"listen": {"port": port}, "journal": {"folder": str(self.journal)}}
        self.config.write_text(json.dumps({**config, **own}))  # JSON is YAML
        self.log = folder / "log.txt"
        self.faults: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self, balancer: Balancer) -> None:
        """Returns when the balancer sends it clients."""
        command = (sys.executable, "-m", "gateway", "serve", "--config", str(self.config))
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program; it takes no time
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(_START_S):
                await balancer.until_ready(self.port)
        except TimeoutError:
            raise RuntimeError(f"a replica is not ready; its log ends:\n{self._end_of_log()}") from None

    async def stop(self) -> None:
        """By SIGTERM; the balancer learns of it by itself."""
        process, self._process = self._process, None
        if process is None:
            return
        family = procfs.family(process.pid)
        process.terminate()
        try:
            code = await asyncio.to_thread(process.wait, _END_S)
        except subprocess.TimeoutExpired:
            self.faults.append("a replica did not end after SIGTERM")
            self._kill(process)
            return
        if code != 0:
            self.faults.append(f"a replica ended with exit code {code}: {self._end_of_log(200)}")
        if left := [pid for pid in family if procfs.is_there(pid)]:
            self.faults.append(f"{len(left)} processes of a replica that had ended were still there")
            self._kill(process)
        if files := sorted(path.name for path in self.journal.glob("*")):
            self.faults.append(f"a replica that had ended left in its journal: {', '.join(files)}")

    def kill(self) -> None:
        """Whatever is there, at the end of a run that was broken off."""
        process, self._process = self._process, None
        if process is not None:
            self._kill(process)

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        for pid in procfs.family(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def _end_of_log(self, characters: int = 1500) -> str:
        return self.log.read_text(errors="replace")[-characters:]
