"""What a call may insist on, in its body or in headers, and what the reply's headers tell of how it was served."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from pool import HELLO, INSTANT, PRICE, Gateway, endpoint, gateway, until

from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")


def two_endpoints(near: SimWorker, far: SimWorker) -> dict[str, Any]:
    """A dear one near by that is trusted, and a cheap one far away that is not."""
    dear = endpoint(near, "near", region="eu", trust="verified", cost={"input": 5, "output": 9})
    cheap = endpoint(far, "far", region="us", trust="community", cost={"input": 1, "output": 9})
    return {"llama": {"price": PRICE, "endpoints": [dear, cheap]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(INSTANT) as near, SimWorker(INSTANT) as far:
        home = tmp_path_factory.mktemp("gateway")
        async with gateway(home, models=two_endpoints(near, far)) as running:
            yield running


async def served_by(
    gw: Gateway, routing: dict[str, Any] | None, headers: dict[str, str] | None = None
) -> str:
    extra_body = {} if routing is None else {"routing": routing}
    reply = await gw.client().chat.completions.with_raw_response.create(
        **HELLO, extra_body=extra_body, extra_headers=headers
    )
    return reply.headers["x-tidegate-endpoint"]


@pytest.mark.parametrize(
    ("routing", "headers", "endpoint_name"),
    [
        ({"only": ["near"]}, {"x-tidegate-only": "near, elsewhere"}, "near"),
        ({"only": ["far"]}, {"x-tidegate-only": "far"}, "far"),
        ({"ignore": ["far"]}, {"x-tidegate-ignore": "far"}, "near"),
        ({"regions": ["eu", "asia"]}, {"x-tidegate-regions": "eu,asia"}, "near"),
        ({"regions": ["us"]}, {"x-tidegate-regions": "us"}, "far"),
        ({"trust": "verified"}, {"x-tidegate-trust": "verified"}, "near"),
        ({"max_price": {"input": 1}}, {"x-tidegate-max-price-input": "1.000000"}, "far"),
    ],
)
async def test_what_a_call_insists_on_decides_in_its_body_as_in_its_headers(
    gw: Gateway, routing: dict[str, Any], headers: dict[str, str], endpoint_name: str
):
    assert await served_by(gw, routing) == endpoint_name
    assert await served_by(gw, None, headers) == endpoint_name


async def test_where_body_and_headers_differ_the_body_wins_field_by_field(gw: Gateway):
    assert await served_by(gw, {"only": ["near"]}, {"x-tidegate-only": "far"}) == "near"
    assert await served_by(gw, {"max_ttft_ms": 60000}, {"x-tidegate-only": "far"}) == "far"


@pytest.mark.parametrize(
    "routing",
    [
        {"only": ["elsewhere"]},
        {"regions": ["mars"]},
        {"trust": "provider"},
        {"max_price": {"output": 8.999999}},
        {"max_ttft_ms": 0.000001},
        {"min_tokens_per_s": 1e9},
        {"only": ["near"], "ignore": ["near"]},
    ],
    ids=str,
)
async def test_what_no_endpoint_meets_is_an_error_that_says_what_each_one_misses(
    gw: Gateway, routing: dict[str, Any]
):
    with pytest.raises(openai.BadRequestError, match=r"near: .*; far: |far: .*; near: ") as raised:
        await served_by(gw, routing)
    assert raised.value.code == "demands_not_met"


@pytest.mark.parametrize(
    ("routing", "param", "code"),
    [
        ({"max_ttft_ms": "soon"}, "routing.max_ttft_ms", "invalid_type"),
        ({"max_ttft_ms": -1}, "routing.max_ttft_ms", "invalid_value"),
        ({"max_price": {"input": "1"}}, "routing.max_price.input", "invalid_type"),
        ({"max_price": {"images": 1}}, "routing.max_price.images", "invalid_value"),
        ({"trust": "blind"}, "routing.trust", "invalid_value"),
        ({"regoins": ["eu"]}, "routing.regoins", "invalid_value"),
        (["eu"], "routing", "invalid_type"),
    ],
    ids=str,
)
async def test_a_demand_that_makes_no_sense_is_an_error_that_names_it(
    gw: Gateway, routing: Any, param: str, code: str
):
    with pytest.raises(openai.BadRequestError) as raised:
        await served_by(gw, routing)
    assert (raised.value.param, raised.value.code) == (param, code)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-tidegate-max-ttft-ms", "soon"),
        ("x-tidegate-max-price-input", "-1"),
        ("x-tidegate-trust", "blind"),
        ("x-tidegate-hedge", "perhaps"),
        ("x-tidegate-regoins", "eu"),
    ],
)
async def test_a_header_that_makes_no_sense_is_an_error_that_names_it(gw: Gateway, header: str, value: str):
    with pytest.raises(openai.BadRequestError) as raised:
        await served_by(gw, None, {header: value})
    assert (raised.value.param, raised.value.code) == (header, "invalid_value")


async def test_what_has_no_effect_yet_is_taken(gw: Gateway):
    assert await served_by(gw, {"session_id": "a", "hedge": False, "only": ["near"]}) == "near"
    headers = {"x-tidegate-session-id": "a", "x-tidegate-hedge": "true", "x-tidegate-only": "far"}
    assert await served_by(gw, None, headers) == "far"


async def test_the_headers_of_a_reply_tell_how_it_was_served_and_what_it_costs(tmp_path):
    async with SimWorker(INSTANT) as near, SimWorker(INSTANT) as far:
        async with gateway(tmp_path, models=two_endpoints(near, far)) as gw:
            far.order(Fault(kind="status", status=500))
            began_s = time.monotonic()
            # Flex goes where it is cheapest, so to the one that fails first.
            reply = await gw.client().chat.completions.with_raw_response.create(**HELLO, service_tier="flex")
            took_ms = (time.monotonic() - began_s) * 1000
            told = {name: value for name, value in reply.headers.items() if name.startswith("x-tidegate-")}
            assert 0 < float(told.pop("x-tidegate-overhead-ms")) < took_ms
            usage = reply.parse().usage
            nano_usd = 1000 * usage.prompt_tokens + 2000 * usage.completion_tokens
            assert told == {
                "x-tidegate-model": "llama",
                "x-tidegate-endpoint": "near",
                "x-tidegate-tier": "flex",
                "x-tidegate-attempts": "2",
                "x-tidegate-hedged": "false",
                "x-tidegate-cost-usd": f"0.{nano_usd:09d}",
            }
            row = (await gw.rows())[0]
            assert (row.request_id, row.charge_nano_usd) == (reply.headers["x-request-id"], nano_usd)
            assert (row.endpoint, row.tier, row.attempts) == ("near", "flex", 2)


async def test_a_stream_has_the_same_headers_but_for_its_cost_which_is_not_known_yet(gw: Gateway):
    chats = gw.client().chat.completions
    whole = await chats.with_raw_response.create(**HELLO)
    stream = await chats.with_raw_response.create(**HELLO, stream=True)
    names = {name for name in whole.headers if name.startswith("x-")}
    assert {name for name in stream.headers if name.startswith("x-")} == names - {"x-tidegate-cost-usd"}
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert len([chunk async for chunk in stream.parse()]) >= 5


async def test_what_only_a_busy_pool_misses_is_an_error_that_says_when_to_come_back(tmp_path):
    async with SimWorker(INSTANT) as worker:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(worker, "near", gpu="t4")]}}
        async with gateway(tmp_path, models=models) as gw:
            worker.order(Fault(kind="hang"))
            client = gw.client()
            long = {**HELLO, "messages": [{"role": "user", "content": "tide " * 100_000}], "stream": True}
            hanging = [asyncio.create_task(client.chat.completions.create(**long)) for _ in range(3)]

            async def under_way() -> bool:
                return len(worker.requests) == len(hanging)

            await until(under_way)
            with pytest.raises(openai.InternalServerError, match="near: expected first token in") as busy:
                await served_by(gw, {"max_ttft_ms": 1000})
            assert (busy.value.status_code, busy.value.code) == (503, "no_endpoint_available")
            assert int(busy.value.response.headers["retry-after"]) >= 1
            with pytest.raises(openai.BadRequestError, match="near: expected first token in") as never:
                await served_by(gw, {"max_ttft_ms": 0.001})
            assert never.value.code == "demands_not_met"
            for call in hanging:
                call.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)


@pytest.mark.parametrize(
    ("header", "met", "missed"),
    [
        ("x-tidegate-max-ttft-ms", "60000", "0.001"),
        ("x-tidegate-min-tokens-per-s", "0.1", "1e9"),
        ("x-tidegate-max-price-output", "9", "8.9"),
    ],
)
async def test_a_demand_that_all_endpoints_meet_or_none_holds_in_a_header(
    gw: Gateway, header: str, met: str, missed: str
):
    assert await served_by(gw, None, {header: met}) in ("near", "far")
    with pytest.raises(openai.BadRequestError) as refused:
        await served_by(gw, None, {header: missed})
    assert refused.value.code == "demands_not_met"


async def test_nobody_waits_for_a_busy_endpoint_that_would_not_do_anyway(tmp_path):
    async with SimWorker(INSTANT) as worker:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(worker, "near")]}}
        async with gateway(tmp_path, models=models, limits={"connections_per_endpoint": 1}) as gw:
            worker.order(Fault(kind="hang"))
            hanging = asyncio.create_task(gw.client().chat.completions.create(**HELLO, stream=True))

            async def under_way() -> bool:
                return len(worker.requests) == 1

            await until(under_way)
            with pytest.raises(openai.BadRequestError, match="tokens per second, asked for at least"):
                await served_by(gw, {"min_tokens_per_s": 1e9})
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
