"""The story of one call: plan, attempts in the order of the plan until one answers, relay, account.

The loop over attempts has its answer before the first byte goes to the client, so a retry after it cannot happen by
accident.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from backends.base import AttemptFailed, CallRejected, CallTimeout, Unable
from backends.holding import HoldingStream
from backends.said import Said
from backends.sse import DONE, CompletionStream, Shown
from backends.usage import WholeReply, whole_reply
from backends.worker import Outgoing
from gateway.admission import Place
from gateway.answer import Answer
from gateway.crashes import Crashes
from gateway.errors import ApiError, from_failure, from_rejection, shutting_down, unserved
from gateway.explain import plan_line
from gateway.lookout import Lookout
from gateway.relay import Relay
from gateway.resuming import Resuming
from gateway.serving import Serving
from gateway.steps import rare_lines
from gateway.traits import shows_ids
from gateway.tries import Tries
from gateway.whole import Making, as_stream, streamed

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from backends.fleet import Fleet
    from backends.member import Attempt
    from gateway.admission import Admission
    from gateway.arrival import Arrival
    from gateway.catalog import Catalog, Model, Offer
    from gateway.client import Client
    from gateway.journal import Journal
    from gateway.ledger import UsageRow
    from gateway.meter import Meter
    from gateway.open_calls import OpenCalls
    from gateway.openai import Request
    from gateway.planning import Planner
    from gateway.race import Races
    from gateway.telemetry import Telemetry
    from gateway.watch import Watch
    from routing.types import Call, Candidate, Endpoint, Plan

_API_PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}


class _Unanswered(NamedTuple):
    """A model that a call has no answer of yet."""

    model: Model
    place: Place
    tries: Tries


class Books(NamedTuple):
    """Where calls are written down: when they have ended, while they run, and for those who look."""

    journal: Journal
    open_calls: OpenCalls
    watch: Watch


class Dispatch:
    def __init__(
        self,
        catalog: Catalog,
        planner: Planner,
        admission: Admission,
        fleet: Fleet,
        books: Books,
        telemetry: Telemetry,
        races: Races,
    ) -> None:
        self._catalog = catalog
        self._planner = planner
        self._admission = admission
        self._fleet = fleet
        self._journal, self._open_calls, self._watch = books
        self._telemetry = telemetry
        self._races = races
        self._crashes = Crashes(fleet)
        self._lookout = Lookout(fleet, admission, moves=races.hedge)
        self._resuming = Resuming(catalog, planner, admission, fleet, self._crashes, self._lookout, telemetry)

    async def serve(self, request: Request, offer: Offer, arrival: Arrival, client: Client) -> None:
        """Answer one call. Raises ApiError as long as the client has got nothing."""
        record = self._record if arrival.traced is None else arrival.traced.noting(self._record)
        with self._watch.meter(arrival, request, offer.models[0], record) as meter:
            try:
                self._crashes.refuse(request, arrival)
                await self._served(Serving(request, offer, arrival, client, meter))
                self._crashes.answered(request, arrival)
            except CallRejected as rejected:
                raise from_rejection(rejected) from rejected
            except ApiError as error:
                _end(error, client, meter)
            except AttemptFailed as failure:
                _end(from_failure(failure, meter.attempts), client, meter)
            except asyncio.CancelledError:
                if client.gone:
                    if client.overdue:
                        meter.settle(CallTimeout.sort.code)
                    raise
                if not client.started:
                    meter.given_up()
                _end(shutting_down(), client, meter)

    async def _served(self, serving: Serving) -> None:
        """Answer it. Where an answer breaks off of which the client has seen nothing, it is begun anew."""
        tries = self._catalog.limits.attempts
        while True:
            tries -= 1
            answer = await self._answer(serving)
            try:
                with answer:
                    if answer.whole is not None:
                        self._relay_whole(answer, answer.whole, serving)
                    elif answer.stream is not None:
                        relay = self._relay_stream if serving.request.stream else self._relay_made
                        await relay(answer, answer.stream, serving)
            except AttemptFailed as failure:
                if serving.client.started:
                    raise
                serving.meter.failed(answer.endpoint, failure.sort.wastes)
                if tries <= 0 or isinstance(failure, CallTimeout):
                    raise
            else:
                return

    async def _answer(self, serving: Serving) -> Answer:
        """The answer of the first model on offer that gives one: a second is there only where a name has fallbacks.

        Where nobody has room, the call waits. Raises ApiError where nobody could be asked, else CallRejected or what the
        last attempt failed with.
        """
        request, offer, arrival, client, meter = structs.astuple(serving)
        lines, unanswered, failed, admission = client.lines, [], None, self._admission
        for model in offer.models:
            meter.model = model
            call = self._planner.call(request, model, offer.tier, arrival.caller.tenant)
            plan = self._planner.plan(call, request.model, arrival)
            if request.explain:
                client.lines = lines + plan_line(plan)
            tries, place = Tries(self._catalog.limits.attempts), None
            if plan.ranked:
                try:
                    if admission.waiting or admission.may_be_sent_back or request.tier == "flex":
                        place = Place(admission, plan, call, arrival, client, meter, watched=request.stream)
                        return await self._answer_in_turn(place, tries, serving)
                    return await self._first_answer(plan, call, tries, serving)
                except CallTimeout:
                    raise
                except AttemptFailed as failure:
                    failed = failure
            if place is None:
                place = Place(admission, plan, call, arrival, client, meter, watched=request.stream)
            unanswered.append(_Unanswered(model, place, tries))
        if failed is None:
            decisions = self._planner.decisions(request, offer, arrival.caller.tenant)
            error = unserved(decisions, arrival.caller.policy)
            if error.code == "demands_not_met":
                raise error
        return await self._answer_later(unanswered, failed or error, serving)

    async def _answer_later(
        self, unanswered: list[_Unanswered], error: Exception, serving: Serving
    ) -> Answer:
        """The answer to a call that had none, since nobody had room: it waits as one does that comes a moment later, and
        is tried again, no more often than `limits.attempts`.

        Raises `error` where nobody is worth waiting for, else what it has failed with in the end.
        """
        for _ in range(self._catalog.limits.attempts):
            may_wait = (each for each in unanswered if each.tries.left and each.place.again(each.tries))
            found = next(may_wait, None)
            if found is None:
                break
            serving.meter.model, place, tries = found
            try:
                return await self._answer_in_turn(place, tries, serving)
            except CallTimeout:
                raise
            except AttemptFailed as failure:
                error = failure
        raise error

    async def _answer_in_turn(self, place: Place, tries: Tries, serving: Serving) -> Answer:
        """The first answer of a call that may have to wait for its turn, and if it is flex, to give it up again."""
        while True:
            async with place as plan:
                return await self._first_answer(plan, place.call, tries, serving)

    async def _first_answer(self, plan: Plan, call: Call, tries: Tries, serving: Serving) -> Answer:
        """The answer of the first endpoint in the plan that gives one.

        Raises CallRejected, or what the last attempt failed with.
        """

        def ask(candidate: Candidate) -> Coroutine[Any, Any, Answer]:
            return self._ask(serving, call, tries, asked, candidate)

        request, meter = serving.request, serving.meter
        tried: list[Endpoint] = []
        asked = as_stream(request, plan, call, self._admission.output_tokens, again=tries.in_vain)
        answer_of = self._races.racing(call, asked, meter, ask, tried)
        for candidate in plan.ranked:
            if candidate.endpoint in tried or (
                tries.last is not None and tries.too_short(candidate.endpoint)
            ):
                continue
            try:
                answer = await answer_of(candidate)
            except AttemptFailed as failure:
                if failure.sort.then == "return":
                    raise
                await self._crashes.judge(failure, request, serving.arrival)
                if tries.left == 0:
                    break
                asked = as_stream(request, plan, call, self._admission.output_tokens, again=tries.in_vain)
            else:
                meter.answered(answer.endpoint, answer.stream)
                if self._admission.waiting:
                    self._admission.look()
                return answer
        if tries.last is None:
            raise AttemptFailed("the plan names no endpoint")
        raise tries.last.rejected if isinstance(tries.last, Unable) else tries.last

    async def _ask(
        self, serving: Serving, call: Call, tries: Tries, asked: Request, candidate: Candidate
    ) -> Answer:
        """The candidate's answer, inside whose block its attempt stays open; where there is none, it has ended here."""
        endpoint, meter, arrival = candidate.endpoint, serving.meter, serving.arrival
        lookout = self._lookout
        # Only a worker's reply is known to be the same in pieces.
        request = asked if endpoint.kind == "worker" else serving.request
        meter.asked(endpoint)
        try:
            attempt = self._fleet.attempt(candidate, self._outgoing(request, endpoint, arrival), call)
            attempt.begin()
            lookout.silent[attempt] = tries
            try:
                if not lookout.ticking:
                    lookout.begin()
                await attempt.reply.__aenter__()
                if request.stream:
                    return await self._begun(attempt, request, meter)
                body = await attempt.reply.read_whole(self._catalog.limits.reply_bytes)
                lookout.came(attempt)
                return Answer(attempt, _whole(body, request, endpoint))
            except BaseException as error:
                attempt.end(error)
                raise
            finally:
                del lookout.silent[attempt]
        except CallRejected:
            meter.failed(endpoint)
            raise
        except AttemptFailed as failure:
            meter.failed(endpoint, failure.sort.wastes)
            tries.failed(endpoint, failure)
            self._crashes.saw(failure, endpoint, arrival)
            raise

    def _outgoing(self, request: Request, endpoint: Endpoint, arrival: Arrival) -> Outgoing:
        """A worker is asked for the ids of tokens where they may be needed to go on elsewhere."""
        worker = endpoint.kind == "worker"
        ids = worker and request.stream and self._resuming.takes_down(request, endpoint)
        watch = None if arrival.traced is None else arrival.traced.attempt(endpoint)
        return Outgoing(
            _API_PATHS[request.api],
            request.body_for(endpoint.served_model, worker=worker, ids=ids),
            arrival.request_id,
            request.stream,
            arrival.started_s + self._catalog.total_s,
            arrival.trace if watch is None else watch.lines,
            watch,
        )

    async def _begun(self, attempt: Attempt, request: Request, meter: Meter) -> Answer:
        """A stream up to and with the first chunk that shows something."""
        endpoint = attempt.candidate.endpoint
        tier = request.tier if request.tier_asked else None
        shown = Shown(
            endpoint.model,
            tier,
            usage=request.shows_usage,
            choices=request.choices,
            ids=shows_ids(request),
        )
        said = Said() if self._resuming.takes_down(request, endpoint) else None
        limit_bytes = self._catalog.limits.event_bytes
        if said is None or "tools" not in request.fields:
            stream = CompletionStream(shown, limit_bytes, said)
        else:
            stream = HoldingStream(shown, limit_bytes, said)
        block = b""
        while not stream.answers:
            raw = await attempt.reply.read()
            if not raw:
                break
            block += stream.feed(raw)
            if stream.holds:
                attempt.first_token()
                meter.speaks = True
        if stream.done or not stream.tokens:
            stream.end()
        attempt.first_token()
        return Answer(attempt, None, stream, block)

    def _relay_whole(self, answer: Answer, whole: WholeReply, serving: Serving) -> None:
        serving.meter.usage = whole.usage
        answer.attempt.used(whole.usage)
        self._reply(answer, whole, serving)

    def _reply(self, answer: Answer, whole: WholeReply, serving: Serving) -> None:
        meter = serving.meter
        lines = self._header_lines(answer, meter, b"application/json")
        meter.status = 200
        meter.settle("ok")
        cost_usd = divmod(meter.charge_nano_usd, 1_000_000_000)
        serving.client.reply(200, b"%bx-tidegate-cost-usd: %d.%09d\r\n" % (lines, *cost_usd), whole.body)

    async def _relay_stream(self, answer: Answer, stream: CompletionStream, serving: Serving) -> None:
        client, meter = serving.client, serving.meter
        meter.status = 200
        meter.note(self._open_calls)
        client.start(200, self._header_lines(answer, meter, b"text/event-stream; charset=utf-8"))
        last_block = await Relay(self._resuming, serving, serving.request).run(answer, stream, client)
        meter.settle("ok")
        client.finish(last_block + DONE)
        await answer.drain()

    async def _relay_made(self, answer: Answer, stream: CompletionStream, serving: Serving) -> None:
        """The whole reply that is made of a stream."""
        request = serving.request
        making = Making(request, self._catalog.limits.reply_bytes)
        making.write(await Relay(self._resuming, serving, streamed(request)).run(answer, stream, making))
        self._reply(answer, making.reply(answer.endpoint.model), serving)
        await answer.drain()

    def _header_lines(self, answer: Answer, meter: Meter, content_type: bytes) -> bytes:
        overhead_s = meter.overhead_s
        self._telemetry.overhead_s.add(overhead_s)
        rare = rare_lines(meter) if meter.queued_s or meter.steps else b""
        return (
            b"content-type: %b\r\nx-tidegate-model: %b\r\nx-tidegate-endpoint: %b\r\nx-tidegate-tier: %b\r\n"
            b"x-tidegate-attempts: %d\r\nx-tidegate-hedged: %b\r\nx-tidegate-overhead-ms: %.3f\r\n%b"
        ) % (
            content_type,
            meter.model.name.encode(),
            answer.attempt.member.header_name,
            meter.tier.encode(),
            meter.attempts,
            b"true" if meter.hedged else b"false",
            overhead_s * 1000,
            rare,
        )

    def _record(self, row: UsageRow) -> None:
        self._journal.append(row)
        self._telemetry.ended(row)
        self._planner.ended(row)
        if self._admission.waiting:
            self._admission.look()


def _whole(body: bytes, request: Request, endpoint: Endpoint) -> WholeReply:
    tier = request.tier if request.tier_asked else None
    return whole_reply(body, endpoint.model, tier, None if request.api == "embeddings" else request.choices)


def _end(error: ApiError, client: Client, meter: Meter) -> None:
    """Tell the client in its stream, or raise the error where nothing has gone out."""
    if not client.started:
        raise error
    meter.settle(error.code)
    if error.code == "call_timeout" and client.full:
        client.cut_off()  # it is the client that was slow
    else:
        client.fail(error)
