"""One tick that looks at all calls under way, since no call can afford a timer or a task of its own.

Two things are seen here that no byte tells. An attempt that has shown nothing yet, at a worker that is out because nothing is
heard of it: nothing has been shown, so the call is tried elsewhere at once. And a stream that runs far below the speed
predicted for it, or stands still at such a worker: it goes on elsewhere. Meanwhile streams tell how fast their workers are.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from backends.base import FirstByteTimeout
from backends.exchange import Exchange
from routing.hedging import longest_s

if TYPE_CHECKING:
    from backends.fleet import Fleet
    from backends.member import Attempt
    from gateway.admission import Admission
    from gateway.tries import Tries

TICK_S = 0.25
"""Between two looks."""

LEAST_WAIT_S = 1.0
"""What has not waited so long is not looked at."""

MOST_LOOKS = 50
"""Plans made at one tick, for attempts that could be broken off."""


class Running(Protocol):
    """A stream under way."""

    def look(self, now_s: float) -> None:
        """See whether it runs as it should."""
        ...


class Lookout:
    """All calls under way."""

    def __init__(self, fleet: Fleet, admission: Admission, *, moves: bool) -> None:
        self.moves = moves
        """Whether streams that run slowly are moved."""
        self.silent: dict[Attempt, Tries] = {}
        """Those that have shown nothing yet, the oldest first, and what else their calls may try."""
        self.streams: dict[Running, None] = {}
        self.ticking = False
        self._fleet = fleet
        self._admission = admission

    def begin(self) -> None:
        """There is something to look at. To be called where `ticking` is not set."""
        self.ticking = True
        asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self.ticking = bool(self.silent or self.streams)
        if not self.ticking:
            return
        asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now_s = time.monotonic()
        for stream in list(self.streams):
            stream.look(now_s)
        looks = 0
        for attempt, tries in list(self.silent.items()):
            if attempt.waited_s(now_s) < LEAST_WAIT_S or looks == MOST_LOOKS:
                break
            unheard = attempt.member.ejection.unheard(now_s)
            if unheard or (not tries.hurried and self._is_overdue(attempt, now_s)):
                looks += 1
                self._break_off(attempt, tries, now_s, unheard=unheard)

    def _is_overdue(self, attempt: Attempt, now_s: float) -> bool:
        """Whether a reply in one piece takes longer than it ever should. A stream is raced before that."""
        if attempt.watched:
            return False
        hedging = self._fleet.pool(attempt.call.model).hedging
        return hedging.overdue(attempt.waited_s(now_s), self._longest_s(attempt))

    def came(self, attempt: Attempt) -> None:
        """A reply in one piece has come: others may be expected to take as long."""
        waited_s = attempt.waited_s(time.monotonic())
        if waited_s >= LEAST_WAIT_S:
            self._fleet.pool(attempt.call.model).hedging.wholes.saw(waited_s, self._longest_s(attempt))

    def _longest_s(self, attempt: Attempt) -> float:
        call = attempt.call
        return longest_s(attempt.candidate, call.max_tokens, self._admission.output_tokens(call))

    def _break_off(self, attempt: Attempt, tries: Tries, now_s: float, *, unheard: bool) -> None:
        """Have the call tried elsewhere, if anybody else can take it, and it has a try left for that."""
        reply, call, member = attempt.reply, attempt.call, attempt.member
        if not isinstance(reply, Exchange) or tries.left <= 1:
            return
        pool = self._fleet.pool(call.model)
        if not pool.has_others(member, now_s):
            return
        passed_over = {member.endpoint.name, *tries.failed_at}
        ranked = pool.plan(call, now_s, 0.0).ranked
        if all(candidate.endpoint.name in passed_over for candidate in ranked):
            return
        tries.hurried = tries.hurried or not unheard
        why = "the worker is not heard of any more" if unheard else "far longer than predicted"
        reply.break_off(FirstByteTimeout(f"no reply in {attempt.waited_s(now_s):.3g} s: {why}"))
