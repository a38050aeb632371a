"""Work that is done again and again beside the calls, for as long as a block runs."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

log = logging.getLogger(__name__)

JITTER = 0.2
"""Rounds of many gateways at many workers drift apart instead of coming in step."""


@asynccontextmanager
async def rounds(
    work: Callable[[float], Awaitable[None]], interval_s: float, name: str
) -> AsyncIterator[None]:
    """Do `work` now and every `interval_s` or so; it is told in how many seconds the next round comes."""
    task = asyncio.create_task(_repeat(work, interval_s, name), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _repeat(work: Callable[[float], Awaitable[None]], interval_s: float, name: str) -> None:
    while True:
        wait_s = interval_s * random.uniform(1.0 - JITTER, 1.0 + JITTER)  # noqa: S311 - jitter
        try:
            await work(wait_s)
        except Exception:
            # A defect here must not end the rounds: what they look at would stay as it was last seen.
            log.exception("%s failed", name)
        await asyncio.sleep(wait_s)
