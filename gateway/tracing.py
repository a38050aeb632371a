"""Traces of calls: a span for the call, one below it for every attempt, with what was planned and what became of it.

Whether a call is traced is settled at its start, by its client's trace context or by one throw of dice; one that is not
costs nothing after that. Of one that is, the endpoint gets the attempt's span as its parent.

Names are OpenTelemetry's GenAI conventions in one of two generations, beside `tidegate.*` for what they have no word for.
Nothing that anybody wrote is in a span: neither prompts nor answers nor keys.

Imported only where traces are switched on: OpenTelemetry takes half a second to load.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from backends.base import AttemptFailed, CallRejected, Unable
from gateway.gen_ai import operation_of, provider_of
from gateway.race import OUTRUN
from gateway.trace_context import parent_of, state_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

    from backends.member import Attempt
    from gateway.client import Client
    from gateway.gen_ai import Semconv
    from gateway.ledger import UsageRow
    from gateway.openai import Request
    from routing.resume import Way
    from routing.types import Endpoint, Plan

MOST_NAMED = 16
"""Endpoints of a plan that its event names."""


class Tracing:
    """Says which calls are traced, and begins their traces."""

    def __init__(self, tracer: Tracer, semconv: Semconv, sample: float, *, follow_clients: bool) -> None:
        self.tracer = tracer
        self.latest = semconv == "latest"
        self._sample = sample
        self._follow_clients = follow_clients

    def begin(self, request: Request, client: Client) -> CallTrace | None:
        """The trace of a call that has come, if it is to be traced."""
        parent = parent_of(client.headers) if b"traceparent" in client.headers else None
        if parent is None or not self._follow_clients:
            if random.random() >= self._sample:  # noqa: S311 - no secret
                return None
        elif not parent.sampled:
            return None
        context, line = Context(), b""
        if parent is not None:
            line = state_line(client.headers)
            state = TraceState.from_header([line[12:-2].decode()]) if line else None
            flags = TraceFlags(TraceFlags.SAMPLED)
            above = SpanContext(
                parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags, trace_state=state
            )
            context = set_span_in_context(NonRecordingSpan(above), context)
        return CallTrace(self, request, client, context, line)


class CallTrace:
    """The trace of one call."""

    __slots__ = ("_below", "_request", "_row", "_span", "_state_line", "_tracing", "under_way")

    def __init__(
        self, tracing: Tracing, request: Request, client: Client, context: Context, line: bytes
    ) -> None:
        self._tracing = tracing
        self._request = request
        self._state_line = line
        self._row: UsageRow | None = None
        self.under_way = 0
        """Attempts that have begun and not ended."""
        path = client.target.partition(b"?")[0].decode("latin-1")
        self._span = tracing.tracer.start_span(
            f"POST {path}",
            context,
            SpanKind.SERVER,
            {
                "http.request.method": "POST",
                "http.route": path,
                "url.path": path,
                "url.scheme": "http",
                **asked(request, request.model, latest=tracing.latest),
            },
        )
        self._below = set_span_in_context(self._span, Context())

    @property
    def latest(self) -> bool:
        """Whether the newer names are used."""
        return self._tracing.latest

    def planned(self, plan: Plan) -> None:
        """So it is to be tried."""
        ranked, rejected = plan.ranked[:MOST_NAMED], plan.rejected[:MOST_NAMED]
        self._span.add_event(
            "tidegate.plan",
            {
                "tidegate.plan.ranked": [each.endpoint.name for each in ranked],
                "tidegate.plan.ranked_count": len(plan.ranked),
                "tidegate.plan.rejected": [f"{each.endpoint.name}: {each.filter}" for each in rejected],
                "tidegate.plan.rejected_count": len(plan.rejected),
            },
        )

    def attempt(self, endpoint: Endpoint, goes_on: Way | None = None) -> AttemptSpan:
        """One attempt; where it is to go on with an answer that has begun elsewhere, `goes_on` says how."""
        tracing = self._tracing
        url = urlsplit(endpoint.url)
        attributes: dict[str, AttributeValue] = {
            **asked(self._request, endpoint.served_model, latest=tracing.latest),
            "gen_ai.provider.name" if tracing.latest else "gen_ai.system": provider_of(endpoint),
            "tidegate.endpoint": endpoint.name,
            "tidegate.model": endpoint.model,
        }
        if url.hostname:
            attributes["server.address"] = url.hostname
            attributes["server.port"] = url.port or (443 if url.scheme == "https" else 80)
        if goes_on is not None:
            attributes["tidegate.attempt.goes_on_from"] = goes_on.name.lower()
        name = f"{operation_of(self._request.api)} {endpoint.served_model}"
        span = tracing.tracer.start_span(name, self._below, SpanKind.CLIENT, attributes)
        return AttemptSpan(self, span, self._state_line, goes_on=goes_on is not None)

    def noting(self, record: Callable[[UsageRow], None]) -> Callable[[UsageRow], None]:
        """`record`, which shows the row of this call here on its way."""

        def noted(row: UsageRow) -> None:
            self._row = row
            record(row)

        return noted

    def end(self) -> None:
        """The call is over."""
        span, row = self._span, self._row
        if row is not None:
            span.set_attributes(_ended(row, latest=self._tracing.latest))
            if row.status >= 500 or (row.outcome not in ("ok", "client_left") and row.status == 200):
                span.set_status(StatusCode.ERROR, row.outcome)
        span.end()


class AttemptSpan:
    """What an attempt tells of itself; see `backends.worker.Watch`."""

    __slots__ = ("_goes_on", "_span", "_trace", "lines")

    def __init__(self, trace: CallTrace, span: Span, state: bytes, *, goes_on: bool) -> None:
        self._trace = trace
        self._span = span
        self._goes_on = goes_on
        at = span.get_span_context()
        self.lines = b"traceparent: 00-%032x-%016x-%02x\r\n%b" % (
            at.trace_id,
            at.span_id,
            at.trace_flags,
            state,
        )

    def begun(self) -> None:
        if self._trace.under_way and not self._goes_on:
            self._span.set_attribute("tidegate.attempt.hedge", True)
        self._trace.under_way += 1

    def ended(self, attempt: Attempt, error: BaseException | None) -> None:
        self._trace.under_way -= 1
        span, outcome = self._span, outcome_of(error)
        expected, ttft_s, usage = attempt.candidate.estimate, attempt.ttft_s, attempt.usage
        span.set_attributes(
            {
                "tidegate.attempt.outcome": outcome,
                "tidegate.estimate.ttft_s": expected.ttft_s,
                "tidegate.estimate.itl_s": expected.itl_s,
                "tidegate.estimate.cost_nano_usd": expected.cost_nano_usd,
                "tidegate.estimate.score_nano_usd": attempt.candidate.score_nano_usd,
                "tidegate.estimate.cached_tokens": attempt.candidate.cached_tokens,
                "tidegate.estimate.on_time": attempt.candidate.on_time,
            }
        )
        if ttft_s is not None and attempt.watched:
            span.set_attribute("tidegate.attempt.ttft_s", ttft_s)
            if self._trace.latest:
                span.set_attribute("gen_ai.response.time_to_first_chunk", ttft_s)
        if usage is not None and not usage.estimated:
            span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
            cached = (
                "gen_ai.usage.cache_read.input_tokens" if self._trace.latest else "tidegate.cached_tokens"
            )
            span.set_attribute(cached, usage.cached_tokens)
        elif attempt.completion_tokens:
            span.set_attribute("gen_ai.usage.output_tokens", attempt.completion_tokens)
        if error is not None:
            span.set_attribute("error.type", outcome)
            if isinstance(error, AttemptFailed):
                span.set_status(StatusCode.ERROR, outcome)
        span.end()


def outcome_of(error: BaseException | None) -> str:
    """What an attempt has come to that ended so: ok, rejected, hedge_lost, abandoned, or the failure's code."""
    match error:
        case None:
            return "ok"
        case CallRejected() | Unable():
            return "rejected"
        case AttemptFailed():
            return error.code
        case asyncio.CancelledError() if OUTRUN in error.args:
            return "hedge_lost"
    return "abandoned"


def asked(request: Request, model: str, *, latest: bool) -> dict[str, AttributeValue]:
    """What was asked for, of `model`."""
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation_of(request.api),
        "gen_ai.request.model": model,
    }
    if request.max_tokens is not None:
        attributes["gen_ai.request.max_tokens"] = request.max_tokens
    if request.choices != 1:
        attributes["gen_ai.request.choice.count"] = request.choices
    if latest and request.stream:
        attributes["gen_ai.request.stream"] = True
    return attributes


def _ended(row: UsageRow, *, latest: bool) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.response.status_code": row.status,
        "gen_ai.response.model": row.model,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens" if latest else "tidegate.cached_tokens": row.cached_tokens,
        "tidegate.call_id": row.call_id,
        "tidegate.request_id": row.request_id,
        "tidegate.tenant": row.tenant,
        "tidegate.key_id": row.key_id,
        "tidegate.tier": row.tier,
        "tidegate.endpoint": row.endpoint,
        "tidegate.outcome": row.outcome,
        "tidegate.attempts": row.attempts,
        "tidegate.charge_nano_usd": row.charge_nano_usd,
        "tidegate.cost_nano_usd": row.cost_nano_usd,
        "tidegate.waste_nano_usd": row.waste_nano_usd,
        "tidegate.estimated": row.estimated,
    }
    if row.ttft_ms is not None:
        attributes["tidegate.ttft_s"] = row.ttft_ms / 1000
        if latest:
            attributes["gen_ai.response.time_to_first_chunk"] = row.ttft_ms / 1000
    if row.outcome != "ok":
        attributes["error.type"] = row.outcome
    return attributes
