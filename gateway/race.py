"""A call's wait for its first token: where it takes too long, a second attempt joins in, and the first token wins.

Nearly every call is answered before it is late, so waiting costs it no task and no timer of its own: one tick looks at
all that wait. Only when a second attempt begins is there a task, for that one. Whichever answers first ends the other at
once, which closes its connection, and a vLLM worker takes that as an abort. A client that leaves, in whatever state the
race is, ends both.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

from backends.base import AttemptFailed, CallTimeout
from gateway.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backends.fleet import Fleet
    from gateway.admission import Admission
    from gateway.answer import Answer
    from gateway.meter import Meter
    from gateway.openai import Request
    from gateway.planning import Planner
    from gateway.telemetry import Telemetry
    from routing.hedging import Hedging, Refused
    from routing.types import Call, Candidate, Endpoint

    Ask = Callable[[Candidate], Coroutine[Any, Any, Answer]]

TICK_S = 0.02
"""Between two looks at those that wait."""

OUTRUN = "another endpoint was quicker"
"""With this an attempt is cancelled that has lost a race."""

LOOKS_AGAIN = 1.25
"""A race that was refused a second attempt is looked at again when it has waited for so many times as long."""


class Races:
    """All races under way."""

    def __init__(
        self, planner: Planner, fleet: Fleet, admission: Admission, telemetry: Telemetry, *, hedge: bool
    ) -> None:
        self.planner = planner
        self.telemetry = telemetry
        self._fleet = fleet
        self._admission = admission
        self.hedge = hedge
        """Whether it is switched on."""
        self.running: dict[Race, None] = {}
        """Those that have no second attempt yet."""
        self.ticking = False

    def racing(self, call: Call, request: Request, meter: Meter, ask: Ask, tried: list[Endpoint]) -> Ask:
        """`ask`, or where the call may get a second attempt, what asks beside a candidate that is late as well.

        Those who were asked so are put into `tried`.
        """
        # Flex waits for spare capacity: it shall not take twice of it. Of a whole reply nothing is seen before its end.
        may_hedge = self.hedge and request.hedge and request.stream and not meter.hedged
        if not may_hedge or call.tier.name == "flex":
            return ask
        hedging = self._fleet.pool(call.model).hedging
        hedging.budget.call()
        return Race(self, hedging, call, meter, ask, tried).run

    def second(self, race: Race, waited_s: float) -> Candidate | Refused:
        """Whom to ask beside the race's first one, or why nobody."""
        if self._admission.waiting:
            return "queue"
        plan = self._fleet.pool(race.call.model).plan(race.call, time.monotonic(), 0.0)
        ranked = () if plan.last_resort else plan.ranked
        others = (candidate for candidate in ranked if candidate.endpoint not in race.tried)
        return race.hedging.racer(waited_s, race.first, others, race.call)

    def tick(self) -> None:
        """Look at those that are late, and again in a moment, for as long as any are under way."""
        self.ticking = bool(self.running)
        if self.ticking:
            asyncio.get_running_loop().call_later(TICK_S, self.tick)
            now_s = time.monotonic()
            for race in [race for race in self.running if race.look_s <= now_s]:
                race.look(now_s)


class Race:
    """One call's attempts: one after another, and once beside one another."""

    # Nearly every race is over before anything has happened: what has not is a default of the class, which costs nothing.
    look_s = 0.0
    """When it is to be looked at: not before it is late."""
    _other: Candidate | None = None
    _second: asyncio.Task[Answer] | None = None
    _step: Step | None = None
    _is_waiting = True
    _is_outrun = False
    _is_suppressed = False

    first: Candidate
    """The one being asked, which somebody may be asked beside."""

    def __init__(
        self,
        races: Races,
        hedging: Hedging,
        call: Call,
        meter: Meter,
        ask: Ask,
        tried: list[Endpoint],
    ) -> None:
        self.call = call
        self.hedging = hedging
        self.tried = tried
        self._races = races
        self._meter = meter
        self._ask = ask
        self._task = asyncio.current_task()

    async def run(self, first: Candidate) -> Answer:
        """The first answer: of `first`, or of who was asked beside it.

        Raises CallRejected or AttemptFailed where neither has one.
        """
        self.first = first
        self.tried.append(first.endpoint)
        lateness, running = self.hedging.lateness, self._races.running
        self._asked_s = asked_s = time.monotonic()
        if self._other is None:
            self.look_s = asked_s + lateness.late_after_s(first.estimate.ttft_s)
            running[self] = None
            if not self._races.ticking:
                self._races.tick()
        end = "abandoned"
        self._is_waiting = True
        try:
            answer = await self._ask(first)
        except asyncio.CancelledError:
            if self._second is None or not self._is_outrun or self._is_cancelled_by_others():
                raise
            self._saw(first, self._asked_s)
            self._meter.failed(first.endpoint, "hedge_lost")
            return await self._second_answer(self._second)
        except AttemptFailed as failure:
            self._is_waiting = False
            if self._is_outrun:
                self._is_cancelled_by_others()
            if self._second is None or isinstance(failure, CallTimeout) or _has_failed(self._second):
                raise
            return await self._second_answer(self._second)
        else:
            lateness.saw(time.monotonic() - asked_s, first.estimate.ttft_s)
            end = "lost"
            return answer
        finally:
            self._is_waiting = False
            running.pop(self, None)
            if self._second is not None:
                self._end(self._second, end)

    def look(self, now_s: float) -> None:
        """The first one is late: ask another one beside it, if there is one worth it."""
        if self._task is None or self._task.cancelling():
            return  # the call is at its end
        if self._meter.speaks:
            self.look_s = math.inf
            return  # its first token has come, and is held back
        waited_s = now_s - self._asked_s
        found = self._races.second(self, waited_s)
        if isinstance(found, str):
            self.look_s = self._asked_s + LOOKS_AGAIN * waited_s
            if not self._is_suppressed:
                self._is_suppressed = True
                self._races.telemetry.churn.not_hedged[self.call.model, found] += 1
            return
        del self._races.running[self]
        self._other = found
        self.tried.append(found.endpoint)
        self._meter.hedged = True
        self._stepped(found)
        self._second = asyncio.create_task(self._ask_second(found), name="hedge")
        self._second.add_done_callback(self._second_ended)

    def _stepped(self, found: Candidate) -> None:
        meter, planner, expected = self._meter, self._races.planner, found.estimate.cost_nano_usd
        self._step = Step(
            "hedge", "late", self.first.endpoint.name, found.endpoint.name, expected_nano_usd=expected
        )
        meter.stepped(self._step)
        arrival, request = meter.what
        planner.stepped(arrival, request.model, planner.again(self.call), self._step)

    def _saw(self, candidate: Candidate, asked_s: float) -> None:
        self.hedging.lateness.saw(time.monotonic() - asked_s, candidate.estimate.ttft_s)

    async def _ask_second(self, other: Candidate) -> Answer:
        asked_s = time.monotonic()
        answer = await self._ask(other)
        self._saw(other, asked_s)
        return answer

    def _second_ended(self, second: asyncio.Task[Answer]) -> None:
        if second.cancelled():
            return
        if second.exception() is not None:
            self._counted("failed")
        elif self._is_waiting and self._task is not None:
            self._is_outrun = True
            self._task.cancel(OUTRUN)

    def _is_cancelled_by_others(self) -> bool:
        """Take our own cancellation back; whether there is another one, as when the client has left."""
        return self._task is None or self._task.uncancel() > 0

    async def _second_answer(self, second: asyncio.Task[Answer]) -> Answer:
        """The first one is out of it: the answer is the second's."""
        answer = await second
        self._second = None
        self._counted("won")
        return answer

    def _end(self, second: asyncio.Task[Answer], outcome: str) -> None:
        """Nobody waits for the second one any more.

        Nor is its end waited for here: the client could leave meanwhile, and an answer that is on its way out of `run`
        would be lost, and its connection with it. What is cancelled ends in the next turn of the loop, and closes what it has.
        """
        self._second = None
        if _has_failed(second):
            return
        self._counted(outcome)
        if outcome == "lost" and self._other is not None:
            self._meter.failed(self._other.endpoint, "hedge_lost")
        why = (OUTRUN,) if outcome == "lost" else ()
        if second.cancel(*why):
            return
        if not second.cancelled():
            second.result().end(asyncio.CancelledError(*why))

    def _counted(self, outcome: str) -> None:
        if self._step is not None:
            self._step.outcome = outcome
        self._races.telemetry.churn.hedges[self.call.model, outcome] += 1


def _has_failed(second: asyncio.Task[Answer]) -> bool:
    return second.done() and not second.cancelled() and second.exception() is not None
