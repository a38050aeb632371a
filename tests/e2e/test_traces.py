"""Traces as a collector gets them: a span for each call, one for each attempt, and the endpoint's parent is the attempt."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from collector import collector
from failing import ASKED, QUICK, model, models
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from pool import HELLO, INSTANT, endpoint, gateway, until

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from collector import Collector
    from pool import Gateway

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "rojo=00f067aa0ba902b7"}
SECRET = "the-tide-of-1607"
"""Stands in prompts."""


class Span:
    """A span as it came."""

    def __init__(self, sent: Sent) -> None:
        self.name = sent.name
        self.kind = Sent.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_")
        self.id, self.parent, self.trace = sent.span_id.hex(), sent.parent_span_id.hex(), sent.trace_id.hex()
        self.failed = sent.status.code == 2
        self.begun, self.ended = sent.start_time_unix_nano, sent.end_time_unix_nano
        self.state = sent.trace_state
        self.attributes = {each.key: _value(each.value) for each in sent.attributes}
        self.events = [
            (event.name, {each.key: _value(each.value) for each in event.attributes}) for event in sent.events
        ]

    def __getitem__(self, name: str) -> Any:
        return self.attributes[name]


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)


def spans_of(taken: Collector) -> list[Span]:
    requests = map(ExportTraceServiceRequest.FromString, taken.bodies)
    return [
        Span(span)
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


async def trace(taken: Collector, spans: int) -> tuple[Span, list[Span]]:
    """The span of the only call, and those of its attempts in the order in which they began."""

    async def here() -> bool:
        return len(spans_of(taken)) >= spans

    await until(here)
    found = spans_of(taken)
    assert len(found) == spans
    (call,) = [span for span in found if span.kind == "SERVER"]
    return call, sorted((span for span in found if span is not call), key=lambda span: span.begun)


@asynccontextmanager
async def traced(home: Path, *workers: Any, **sections: Any) -> AsyncIterator[tuple[Gateway, Collector]]:
    """A gateway whose every call is traced, and where its spans go."""
    telemetry = {"sample": 1, **sections.pop("telemetry", {})}
    async with (
        collector() as taken,
        gateway(home, *workers, telemetry={"otlp": taken.url, **telemetry}, **sections) as gw,
    ):
        yield gw, taken


async def test_a_call_is_a_span_and_its_attempt_is_one_below_it(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, traced(tmp_path, worker) as (gw, taken):
        await gw.client().chat.completions.create(**HELLO)
        call, (attempt,) = await trace(taken, 2)
        (row,) = await gw.rows()
        assert (call.name, call.parent) == ("POST /v1/chat/completions", "")
        assert (attempt.name, attempt.kind) == ("chat sim", "CLIENT")
        assert (attempt.trace, attempt.parent) == (call.trace, call.id)
        assert call.begun <= attempt.begun <= attempt.ended
        assert call["http.response.status_code"] == 200
        assert call["tidegate.call_id"] == row.call_id
        assert call["tidegate.tenant"] == "harbour"
        assert call["tidegate.outcome"] == "ok"
        assert call["gen_ai.usage.input_tokens"] == row.prompt_tokens
        assert call["gen_ai.usage.output_tokens"] == row.completion_tokens
        assert call["tidegate.charge_nano_usd"] == row.charge_nano_usd
        assert attempt["tidegate.endpoint"] == "worker-1"
        assert attempt["tidegate.attempt.outcome"] == "ok"
        assert attempt["gen_ai.usage.input_tokens"] == row.prompt_tokens
        assert f"http://{attempt['server.address']}:{attempt['server.port']}" == worker.url
        assert not call.failed
        assert not attempt.failed
        ((event, said),) = call.events
        assert event == "tidegate.plan"
        assert said["tidegate.plan.ranked"] == ["worker-1"]


async def test_a_clients_trace_goes_on_and_the_worker_is_told_of_the_attempt(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, traced(tmp_path, worker, telemetry={"sample": 0}) as (gw, taken):
        await gw.client().chat.completions.create(**HELLO, extra_headers=SAMPLED)
        call, (attempt,) = await trace(taken, 2)
        assert (call.trace, call.parent) == (TRACE, PARENT)
        assert call.state == SAMPLED["tracestate"]
        told = told_to(worker)
        assert told["traceparent"] == f"00-{TRACE}-{attempt.id}-01"
        assert told["tracestate"] == SAMPLED["tracestate"]


@pytest.mark.parametrize(
    ("given", "telemetry"),
    [
        ({"traceparent": f"00-{TRACE}-{PARENT}-00"}, {"sample": 1}),  # its client says no
        (SAMPLED, {"sample": 0, "follow_clients": False}),  # and here yes, but is not asked
    ],
)
async def test_a_call_that_is_not_traced_passes_its_clients_trace_on_as_it_is(
    tmp_path: Path, given: dict[str, str], telemetry: dict[str, Any]
):
    async with SimWorker(INSTANT) as worker, traced(tmp_path, worker, telemetry=telemetry) as (gw, taken):
        await gw.client().chat.completions.create(**HELLO, extra_headers=given)
        told = told_to(worker)
        assert {name: told.get(name) for name in given} == given
    assert taken.bodies == []  # what there is goes out before the gateway is gone


async def test_a_first_token_in_a_stream_and_tokens_are_told_by_the_names_of_the_generation(tmp_path: Path):
    for semconv, provider, cached in (
        ("v1.36", "gen_ai.system", "tidegate.cached_tokens"),
        ("latest", "gen_ai.provider.name", "gen_ai.usage.cache_read.input_tokens"),
    ):
        home = tmp_path / semconv
        home.mkdir()
        async with (
            SimWorker(INSTANT) as worker,
            traced(home, worker, telemetry={"semconv": semconv}) as (gw, taken),
        ):
            async for _ in await gw.client().chat.completions.create(**HELLO, stream=True):
                pass
            call, (attempt,) = await trace(taken, 2)
        assert attempt[provider] == "vllm"
        assert cached in attempt.attributes
        assert attempt["tidegate.attempt.ttft_s"] > 0
        assert attempt["tidegate.estimate.ttft_s"] > 0
        assert ("gen_ai.response.time_to_first_chunk" in call.attributes) == (semconv == "latest")
        assert len({"gen_ai.system", "gen_ai.provider.name"} & attempt.attributes.keys()) == 1


async def test_an_attempt_that_fails_is_a_span_of_its_own_with_the_failures_code(tmp_path: Path):
    async with SimWorker(QUICK) as bad, SimWorker(QUICK) as good:
        bad.order(Fault(kind="status", status=500, path="/v1/chat"))
        served = models(endpoint(bad, "bad"), endpoint(good, "good"))
        async with traced(tmp_path, models=served) as (gw, taken):
            await gw.client().chat.completions.create(**ASKED)
            call, (first, second) = await trace(taken, 3)
    assert (first["tidegate.endpoint"], second["tidegate.endpoint"]) == ("bad", "good")
    assert first.failed
    assert first["error.type"] == first["tidegate.attempt.outcome"] != "ok"
    assert second["tidegate.attempt.outcome"] == "ok"
    assert "tidegate.attempt.hedge" not in second.attributes
    assert call["tidegate.attempts"] == 2
    assert not call.failed


async def test_a_race_shows_who_lost_it(tmp_path: Path):
    async with SimWorker(QUICK) as slow, SimWorker(QUICK) as quick:
        served = models(endpoint(slow, "slow"), endpoint(quick, "quick"))
        async with traced(tmp_path, models=served) as (gw, taken):
            slow.order(Fault(kind="hang", path="/v1/chat"))
            await _streamed(gw, service_tier="default")
            _, (first, second) = await trace(taken, 3)
    assert (first["tidegate.endpoint"], first["tidegate.attempt.outcome"]) == ("slow", "hedge_lost")
    assert (second["tidegate.endpoint"], second["tidegate.attempt.outcome"]) == ("quick", "ok")
    assert second["tidegate.attempt.hedge"]


async def test_a_stream_that_breaks_shows_where_it_went_on_and_how(tmp_path: Path):
    async with SimWorker(QUICK) as bad, SimWorker(QUICK) as good:
        served = {"llama": model(endpoint(bad, "bad"), endpoint(good, "good"))}
        async with traced(tmp_path, models=served) as (gw, taken):
            bad.order(Fault("reset", after_chunks=5, count=1))
            await _streamed(gw, max_tokens=20, extra_body={"ignore_eos": True})
            call, (first, second) = await trace(taken, 3)
    assert first["tidegate.attempt.outcome"] == "upstream_broken"
    assert second["tidegate.attempt.goes_on_from"] in ("tokens", "text")
    assert second["tidegate.attempt.outcome"] == "ok"
    assert call["tidegate.waste_nano_usd"] >= 0


async def test_a_client_that_leaves_leaves_whole_spans_behind(tmp_path: Path):
    async with (
        SimWorker(WorkerSpec(decode_s_per_token=0.2)) as worker,
        traced(tmp_path, worker) as (gw, taken),
    ):
        stream = await gw.client().chat.completions.create(**HELLO | {"max_tokens": 1000}, stream=True)
        await anext(aiter(stream))
        await stream.close()
        call, (attempt,) = await trace(taken, 2)
    assert call["tidegate.outcome"] == "client_left"
    assert attempt["tidegate.attempt.outcome"] == "abandoned"


async def test_no_span_holds_a_prompt_an_answer_or_a_key(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, traced(tmp_path, worker) as (gw, taken):
        asked = HELLO | {"messages": [{"role": "user", "content": SECRET}], "user": "customer-of-harbour"}
        reply = await gw.client().chat.completions.create(**asked)
        await trace(taken, 2)
    sent = b"".join(taken.bodies)
    assert SECRET.encode() not in sent
    assert gw.key.encode() not in sent
    assert reply.choices[0].message.content.encode() not in sent


async def test_the_collector_gets_the_headers_it_wants(tmp_path: Path):
    telemetry = {"headers": {"authorization": "Bearer of-the-collector"}}
    async with SimWorker(INSTANT) as worker, traced(tmp_path, worker, telemetry=telemetry) as (gw, taken):
        await gw.client().chat.completions.create(**HELLO)
        await trace(taken, 2)
    assert b"bearer of-the-collector" in taken.heads[0].lower()
    assert b"POST /v1/traces " in taken.heads[0]


async def test_a_collector_that_is_away_holds_nobody_up_and_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        away = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    async with (
        SimWorker(INSTANT) as worker,
        gateway(tmp_path, worker, telemetry={"otlp": away, "sample": 1}) as gw,
    ):

        async def dropped(spans: int) -> bool:
            page = await gw.metrics()
            return page['tidegate_spans_dropped_total{reason="not_taken"}'] >= spans

        for spans in (2, 4):
            async with asyncio.timeout(30):
                await gw.client().chat.completions.create(**HELLO)
            await until(lambda least=spans: dropped(least))
    said = [each.getMessage() for each in caplog.records if "collector" in each.getMessage()]
    assert said == ["the collector takes no spans, they are dropped until it does"]


def told_to(worker: SimWorker) -> dict[str, str]:
    """The headers of the last call there."""
    return {name.decode().lower(): value.decode() for name, value in worker.requests[-1].headers}


async def _streamed(gw: Gateway, **more: Any) -> None:
    async for _ in await gw.client().chat.completions.create(**ASKED | {"stream": True} | more):
        pass
