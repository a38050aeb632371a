from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from metered import CHUNK, PRICE, WORKER, meter_for
from msgspec import structs

from backends.sse import CompletionStream, Shown
from gateway.arrival import Arrival
from gateway.auth import Key
from gateway.catalog import Model
from gateway.errors import ApiError
from gateway.ledger import multiplied
from gateway.meter import CLIENT_LEFT, Meter
from gateway.openai import Request
from routing.types import Price, Usage

if TYPE_CHECKING:
    from gateway.ledger import UsageRow


@pytest.fixture
def rows() -> list[UsageRow]:
    return []


def test_a_call_is_charged_by_its_tier_and_its_tenant_and_its_reasoning_by_a_price_of_its_own(
    rows: list[UsageRow],
) -> None:
    request = Request(api="chat", model="llama", fields={}, prompt_tokens=10, tier="flex", stream=True)
    caller = Key(id="key_1", tenant="acme")
    price = Price(50_000, 100_000, reasoning_pico_usd=80_000)
    model = Model(
        "llama", price, in_tiers={"flex": multiplied(price, 500_000)}, of_tenants={"acme": 1_100_000}
    )
    with Meter(Arrival("call", "req", caller, time.monotonic()), request, model, rows.append) as meter:
        provider = structs.replace(WORKER, kind="openai")
        meter.asked(provider)
        meter.answered(provider, None)
        meter.usage = Usage(10, 0, 7, reasoning_tokens=3)
    (row,) = rows
    assert row.charge_nano_usd == round((10 * 50 + 4 * 100 + 3 * 80) * 0.55)
    assert (row.reasoning_tokens, row.hosted) == (3, True)


def test_what_the_endpoint_reported_is_what_is_charged(rows: list[UsageRow]) -> None:
    with meter_for(rows) as meter:
        meter.asked(WORKER)
        meter.answered(WORKER, None)
        meter.usage = Usage(prompt_tokens=1000, cached_tokens=400, completion_tokens=100)
    (row,) = rows
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.estimated) == (
        1000,
        400,
        100,
        False,
    )
    assert row.charge_nano_usd == 600 * 50 + 400 * 25 + 100 * 100
    assert row.cost_nano_usd == 1000 * 20 + 100 * 40
    assert row.outcome == "ok"


def test_a_row_says_which_project_and_which_customer_a_call_was_made_for(rows: list[UsageRow]) -> None:
    request = Request(api="chat", model="llama", fields={}, customer="c-1")
    for project in ("web", None):
        arrival = Arrival("call", "req_call", Key("key_1", "acme", project=project), time.monotonic())
        with Meter(arrival, request, Model("llama", PRICE), rows.append):
            pass
    assert [(row.project, row.customer) for row in rows] == [("web", "c-1"), ("", "c-1")]


def test_a_whole_reply_without_usage_is_charged_with_the_prompt_as_estimated(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(WORKER)
        meter.answered(WORKER, None)
        meter.usage = Usage(0, 0, 7, estimated=True)
    (row,) = rows
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (12, 7, True)


def test_a_stream_that_ends_without_usage_is_charged_by_the_chunks_seen(rows: list[UsageRow]) -> None:
    stream = CompletionStream(Shown("llama", None, usage=False, choices=1), 65_536)
    with suppress(asyncio.CancelledError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(WORKER)
        stream.feed(CHUNK * 3)
        meter.answered(WORKER, stream)
        raise asyncio.CancelledError
    (row,) = rows
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (12, 3, True)
    assert row.outcome == "client_left"
    assert row.ttft_ms is not None


@pytest.mark.parametrize("code", ["upstream_error", "invalid_request", "call_timeout"])
def test_an_attempt_that_brought_the_client_nothing_costs_nothing(rows: list[UsageRow], code: str) -> None:
    with suppress(ApiError), meter_for(rows) as meter:
        meter.asked(WORKER)
        meter.failed(WORKER)
        raise ApiError(code, "it failed")
    (row,) = rows
    assert (row.endpoint, row.attempts, row.outcome) == ("", 1, code)
    assert (row.prompt_tokens, row.charge_nano_usd, row.cost_nano_usd) == (0, 0, 0)


def test_a_client_that_leaves_an_attempt_waiting_pays_for_its_prompt(rows: list[UsageRow]) -> None:
    with suppress(asyncio.CancelledError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(WORKER)
        raise asyncio.CancelledError
    (row,) = rows
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens, row.estimated) == ("w1", 12, 0, True)
    assert row.status == CLIENT_LEFT


def test_a_call_is_settled_once_whatever_happens_after(rows: list[UsageRow]) -> None:
    with suppress(ConnectionResetError), meter_for(rows) as meter:
        meter.asked(WORKER)
        meter.answered(WORKER, None)
        meter.usage = Usage(10, 0, 5)
        meter.status = 200
        meter.settle("ok")
        meter.settle("upstream_error")
        raise ConnectionResetError
    assert [row.outcome for row in rows] == ["ok"]


def test_the_outcome_of_an_endpoints_own_error_code_stays_within_the_table(rows: list[UsageRow]) -> None:
    with suppress(ApiError), meter_for(rows):
        raise ApiError("some-code-of-a-worker", "no", status=422)
    assert rows[0].outcome == "invalid_request"
    assert rows[0].status == 422


def test_a_defect_of_the_gateway_is_an_outcome_of_its_own(rows: list[UsageRow]) -> None:
    with suppress(ZeroDivisionError), meter_for(rows):
        raise ZeroDivisionError
    assert rows[0].outcome == "internal_error"


def test_overhead_leaves_out_the_time_that_endpoints_took(rows: list[UsageRow]) -> None:
    with meter_for(rows) as meter:
        meter.asked(WORKER)
        time.sleep(0.05)
        meter.failed(WORKER)
        meter.asked(WORKER)
        time.sleep(0.05)
        meter.answered(WORKER, None)
        assert meter.overhead_s < 0.09  # of at least 0.1 s
    assert rows[0].duration_ms >= 100
