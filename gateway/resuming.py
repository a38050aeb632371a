"""Where a stream goes on that has broken, and how: from another plan, made as things are now, on an endpoint that can.

An answer goes on a few times at most, and is admitted like any call. Nobody who has failed for it is asked again, unless
nobody else is left, and where nobody can take it this moment it waits a little, since workers come back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from backends import handover
from backends.base import (
    AttemptFailed,
    CallRejected,
    CallTimeout,
    RunsSlowly,
    Unable,
)
from backends.continuation import Continued, Seam, first_block
from backends.exchange import Exchange
from backends.handover import CannotGoOn
from backends.said import crc_of
from backends.sse import Shown
from backends.stops import Stops
from backends.tokens import prompt_tokens, text_of
from backends.worker import Outgoing
from gateway.admission import Place
from gateway.broken import Broken, Move
from gateway.traits import shows_ids, traits_of, traits_shown
from routing.hedging import SLOW_AFTER_S, Going, better, is_slow, left_tokens, within_cap
from routing.resume import Way, goes_on, ways
from routing.types import Plan

if TYPE_CHECKING:
    from collections import Counter

    from backends.fleet import Fleet
    from backends.handover import Fields
    from backends.member import Attempt, Member
    from backends.said import Said
    from backends.sse import CompletionStream
    from gateway.admission import Admission
    from gateway.answer import Answer
    from gateway.catalog import Catalog
    from gateway.crashes import Crashes
    from gateway.lookout import Lookout
    from gateway.openai import Request
    from gateway.planning import Planner
    from gateway.serving import Serving
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

_API_PATHS = {"chat": "/chat/completions", "completions": "/completions"}


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
        ended: Counter[tuple[str, str, str]],
    ) -> None:
        """`ended` counts streams that broke, by model, cause, and how they went on, or `error`."""
        self.catalog = catalog
        self.planner = planner
        self.admission = admission
        self.fleet = fleet
        self.crashes = crashes
        self.lookout = lookout
        self.silence_s = fleet.settings.patience.silence_s
        """What no stream may keep."""
        self.ended = ended

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
        self._chat = request.api == "chat"
        self._traits = traits_of(request)
        self._left = resuming.catalog.limits.attempts
        self._moves_left = MOST_MOVES
        self._paced = False
        """Whether its pace has been learned from."""
        self._failed_at: set[str] = set()
        """Endpoints that are not asked again, as long as there are others."""
        self._unable: set[str] = set()
        """Those that cannot go on with it, whatever comes."""

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
            self._resuming.ended[begun.model, failure.code, outcome] += 1

    def elsewhere(self, attempt: Attempt, stream: CompletionStream, now_s: float) -> Move | None:
        """Who should go on with a stream that runs far below its speed; None where it does not, or nobody should."""
        resuming, call, said, begun = self._resuming, attempt.call, stream.said, attempt.candidate
        itl_s, ran_s, tokens = begun.estimate.itl_s, attempt.ran_s(now_s), max(0, stream.tokens - 1)
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
        if not (found and wanted_at_all) or resuming.admission.waiting:
            return None
        failure = RunsSlowly("it runs far below its speed")
        broken = Broken.now(stream, said, begun.endpoint, failure, found)
        wanted = self._wanted(broken, call, begun.endpoint.name)
        most = None if wanted.max_tokens is None else broken.tokens + wanted.max_tokens
        left = left_tokens(broken.tokens, pool.output_tokens(call.tenant), most)
        others = pool.plan(wanted, now_s, 0.0).ranked
        candidate = better(Going(ran_s, tokens, itl_s, left, pace.ratio), others, call.tier)
        most_pico_usd = call.demands.max_input_pico_usd
        if (
            candidate is None
            or not within_cap(begun, candidate, most_pico_usd)
            or not pool.hedging.moves.spend()
        ):
            return None
        self._moves_left -= 1
        return Move(broken, wanted, candidate)

    async def move(self, answer: Answer, move: Move) -> bool:
        """Have `answer` go on there, if it can, and take it from whoever has it: until then that one keeps it."""
        before, broken = answer.attempt, move.broken
        plan = Plan((move.candidate,), ())
        way = await self._try(answer, broken, move.call, plan)
        if way is None:
            return False
        self._resuming.ended[broken.begun.model, broken.failure.code, way.name.lower()] += 1
        before.end(broken.failure)
        return True

    async def _find(self, answer: Answer, broken: Broken, call: Call) -> Way:
        """By which way it goes on. Raises the failure by which it broke where it does not."""
        until_s, asked = min(time.monotonic() + WAIT_S, self._ends_s), False
        while self._left > 0:
            wanted = self._wanted(broken, call)
            plan = self._resuming.planner.plan(wanted, self._request.model, self._arrival)
            if plan.ranked:
                way = await self._in_turn(answer, broken, wanted, plan)
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
        raise broken.failure

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
        """The call as routing is to see it now, without those named."""
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
            fields, seam = await self._from_token(member, broken, TOKENIZE_S if alone else SOON_S)
        else:
            fields, seam = await self._from_text(broken)
        attempt, stream = self._attempt(broken, call, candidate, fields, seam, way)
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

    def _attempt(
        self, broken: Broken, call: Call, candidate: Candidate, fields: Fields, seam: Seam, way: Way
    ) -> tuple[Attempt, Continued]:
        """What asks the candidate for the rest, and what reads it."""
        api = "completions" if seam.by_ids else self._request.api
        request = structs.replace(self._request, api=api, fields=fields)
        endpoint, traced = candidate.endpoint, self._arrival.traced
        watch = None if traced is None else traced.attempt(endpoint, way)
        outgoing = Outgoing(
            api=_API_PATHS[request.api],
            body=request.body_for(
                endpoint.served_model,
                worker=endpoint.kind == "worker",
                ids=seam.by_ids or shows_ids(self._request),
            ),
            request_id=self._arrival.request_id,
            stream=True,
            ends_s=self._ends_s,
            trace=self._arrival.trace if watch is None else watch.lines,
            watch=watch,
        )
        shown = Shown(
            endpoint.model,
            request.tier if request.tier_asked else None,
            usage=request.shows_usage,
            ids=shows_ids(self._request),
        )
        stream = Continued(shown, self._resuming.catalog.limits.event_bytes, broken.said, seam)
        return self._resuming.fleet.attempt(candidate, outgoing, call), stream

    async def _from_token(self, member: Member, broken: Broken, patience_s: float) -> tuple[Fields, Seam]:
        fields, said, chat = self._request.fields, broken.said, self._chat
        strings, context_tokens = handover.stop_strings(fields), 0
        prompt = None if chat else handover.given_ids(fields)
        if prompt is None:
            body = handover.prompt_request(fields, chat=chat, served_model=member.endpoint.served_model)
            told = await prompt_tokens(member, body, patience_s)
            prompt, context_tokens = told.tokens, told.max_model_len
            if said.prompt_tokens is not None and crc_of(msgspec.json.encode(prompt)) != said.prompt_crc:
                raise CannotGoOn("the prompt is other tokens there")
        ids, text = await text_of(member, said.token_ids() if strings else said.settled_ids(), patience_s)
        shown, held = said.text.decode(errors="replace"), ""
        if strings:
            unseen = handover.beyond(shown, text)
            if unseen is None:
                raise CannotGoOn("what has been held back for a stop string is not known")
            held = unseen
        goes_on_with = handover.from_token(
            fields, chat=chat, prompt=prompt, ids=ids, context_tokens=context_tokens
        )
        seam = self._seam(broken, len(ids), shown, held)
        return goes_on_with, structs.replace(
            seam,
            by_ids=True,
            prompt_tokens=len(prompt),
            estimated=False,
            told_again=max(said.tokens, said.told) - len(ids),
        )

    async def _from_text(self, broken: Broken) -> tuple[Fields, Seam]:
        said, tokens = broken.said, broken.tokens
        text = said.text.decode(errors="replace")
        fields = handover.from_text(self._request.fields, chat=self._chat, text=text, tokens=tokens)
        return fields, self._seam(broken, tokens, text, "")

    def _seam(self, broken: Broken, own_tokens: int, shown: str, held: str) -> Seam:
        fields, known = self._request.fields, broken.said.prompt_tokens
        strings, include = handover.stop_strings(fields), handover.shows_stop_string(fields)
        return Seam(
            chat=self._chat,
            own_tokens=own_tokens,
            by_ids=False,
            prompt_tokens=self._request.prompt_tokens if known is None else known,
            cached_tokens=broken.stream.prompt_cached,
            estimated=known is None,
            stops=Stops(strings, shown, held, include=include) if strings else None,
            top_logprobs=handover.count_in(fields, "top_logprobs"),
            min_tokens=handover.count_in(fields, "min_tokens"),
        )
