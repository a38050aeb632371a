"""Which calls may be sent now, which wait, and which give way: the asynchronous side of `routing.queue` and `.spare`.

Most calls never come here: where nobody waits and no flex call could be sent back, `Dispatch` sends a call straight on.

A flex call is sent only where capacity is spare. Until its first byte has come it may be sent back: its task is cancelled
in the attempt, which closes the connection (vLLM takes that as an abort), and it waits again at the head of its tenant's
line. Calls of the other tiers wait only while those who could take them are busy or resting, and never long.

Who waits is looked at again when an attempt ends or brings its first token, and every TICK_S for whatever tells nobody. One
call is let go at a time: only when it has been sent does its endpoint's load show it.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.errors import ApiError, shutting_down, unserved
from routing.distribution import Distribution
from routing.queue import ORDER, Queue, QueueLimits, Waiting, serving_work
from routing.spare import SPARE_WAIT_S, hosted, spare, wait_s

if TYPE_CHECKING:
    from collections.abc import Collection

    from backends.fleet import Fleet
    from gateway.arrival import Arrival
    from gateway.client import Client
    from gateway.meter import Meter
    from gateway.tries import Tries
    from routing.queue import Shed
    from routing.types import Call, Endpoint, Load, Plan

TICK_S = 0.05
"""Between two looks at those who wait, where nothing happens: for pauses that end and calls that have waited too long."""

SETTLE_S = 0.005
"""After something has happened, until it is looked at who can go now: much happens at once, and one look does for it."""

MOST_TIMES_SENT_BACK = 3
"""Then a flex call keeps its place: what it has waited for should not be lost for ever."""

MOST_TRIED = 16
"""Different demands of calls that find no place, before the others have to wait for the next look."""

LONGEST_PAUSE_S = 60.0
"""An endpoint that will be back later than this, such as a provider with no key left, is not waited for."""

WAIT_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


class Admission:
    """Who waits, who goes, who comes back."""

    def __init__(self, fleet: Fleet, limits: QueueLimits, max_wait_s: float, total_s: float) -> None:
        self.waiting = 0
        """Calls that wait. A plain number, since every call asks for it."""
        self.may_be_sent_back: dict[Place, None] = {}
        """Flex calls under way that have not brought a byte yet, the youngest last."""
        self.queue = Queue(limits)
        self.waits_s = {tier: Distribution(WAIT_BUCKETS_S) for tier in ORDER}
        """How long those waited that were sent in the end."""
        self.shed: Counter[str] = Counter()
        """Calls refused for want of a place, by reason."""
        self.sent_back: Counter[str] = Counter()
        """Times that a flex call gave way, by model."""
        self._total_s = total_s
        self._fleet = fleet
        self._max_wait_s = max_wait_s
        self._places: dict[Waiting, Place] = {}
        self._look: asyncio.Handle | None = None
        self._ticking: asyncio.Handle | None = None

    def take(self, limits: QueueLimits, max_wait_s: float) -> None:
        """From now on these are the limits; whoever waits already goes on."""
        self.queue.limits = limits
        self._max_wait_s = max_wait_s

    def worth_waiting(self, plan: Plan, call: Call) -> bool:
        """Whether somebody who cannot take the call now may in a moment, and not only after too long."""
        patience_s, now_s = min(LONGEST_PAUSE_S, self.patience_s(call)), time.monotonic()
        return any(
            rejection.retry_after_s is not None and rejection.retry_after_s <= patience_s
            for rejection in plan.rejected
            if rejection.filter == "availability"
            and (member := self._fleet.find(rejection.endpoint)) is not None
            and member.soon(now_s)
        )

    def patience_s(self, call: Call) -> float:
        """How long the call may wait: never beyond its first token's target."""
        demand_s = call.demands.max_ttft_s
        most_s = math.inf if call.tier.name == "flex" else self._max_wait_s
        return min(most_s, call.tier.max_ttft_s, self._total_s, math.inf if demand_s is None else demand_s)

    def output_tokens(self, call: Call) -> float:
        """What the call is expected to write."""
        expected = self._fleet.pool(call.model).output_tokens(call.tenant)
        return expected if call.max_tokens is None else min(expected, call.max_tokens)

    def look(self) -> None:
        """Something has happened at an endpoint: see soon who can go now."""
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(SETTLE_S, self._let_go)

    # For places

    def at_once(self, plan: Plan, call: Call) -> Plan | None:
        """The plan by which the call can be sent now, past nobody; None where it has to wait.

        Where a flex call is in the way that could be sent back, it is.
        """
        found = None if self.queue.waits(call.model, call.tier.name) else self._placed(plan, call)
        if call.tier.name != "flex" and self.may_be_sent_back:
            if found is None:
                self._make_room(self._busy(plan))
            else:
                best = found.ranked[0].endpoint
                if wait_s(self._fleet.member(best).load(time.monotonic())) > SPARE_WAIT_S:
                    self._make_room((best,))
        return found

    def plan(self, place: Place) -> Plan:
        """The plan for a call that has waited, or has been tried."""
        now_s, call = time.monotonic(), place.call
        if call.demands.max_ttft_s is not None:
            left_s = call.demands.max_ttft_s - (now_s - place.started_s)
            call = structs.replace(call, demands=structs.replace(call.demands, max_ttft_s=left_s))
        return self._fleet.pool(call.model).plan(call, now_s, random.random())  # noqa: S311 - settles ties

    def enter(self, place: Place, *, back: bool) -> None:
        """The call waits from now on: where it is `back`, before the others of its tenant. Raises ApiError where the queue
        does not take it.
        """
        waiting, now_s = place.waiting, place.since_s
        if back:
            self.queue.put_back(waiting, now_s)
        elif (shed := self.queue.join(waiting, now_s)) is not None:
            error = self._refusal(shed)
            if shed.waiting is waiting:
                raise error
            self._places[shed.waiting].refuse(error)
        self._places[waiting] = place
        self.waiting = len(self.queue)
        self.look()  # it may be waiting only behind calls that want something else
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def leave(self, waiting: Waiting) -> None:
        """It waits no more, for whatever reason."""
        self.queue.leave(waiting, time.monotonic())
        del self._places[waiting]
        self.waiting = len(self.queue)

    # Looking

    def _let_go(self) -> None:
        """Let go whoever is first and finds a place now, one of each model, and look again when they have been sent."""
        self._look = None
        now_s = time.monotonic()
        for model in self.queue.models():
            if (found := self._first(model)) is not None:
                self._go(*found, now_s)
                if self._look is None:
                    # The loop runs what is ready in the order in which it became so: this after those who go.
                    self._look = asyncio.get_running_loop().call_soon(self._let_go)

    def _first(self, model: str) -> tuple[Place, Plan] | None:
        """The first of those who wait that finds a place, with its plan."""
        tried: dict[object, int] = {}
        """The least number of tokens, of calls that found no place, by what else they want."""
        for waiting in self.queue.ordered(model):
            place = self._places[waiting]
            call = place.call
            wants, tokens = (
                (waiting.tier, call.needs, call.demands),
                call.prompt_tokens + (call.max_tokens or 0),
            )
            if place.turn.done() or tokens >= tried.get(wants, math.inf):
                continue
            plan = self.plan(place)
            found = self._placed(plan, call)
            if found is not None:
                return place, found
            tried[wants] = tokens
            # Where everybody could serve it but nobody now, those behind it, who want as much or more, fare no better.
            if len(tried) == MOST_TRIED or all(each.filter == "availability" for each in plan.rejected):
                return None
        return None

    def _go(self, place: Place, plan: Plan, now_s: float) -> None:
        self.queue.go(place.waiting, now_s)
        self.waits_s[place.waiting.tier].add(now_s - place.since_s)
        self.waiting = len(self.queue)
        place.turn.set_result(plan)

    def _tick(self) -> None:
        self._ticking = None
        if not self.queue:
            return
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        now_s = time.monotonic()
        for waiting in self.queue.expired(now_s):
            place = self._places[waiting]
            if not place.turn.done():
                plan = hosted(self.plan(place))
                if plan is not None:
                    self._go(place, plan, now_s)
                else:
                    place.refuse(self._too_late(place, now_s))
        self._refuse_lost(now_s)
        if self._look is None:
            self._let_go()

    def _placed(self, plan: Plan, call: Call) -> Plan | None:
        """The plan as the call may be sent by it, if it may."""
        if call.tier.name != "flex":
            return plan if plan.ranked else None
        return spare(plan, self._loads(call.model), self._busy(plan))

    def _loads(self, model: str) -> dict[str, Load]:
        """By the name of the endpoint."""
        return {endpoint.name: load for endpoint, load in self._fleet.pool(model).snapshot(time.monotonic())}

    def _busy(self, plan: Plan) -> list[Endpoint]:
        """Those who cannot take the call now, but soon will."""
        rejected = [each.endpoint for each in plan.rejected if each.filter == "availability"]
        return [endpoint for endpoint in rejected if self._is_busy(endpoint)]

    def _is_busy(self, endpoint: Endpoint) -> bool:
        member = self._fleet.find(endpoint)
        return member is not None and not member.out(time.monotonic())

    def _refuse_lost(self, now_s: float) -> None:
        """Tell those who wait for a model of which nobody is there any more. Flex has time."""
        for model in self.queue.models():
            if not any(member.soon(now_s) for member in self._fleet.pool(model)):
                for waiting in self.queue.ordered(model):
                    if waiting.tier != "flex":
                        place = self._places[waiting]
                        place.refuse(self._too_late(place, now_s))

    def _make_room(self, endpoints: Collection[Endpoint]) -> None:
        """Send back the youngest flex call at any of these."""
        for place in reversed(self.may_be_sent_back):
            if place.endpoint in endpoints and place.send_back():
                self.sent_back[place.waiting.model] += 1
                return

    def _refusal(self, shed: Shed) -> ApiError:
        self.shed["queue_full_for_tenant" if shed.of_tenant else "queue_full"] += 1
        retry_after_s = self.queue.retry_after_s(shed.waiting, time.monotonic())
        if shed.of_tenant:
            message = "as many calls of this tenant wait for an endpoint as may"
            return ApiError("queue_full_for_tenant", message, retry_after_s=retry_after_s)
        message = "as many calls wait for an endpoint as may"
        return ApiError("overloaded", message, retry_after_s=retry_after_s)

    def _too_late(self, place: Place, now_s: float) -> ApiError:
        pool = self._fleet.pool(place.call.model)
        if all(member.out(now_s) for member in pool):
            return unserved([pool.decision(place.call, now_s, 0.0)])
        self.shed["waited_too_long"] += 1
        if now_s >= place.started_s + self._total_s:
            return ApiError(
                "call_timeout", "not done within the call's time, all of which it waited in the queue"
            )
        message = f"no endpoint could take the call within {now_s - place.started_s:.3g} s"
        retry_after_s = self.queue.retry_after_s(place.waiting, now_s)
        return ApiError("overloaded", message, retry_after_s=retry_after_s)


class Place:
    """One call's way in. Its block is entered, after waiting where it has to, with the plan by which it is sent.

    A flex call may be sent back while the block runs, which then ends as if nothing had happened, to be entered again.
    """

    def __init__(
        self,
        admission: Admission,
        plan: Plan,
        call: Call,
        arrival: Arrival,
        client: Client,
        meter: Meter,
        *,
        watched: bool,
    ) -> None:
        """`plan` is the call's plan of just now; `watched` where its first token will be seen."""
        self.call = call
        self._demands = call.demands
        self.started_s = arrival.started_s
        self.since_s = 0.0
        """When it began to wait."""
        self.turn: asyncio.Future[Plan]
        """Done when it can go, or has to."""
        self.waiting = Waiting(
            call.model,
            call.tier.name,
            call.tenant,
            serving_work(call.prompt_tokens, admission.output_tokens(call)),
            arrival.started_s + admission.patience_s(call),
        )
        self._admission = admission
        self._plan: Plan | None = plan
        """By which it may be sent at once."""
        self._client = client
        self._meter = meter
        self._watched = watched
        self._read_by_s = math.inf
        """Until when its prompt is expected to be read, where nothing is seen of that."""
        self._task: asyncio.Task[object] | None = None
        self._cancelled_before = 0
        self._is_sent_back = False
        self._times_sent_back = 0

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it is being tried."""
        return self._meter.endpoint

    def refuse(self, error: ApiError) -> None:
        """It waits in vain, unless its turn has come meanwhile or its client has left."""
        if not self.turn.done():
            self.turn.set_exception(error)

    def send_back(self) -> bool:
        """Take it from where it is being tried; False where it is in nobody's way any more, or could not wait."""
        if self._is_sent_back or self._task is None:
            return False
        if time.monotonic() >= min(self.waiting.until_s, self._read_by_s):
            return False
        self._is_sent_back = True
        self._task.cancel("it gives way to a call that is in more of a hurry")
        return True

    def again(self, tries: Tries) -> bool:
        """The call has no answer yet: whether its block is worth entering now, since somebody has room or soon will.

        Those at whom it has failed are not asked again; where nobody else is left, those are that only broke off.
        """
        left = tries.failed_at - tries.cut_at
        return self._without(tries.failed_at) or (left != tries.failed_at and self._without(left))

    def _without(self, names: frozenset[str]) -> bool:
        demands = structs.replace(self._demands, ignore=self._demands.ignore | names)
        self.call = structs.replace(self.call, demands=demands)
        self._plan = self._admission.plan(self)
        return bool(self._plan.ranked) or self._admission.worth_waiting(self._plan, self.call)

    async def __aenter__(self) -> Plan:
        admission, waiting = self._admission, self.waiting
        plan, self._plan = self._plan, None
        found = None if plan is None else admission.at_once(plan, self.call)
        if found is None:
            found = await self._wait()
        if waiting.tier == "flex" and self._times_sent_back < MOST_TIMES_SENT_BACK:
            self._task = asyncio.current_task()
            self._cancelled_before = 0 if self._task is None else self._task.cancelling()
            if not self._watched:
                self._read_by_s = time.monotonic() + found.ranked[0].estimate.ttft_s
            admission.may_be_sent_back[self] = None
        return found

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._admission.may_be_sent_back.pop(self, None)
        if not self._is_sent_back or self._task is None:
            return False
        self._is_sent_back = False
        # As asyncio's own timeouts do it: where somebody else has cancelled as well, the client say, that is what counts.
        if self._task.uncancel() > self._cancelled_before or not isinstance(error, asyncio.CancelledError):
            return False
        self._meter.given_up()
        self._times_sent_back += 1
        return True

    async def _wait(self) -> Plan:
        admission, client = self._admission, self._client
        if client.stopping:
            raise shutting_down()
        self.since_s = time.monotonic()
        self.turn = asyncio.get_running_loop().create_future()
        # One that is back keeps its place; one that was sent at once and refused has none yet.
        admission.enter(self, back=self._times_sent_back > 0 or self.waiting.charged > 0.0)
        client.queued = True
        try:
            return await self.turn
        finally:
            client.queued = False
            admission.leave(self.waiting)
            self._meter.queued(time.monotonic() - self.since_s)
