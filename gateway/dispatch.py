"""The story of one call: plan, attempts in the order of the plan until one answers, relay, account.

The loop over attempts has its answer before the first byte goes to the client, so a retry after it cannot happen by
accident.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

from backends.base import AttemptFailed, CallRejected, CallTimeout, ConnectFailed, LaneFull, Overloaded
from backends.sse import DONE, CompletionStream, Shown
from backends.usage import WholeReply, whole_reply
from backends.worker import Outgoing
from gateway.errors import ApiError, from_failure, from_rejection
from gateway.meter import Arrival, Meter
from routing.estimate import MEAN_OUTPUT_TOKENS, prefill_work
from routing.pipeline import plan as make_plan
from routing.types import Call, Plan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.fleet import Attempt, Fleet
    from gateway.catalog import Catalog, Model
    from gateway.client import Client, Headers
    from gateway.journal import Journal
    from gateway.ledger import UsageRow
    from gateway.openai import Request
    from gateway.telemetry import Telemetry

_API_PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
_NO_WORK_DONE = (ConnectFailed, LaneFull, Overloaded)
"""Failures that cost the pool nothing: they do not count towards the limit on attempts."""
_OUTPUT_WEIGHT = 0.02
"""Of the newest call in the running mean of a model's output tokens: about the last fifty calls count."""


class Answer(Struct, frozen=True, gc=False):
    """What the first endpoint to answer has sent so far: a whole reply, or a stream that has begun."""

    attempt: Attempt
    whole: WholeReply | None = None
    stream: CompletionStream | None = None
    first_block: bytes = b""


class Dispatch:
    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        journal: Journal,
        telemetry: Telemetry,
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._journal = journal
        self._telemetry = telemetry
        self._output_tokens = dict.fromkeys(catalog.models, MEAN_OUTPUT_TOKENS)

    async def serve(self, request: Request, model: Model, arrival: Arrival, client: Client) -> None:
        """Answer one call. Raises ApiError as long as the client has got nothing."""
        with Meter(arrival, request, model, self._record) as meter:
            plan = self._plan(request, model)
            try:
                async with self._first_answer(plan, request, arrival, meter) as answer:
                    if answer.whole is not None:
                        await self._relay_whole(answer, answer.whole, client, meter)
                    elif answer.stream is not None:
                        await self._relay_stream(answer, answer.stream, client, meter)
            except CallRejected as rejected:
                raise from_rejection(rejected) from rejected
            except AttemptFailed as failure:
                error = from_failure(failure, meter.attempts)
                if not client.begun:
                    raise error from failure
                meter.settle(failure.code)
                await client.end_with(error)

    def _plan(self, request: Request, model: Model) -> Plan:
        call = Call(
            model=model.name,
            tier=self._catalog.tiers[request.tier],
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            needs=request.needs,
            demands=request.demands,
        )
        roll = random.random()  # noqa: S311 - settles ties
        plan = make_plan(call, self._fleet.snapshot(model.name), roll, self._output_tokens[model.name])
        if not plan.ranked:
            raise _nobody(plan, model.name)
        return plan

    @asynccontextmanager
    async def _first_answer(
        self, plan: Plan, request: Request, arrival: Arrival, meter: Meter
    ) -> AsyncIterator[Answer]:
        """The answer of the first endpoint in the plan that gives one; closed when the block is left.

        Raises CallRejected, or what the last attempt failed with.
        """
        work = prefill_work(request.prompt_tokens)
        tries_left = self._catalog.limits.attempts
        last: AttemptFailed | None = None
        for candidate in plan.ranked:
            endpoint, answered = candidate.endpoint, False
            outgoing = Outgoing(
                api=_API_PATHS[request.api],
                body=request.body_for(endpoint.served_model),
                request_id=arrival.request_id,
                stream=request.stream,
                ends_s=arrival.started_s + self._catalog.total_s,
                trace=arrival.trace,
            )
            meter.asked(endpoint)
            try:
                async with self._fleet.member(endpoint).attempt(outgoing, work) as attempt:
                    answer = await self._read(attempt, request, endpoint.model)
                    answered = True
                    meter.answered(answer.stream)
                    yield answer
            except CallRejected:
                self._telemetry.attempted(endpoint, "rejected")
                meter.failed()
                raise
            except AttemptFailed as failure:
                self._telemetry.attempted(endpoint, failure.code)
                if answered:
                    raise
                meter.failed()
                if isinstance(failure, CallTimeout):
                    raise
                last = failure
                tries_left -= not isinstance(failure, _NO_WORK_DONE)
                if tries_left == 0:
                    break
            else:
                self._telemetry.attempted(endpoint, "ok")
                return
        if last is not None:
            raise last

    async def _read(self, attempt: Attempt, request: Request, model: str) -> Answer:
        """A whole reply, or a stream up to and with its first chunk."""
        tier = request.tier if request.tier_asked else None
        if not request.stream:
            body = await attempt.reply.read_whole(self._catalog.limits.reply_bytes)
            choices = None if request.api == "embeddings" else request.choices
            whole = whole_reply(body, model, tier, choices)
            return Answer(attempt, whole)
        shown = Shown(model, tier, usage=request.shows_usage, choices=request.choices)
        stream = CompletionStream(shown, self._catalog.limits.event_bytes)
        block = b""
        while not stream.begun:
            raw = await attempt.reply.read()
            if not raw:
                break
            block += stream.feed(raw)
        if stream.done or not stream.begun:
            stream.end()
        attempt.first_token()
        return Answer(attempt, None, stream, block)

    async def _relay_whole(self, answer: Answer, whole: WholeReply, client: Client, meter: Meter) -> None:
        meter.usage = whole.usage
        headers = self._headers(answer, meter, b"application/json")
        charge = meter.charge_nano_usd()
        headers.append((b"x-tidegate-cost-usd", b"%d.%09d" % divmod(charge, 1_000_000_000)))
        meter.status = 200
        meter.settle("ok")
        await client.reply(200, headers, whole.body)

    async def _relay_stream(
        self, answer: Answer, stream: CompletionStream, client: Client, meter: Meter
    ) -> None:
        attempt, block = answer.attempt, answer.first_block
        meter.status = 200
        await client.start(200, self._headers(answer, meter, b"text/event-stream; charset=utf-8"))
        try:
            while not (stream.done and stream.finished):
                if block:
                    await client.send(block)
                raw = await attempt.reply.read()
                if not raw:
                    block = b""
                    break
                block = stream.feed(raw)
            stream.end()
        finally:
            attempt.completion_tokens = stream.tokens
        meter.settle("ok")
        await client.finish(block + DONE)
        await attempt.reply.drain()

    def _headers(self, answer: Answer, meter: Meter, content_type: bytes) -> Headers:
        overhead_s = meter.overhead_s
        self._telemetry.overhead_s.add(overhead_s)
        return [
            (b"content-type", content_type),
            (b"x-tidegate-endpoint", answer.attempt.member.header_name),
            (b"x-tidegate-tier", meter.tier.encode()),
            (b"x-tidegate-attempts", b"%d" % meter.attempts),
            (b"x-tidegate-hedged", b"false"),
            (b"x-tidegate-overhead-ms", b"%.3f" % (overhead_s * 1000)),
        ]

    def _record(self, row: UsageRow) -> None:
        self._journal.append(row)
        self._telemetry.ended(row)
        if row.outcome == "ok" and row.completion_tokens:
            mean = self._output_tokens[row.model]
            self._output_tokens[row.model] = mean + _OUTPUT_WEIGHT * (row.completion_tokens - mean)


def _nobody(plan: Plan, model: str) -> ApiError:
    """Why no endpoint can take the call: for now, or ever."""
    reasons = "; ".join(f"{rejection.endpoint.name}: {rejection.reason}" for rejection in plan.rejected[:20])
    retry_after_s = plan.retry_after_s
    if retry_after_s is None:
        return ApiError("demands_not_met", f"No endpoint of {model} can serve this call. {reasons}")
    message = f"No endpoint of {model} can serve a call right now. {reasons}"
    return ApiError("no_endpoint_available", message, retry_after_s=retry_after_s)
