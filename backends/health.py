"""Active health checks: a look at each worker every few seconds, so that a dead one is found before a call finds it.

A check that succeeds is no promise (a worker that is shutting down still answers /health), so calls that fail eject a
worker as well; what a check adds is that a worker which nobody calls is seen to be gone, and seen to be back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from backends.base import AttemptFailed, CallTimeout, LaneFull

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.fleet import Member

log = logging.getLogger(__name__)

JITTER = 0.2
"""Checks of many workers by many gateways drift apart instead of coming in step."""


@asynccontextmanager
async def watch(member: Member, interval_s: float, timeout_s: float) -> AsyncIterator[None]:
    """Check the member's health now and then, as long as the block runs."""
    task = asyncio.create_task(_keep_checking(member, interval_s, timeout_s), name="health checks")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _keep_checking(member: Member, interval_s: float, timeout_s: float) -> None:
    while True:
        wait_s = interval_s * random.uniform(1.0 - JITTER, 1.0 + JITTER)  # noqa: S311 - jitter
        try:
            await check(member, timeout_s, wait_s)
        except Exception:
            # A defect here must not end the checks: the member would keep the state it was last seen in.
            log.exception("checking %s failed", member.endpoint.name)
        await asyncio.sleep(wait_s)


async def check(member: Member, timeout_s: float, next_check_s: float) -> None:
    try:
        status = await member.backend.probe("/health", timeout_s)
    except LaneFull:
        return  # in full use, which calls tell more of than a check
    except CallTimeout:
        ok, detail = False, f"/health did not answer within {timeout_s:g} s"
    except AttemptFailed as failure:
        ok, detail = False, str(failure)
    else:
        ok, detail = status == 200, f"/health answered {status}"
    member.ejection.health(time.monotonic(), ok, "" if ok else detail, next_check_s)
    member.checked = True
    member.changed()
