"""Active health checks: a look at each worker every few seconds, so that a dead one is found before a call finds it.

A check that succeeds is no promise (a worker that is shutting down still answers /health), so calls that fail eject a
worker as well; what a check adds is that a worker which nobody calls is seen to be gone, and seen to be back.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from backends.base import AttemptFailed, CallTimeout, ConnectFailed, LaneFull
from backends.rounds import rounds

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from backends.member import Member


MOST_BYTES = 65_536
"""Of what it answers; only the status counts."""

HELD_UP_S = 0.5
"""Where time is called so much too late, it is this process that stood still: it would find all workers late at once."""


def watch(member: Member, interval_s: float, timeout_s: float) -> AbstractAsyncContextManager[None]:
    """Check the member's health now and then, as long as the block runs."""
    name = f"checking {member.endpoint.name}"
    return rounds(lambda next_check_s: check(member, timeout_s, next_check_s), interval_s, name)


async def check(member: Member, timeout_s: float, next_check_s: float) -> None:
    answer = await _answer(member, timeout_s)
    if answer is None:
        return  # in full use, which calls tell more of than a check
    ok, detail = answer
    was_out = member.ejection.unhealthy
    now_s, roll = time.monotonic(), random.random()  # noqa: S311 - jitter
    member.ejection.health(now_s, ok, "" if ok else detail, next_check_s, roll)
    member.checked = True
    if ok and was_out:
        member.ramp_up(now_s)
    member.changed()


async def _answer(member: Member, timeout_s: float) -> tuple[bool, str] | None:
    """Whether it is well, and what it said or why there is no answer; None where its lane is full."""
    while True:
        begun_s = time.monotonic()
        try:
            status, _ = await member.backend.get("/health", timeout_s, MOST_BYTES)
        except LaneFull:
            return None
        except CallTimeout:
            if time.monotonic() - begun_s <= timeout_s + HELD_UP_S:
                return False, f"/health did not answer within {timeout_s:g} s"
        except AttemptFailed as failure:
            if isinstance(failure, ConnectFailed):
                member.restarted()
            return False, str(failure)
        else:
            return status == 200, f"/health answered {status}"
