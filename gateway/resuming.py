"""Where a stream goes on that has broken, and how: from another plan, made as things are now, on an endpoint that can.

An answer goes on a few times at most, and is admitted like any call. Nobody who has failed for it is asked again, unless
nobody else is left, and where nobody can take it this moment it waits a little, since workers come back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from msgspec import structs

from backends.base import (
    AttemptFailed,
    CallRejected,
    CallTimeout,
    RunsSlowly,
    Unable,
)
from backends.continuation import first_block
from backends.exchange import Exchange
from backends.handover import CannotGoOn
from gateway.admission import Place
from gateway.broken import Broken, Move
from gateway.rest import Rest
from gateway.steps import Step, cause_of, kind_of
from gateway.traits import traits_of, traits_shown
from routing.hedging import SLOW_AFTER_S, Going, is_slow, left_tokens
from routing.resume import Way, goes_on, ways
from routing.types import Plan

if TYPE_CHECKING:
    from backends.fleet import Fleet
    from backends.member import Attempt
    from backends.said import Said
    from backends.sse import CompletionStream
    from gateway.admission import Admission
    from gateway.answer import Answer
    from gateway.catalog import Catalog
    from gateway.crashes import Crashes
    from gateway.lookout import Lookout
    from gateway.openai import Request
    from gateway.planning import Decided, Planner
    from gateway.serving import Serving
    from gateway.telemetry import Telemetry
    from routing.hedging import Refused
    from routing.types import Call, Candidate, Endpoint

WAIT_S = 10.0
"""How long an answer waits at most for somebody who can go on with it, where nobody can now."""

LOOK_S = 0.25
"""Between two looks then."""

TOKENIZE_S = 5.0
"""For a worker to say what tokens a prompt has, or what text some tokens are."""

SOON_S = 1.5
"""The same where somebody else could say it: nothing is computed for it, and the client has waited already."""

PATIENT_TTFT = 4.0
"""So many times its predicted time to first token has an endpoint that is to go on, where somebody else could."""

LEAST_PATIENCE_S = 2.0
"""And this long at least."""

MOST_MOVES = 2
"""Of one answer that runs slowly. Where it is slow again and again, it may be its own fault."""


class Resuming:
    """What all relays need to go on with their streams, and what has become of those that broke."""

    def __init__(
        self,
        catalog: Catalog,
        planner: Planner,
        admission: Admission,
        fleet: Fleet,
        crashes: Crashes,
        lookout: Lookout,
        telemetry: Telemetry,
    ) -> None:
        self.catalog = catalog
        self.planner = planner
        self.admission = admission
        self.fleet = fleet
        self.crashes = crashes
        self.lookout = lookout
        self.silence_s = fleet.settings.patience.silence_s
        """What no stream may keep."""
        self.telemetry = telemetry

    def takes_down(self, request: Request, endpoint: Endpoint) -> bool:
        """Whether what `endpoint` says is worth taking down, so that another one could go on with it."""
        return self.catalog.resume and request.choices == 1 and endpoint.weights is not None


class Resume:
    """The answer to one call, whenever it breaks."""

    def __init__(self, resuming: Resuming, serving: Serving, request: Request) -> None:
        """`request` is the call's as the worker was asked it: for a stream."""
        self._resuming = resuming
        self._request = request
        self._arrival = serving.arrival
        self._meter = serving.meter
        self._client = serving.client
        self._rest = Rest(resuming.catalog, resuming.fleet, request, serving.arrival)
        self._traits = traits_of(request)
        self._left = resuming.catalog.limits.attempts
        self._moves_left = MOST_MOVES
        self._paced = False
        """Whether its pace has been learned from."""
        self._is_suppressed = False
        """Whether it is slow and has stayed where it is."""
        self._failed_at: set[str] = set()
        """Endpoints that are not asked again, as long as there are others."""
        self._unable: set[str] = set()
        """Those that cannot go on with it, whatever comes."""
        self._call: Call | None = None
        """As it was when its answer began."""

    def ways(self, said: Said | None) -> tuple[Way, ...]:
        """How what has been said so far can be gone on with."""
        if said is None or self._left <= 0:
            return ()
        knows_ids = said.knows_ids and bool(said.ids)
        found = ways(self._traits | traits_shown(said), shown=said.shows_something, knows_ids=knows_ids)
        return tuple(way for way in found if way is not Way.RESTART)

    def has_somebody(self, said: Said | None, begun: Endpoint) -> bool:
        """Whether somebody could go on with it this moment."""
        found, now_s = self.ways(said), time.monotonic()
        return any(
            any(goes_on(way, begun, endpoint) for way in found)
            for endpoint, load in self._resuming.fleet.pool(begun.model).snapshot(now_s)
            if load.unavailable is None and endpoint.name != begun.name
        )

    async def go_on(
        self, answer: Answer, stream: CompletionStream, call: Call, failure: AttemptFailed
    ) -> None:
        """Have `answer` go on elsewhere, which has broken with `failure`. Raises that where nobody can, or ApiError."""
        begun, said = answer.endpoint, stream.said
        found = () if isinstance(failure, CallTimeout) else self.ways(said)
        outcome = "error"
        try:
            if said is None or not found:
                raise failure
            self._failed_at.add(begun.name)
            broken = Broken.now(stream, said, begun, failure, found)
            await self._crashed(failure, begun, broken)
            outcome = (await self._find(answer, broken, call)).name.lower()
        finally:
            self._counted(begun, failure, outcome)

    async def end(
        self, stream: CompletionStream, call: Call, failure: AttemptFailed, begun: Endpoint
    ) -> bytes | None:
        """The end of a stream that has broken with all the tokens written that it may have; None where it may have more."""
        said, rest = stream.said, self._rest
        if said is None or not rest.is_written(stream, begun):
            return None
        broken = Broken.now(stream, said, begun, failure, (Way.TOKENS,))
        unseen = await self._unseen(broken, call) if rest.has_stop_strings else ""
        if unseen is None:
            return None
        self._counted(begun, failure, "ended")
        block, self._meter.usage = rest.end(broken, unseen)
        return block

    async def _unseen(self, broken: Broken, call: Call) -> str | None:
        """What was held back for a stop string, as whoever could go on with it says; None where nobody does."""
        plan = self._resuming.planner.again(self._wanted(broken, call)).plan
        for candidate in plan.ranked:
            member = self._resuming.fleet.member(candidate.endpoint)
            try:
                unseen = await self._rest.unseen(member, broken, SOON_S)
            except (AttemptFailed, CallRejected, CannotGoOn):
                continue
            if unseen is not None:
                return unseen
        return None

    def _counted(self, begun: Endpoint, failure: AttemptFailed, outcome: str) -> None:
        self._resuming.telemetry.churn.resumed[begun.model, cause_of(failure), outcome] += 1

    def elsewhere(self, attempt: Attempt, stream: CompletionStream, now_s: float) -> Move | None:
        """Who should go on with a stream that runs far below its speed; None where it does not, or nobody should."""
        resuming, call, said, begun = self._resuming, attempt.call, stream.said, attempt.candidate
        itl_s, ran_s, tokens = begun.estimate.itl_s, attempt.wrote_s(now_s), max(0, stream.tokens - 1)
        if ran_s < SLOW_AFTER_S or said is None:
            return None
        pool = resuming.fleet.pool(call.model)
        pace = pool.hedging.pace
        if not self._paced:
            self._paced = True
            pace.saw(ran_s, itl_s * (tokens + 1))
        if self._moves_left <= 0 or not is_slow(ran_s, tokens, itl_s, pace.ratio):
            return None
        found = self.ways(said)
        wanted_at_all = resuming.lookout.moves and self._request.hedge and call.tier.name != "flex"
        if not (found and wanted_at_all):
            return None
        if resuming.admission.waiting:
            self._stays("queue", call)
            return None
        failure = RunsSlowly("it runs far below its speed")
        broken = Broken.now(stream, said, begun.endpoint, failure, found)
        wanted = self._wanted(broken, call, begun.endpoint.name)
        most = None if wanted.max_tokens is None else broken.tokens + wanted.max_tokens
        left = left_tokens(broken.tokens, pool.output_tokens(call.tenant), most)
        going = Going(ran_s, tokens, itl_s, left, pace.ratio)
        decided = resuming.planner.again(wanted)
        others = () if decided.plan.last_resort else decided.plan.ranked
        heir = pool.hedging.heir(going, begun, others, call)
        if isinstance(heir, str):
            self._stays(heir, call)
            return None
        self._moves_left -= 1
        return Move(broken, wanted, heir, decided)

    def _stays(self, why: Refused, call: Call) -> None:
        """It is slow, and stays where it is for now."""
        if not self._is_suppressed:
            self._is_suppressed = True
            self._resuming.telemetry.churn.not_moved[call.model, why] += 1

    async def move(self, answer: Answer, move: Move) -> bool:
        """Have `answer` go on there, if it can, and take it from whoever has it: until then that one keeps it."""
        before, broken = answer.attempt, move.broken
        step = self._stepped(broken, move.decided)
        step.taken, step.expected_nano_usd = (
            move.candidate.endpoint.name,
            move.candidate.estimate.cost_nano_usd,
        )
        step.outcome = "failed"
        try:
            way = await self._try(answer, broken, move.call, Plan((move.candidate,), ()))
            step.outcome = "failed" if way is None else way.name.lower()
        finally:
            self._counted(broken.begun, broken.failure, step.outcome)
        if way is None:
            return False
        before.end(broken.failure)
        return True

    def _stepped(self, broken: Broken, decided: Decided) -> Step:
        """A step is taken: what it leads to is to be noted in it."""
        failure = broken.failure
        step = Step(
            kind_of(failure), cause_of(failure), broken.begun.name, outcome="error", tokens=broken.tokens
        )
        self._meter.stepped(step)
        self._resuming.planner.stepped(self._arrival, self._request.model, decided, step)
        return step

    async def _find(self, answer: Answer, broken: Broken, call: Call) -> Way:
        """By which way it goes on. Raises the failure by which it broke where it does not."""
        until_s, asked = min(time.monotonic() + WAIT_S, self._ends_s), False
        while self._left > 0:
            wanted = self._wanted(broken, call)
            decided = self._resuming.planner.again(wanted)
            plan = decided.plan
            if plan.ranked:
                way = await self._by(decided, answer, broken, wanted)
                if way is not None:
                    return way
                asked = True
            elif plan.retry_after_s is None and not self._failed_at:
                break
            else:
                left_s = until_s - time.monotonic()
                if left_s <= 0.0:
                    break
                if asked or plan.retry_after_s is not None:
                    await asyncio.sleep(min(left_s, LOOK_S, max(0.01, plan.retry_after_s or LOOK_S)))
                if plan.retry_after_s is None:
                    self._failed_at.clear()  # nobody else is left, and it may be back
        if not asked:
            self._stepped(broken, decided)
        raise broken.failure

    async def _by(self, decided: Decided, answer: Answer, broken: Broken, call: Call) -> Way | None:
        """It goes on by this plan; None where all in it have failed."""
        step = self._stepped(broken, decided)
        step.outcome = "failed"
        way = await self._in_turn(answer, broken, call, decided.plan)
        if way is not None:
            candidate = answer.attempt.candidate
            step.outcome, step.taken = way.name.lower(), candidate.endpoint.name
            step.expected_nano_usd = candidate.estimate.cost_nano_usd
        return way

    async def _in_turn(self, answer: Answer, broken: Broken, call: Call, plan: Plan) -> Way | None:
        """It goes on by this plan, or waits for its turn as any call does; None where all in the plan have failed."""
        admission = self._resuming.admission
        if not (admission.waiting or admission.may_be_sent_back or call.tier.name == "flex"):
            return await self._try(answer, broken, call, plan)
        # It waits as a call does that comes now: what it came for has been begun in time.
        now = structs.replace(self._arrival, started_s=time.monotonic())
        place = Place(admission, plan, call, now, self._client, self._meter, watched=True)
        while True:
            async with place as found:
                return await self._try(answer, broken, call, found)

    async def _try(self, answer: Answer, broken: Broken, call: Call, plan: Plan) -> Way | None:
        alone = len(plan.ranked) == 1 and not isinstance(broken.failure, RunsSlowly)
        for candidate in plan.ranked:
            put_with = self._unable
            for way in broken.ways:
                if self._left <= 0 or not goes_on(way, broken.begun, candidate.endpoint):
                    continue
                try:
                    await self._begin(answer, broken, call, candidate, way, alone=alone)
                except CallTimeout:
                    raise
                except (CannotGoOn, CallRejected, Unable):
                    continue
                except AttemptFailed as failure:
                    self._left -= failure.sort.wastes is not None
                    put_with = self._failed_at
                    break
                if not isinstance(broken.failure, RunsSlowly):
                    self._left -= 1
                return way
            put_with.add(candidate.endpoint.name)
        return None

    async def _crashed(self, failure: AttemptFailed, endpoint: Endpoint, broken: Broken) -> None:
        """Raises ApiError where the call is what makes workers crash."""
        crashes = self._resuming.crashes
        crashes.saw(failure, endpoint, self._arrival, broken.tokens)
        await crashes.judge(failure, self._request, self._arrival)

    def _wanted(self, broken: Broken, call: Call, *beside: str) -> Call:
        """The call as routing is to see it now, without those named. `call` is what the last endpoint was asked."""
        self._call = call = self._call or call
        tokens = broken.tokens
        standings = self._resuming.fleet.pool(call.model)
        unable = {
            each.endpoint.name
            for each in standings
            if not any(goes_on(way, broken.begun, each.endpoint) for way in broken.ways)
        }
        ignore = call.demands.ignore.union(unable, self._unable, self._failed_at, beside)
        return structs.replace(
            call,
            prompt_tokens=call.prompt_tokens + tokens,
            max_tokens=None if call.max_tokens is None else max(1, call.max_tokens - tokens),
            demands=structs.replace(call.demands, ignore=ignore, max_ttft_s=None),
        )

    @property
    def _ends_s(self) -> float:
        return self._arrival.started_s + self._resuming.catalog.total_s

    async def _begin(
        self, answer: Answer, broken: Broken, call: Call, candidate: Candidate, way: Way, *, alone: bool
    ) -> None:
        """Have `answer` go on at this candidate. Raises AttemptFailed, CallRejected or CannotGoOn."""
        endpoint, member = candidate.endpoint, self._resuming.fleet.member(candidate.endpoint)
        if way is Way.TOKENS:
            patience_s = TOKENIZE_S if alone else SOON_S
            fields, seam = await self._rest.from_token(member, broken, patience_s)
        else:
            fields, seam = self._rest.from_text(broken)
        attempt, stream = self._rest.attempt(broken, call, candidate, fields, seam, way)
        if isinstance(attempt.reply, Exchange) and not alone:
            attempt.reply.hasten(max(LEAST_PATIENCE_S, PATIENT_TTFT * candidate.estimate.ttft_s))
        self._meter.asked(endpoint)
        try:
            await attempt.__aenter__()
            block, failure = await first_block(attempt, stream)
        except AttemptFailed as failed:
            self._meter.failed(endpoint, failed.sort.wastes)
            await self._crashed(failed, endpoint, broken)
            raise
        except CallRejected:
            self._meter.failed(endpoint)
            raise
        kept_tokens, again_tokens = seam.own_tokens - broken.own_tokens, broken.tokens - seam.own_tokens
        self._meter.continued(endpoint, stream, kept_tokens, again_tokens, broken.cause)
        answer.goes_on(attempt, stream, block, failure)
