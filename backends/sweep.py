"""The one timer of all lanes: what waits on them has its deadline as a plain attribute, compared with the clock here."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.lane import Lane

log = logging.getLogger(__name__)


class Sweep:
    """A background task, inside its block."""

    def __init__(self, lanes: Callable[[], list[Lane]], interval_s: float = 0.05) -> None:
        self._lanes = lanes
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="lane sweep")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            now_s = time.monotonic()
            for lane in self._lanes():
                try:
                    lane.sweep(now_s)
                except Exception:
                    # A defect must not leave every call of the process without deadlines.
                    log.exception("sweeping the lane to %s failed", lane.origin.host)
