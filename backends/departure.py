"""When a member of the fleet leaves that has said so, and what then becomes of its calls.

It may serve on until then what is done in time, or drain: finish what it has and get nothing new. Shortly before it has to
go, the calls that still run there are taken from it, so that they can be finished elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from backends.base import EndpointLeaves

if TYPE_CHECKING:
    from backends.member import Member

HAND_OVER_S = 3.0
HAND_OVER_SHARE = 0.2
"""How long before it has to leave running calls are taken from an endpoint: so many seconds, or this share of the notice
that it gave, whichever is less."""


class Departure:
    def __init__(self, member: Member) -> None:
        self._member = member
        self._breaking_off: asyncio.TimerHandle | None = None

    def announce(self, seconds: float, *, draining: bool) -> None:
        """It leaves in so many seconds; `draining` where it is to get nothing new until then."""
        self.forget()
        self._member.depart(time.monotonic() + seconds, draining=draining)
        after_s = max(0.0, seconds - min(HAND_OVER_S, HAND_OVER_SHARE * seconds))
        self._breaking_off = asyncio.get_running_loop().call_later(after_s, self.break_off)

    def cancel(self) -> None:
        """It does not leave after all."""
        self.forget()
        self._member.depart(None)

    def forget(self) -> None:
        """Leave its calls alone."""
        if self._breaking_off is not None:
            self._breaking_off.cancel()
            self._breaking_off = None

    def break_off(self) -> None:
        """Take from it the calls that still run there, and give it no more."""
        member = self._member
        member.depart(member.departs_s or time.monotonic(), draining=True)
        if member.lane is not None:
            member.lane.break_off(EndpointLeaves("it has to leave"))
