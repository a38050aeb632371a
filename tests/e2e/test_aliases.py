"""Names that stand for another model in each tier, what a call falls back on, and suffixes that decide for one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from pool import INSTANT, Gateway, endpoint, gateway

from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "High water?"}], "max_tokens": 5}
SMART = {"priority": "big", "default": "middle", "flex": "small", "fallbacks": ["small"]}


def models(worker: SimWorker, **more: Any) -> dict[str, Any]:
    """Three at one worker, by price; `more` is for those of the middle one's endpoint."""
    return {
        name: {
            "price": {"input": price, "output": price},
            "endpoints": [endpoint(worker, name, **more if name == "middle" else {})],
        }
        for name, price in (("big", 9), ("middle", 3), ("small", 1))
    }


@pytest_asyncio.fixture
async def worker() -> AsyncIterator[SimWorker]:
    async with SimWorker(INSTANT) as running:
        yield running


async def ask(gw: Gateway, name: str, **more: Any) -> tuple[str, str, str]:
    """What the reply names as its model, twice, and the endpoints tried."""
    reply = await gw.client().chat.completions.with_raw_response.create(model=name, **HELLO, **more)
    named = reply.parse().model
    return named, reply.headers["x-tidegate-model"], reply.headers["x-tidegate-attempts"]


async def test_each_tier_is_served_by_its_model_which_the_reply_names_and_the_books_charge(
    tmp_path: Path, worker: SimWorker
):
    async with gateway(tmp_path, models=models(worker), aliases={"smart": SMART}) as gw:
        for tier, name in (("priority", "big"), ("default", "middle"), ("flex", "small")):
            assert await ask(gw, "smart", service_tier=tier) == (name, name, "1")
        listed = [model.id async for model in gw.client().models.list()]
        assert listed == ["big", "middle", "small", "smart"]
        assert (await gw.client().models.retrieve("smart")).id == "smart"
        rows = await gw.rows(3)
    assert [(row.model, row.tier) for row in rows] == [
        ("big", "priority"),
        ("middle", "default"),
        ("small", "flex"),
    ]
    for row, price in zip(rows, (9, 3, 1), strict=True):
        assert row.charge_nano_usd == 1000 * price * (row.prompt_tokens + row.completion_tokens)


async def test_where_none_of_a_models_endpoints_can_take_the_call_the_next_model_does(
    tmp_path: Path, worker: SimWorker
):
    served = models(worker, context_tokens=4, region="eu")
    async with gateway(tmp_path, models=served, aliases={"smart": SMART}) as gw:
        assert await ask(gw, "smart") == ("small", "small", "1")
        with pytest.raises(openai.BadRequestError, match="No endpoint of middle or small can") as refused:
            await ask(gw, "smart", extra_body={"routing": {"regions": ["mars"]}})
        assert refused.value.code == "demands_not_met"


@pytest.mark.parametrize("stream", [False, True])
async def test_where_all_attempts_at_a_model_fail_the_next_one_answers_and_is_metered(
    tmp_path: Path, worker: SimWorker, *, stream: bool
):
    async with SimWorker(INSTANT) as broken:
        broken.order(Fault(kind="status", status=500))
        served = models(worker)
        served["middle"]["endpoints"] = [endpoint(broken, f"broken-{number}") for number in (1, 2)]
        async with gateway(tmp_path, models=served, aliases={"smart": SMART}, limits={"attempts": 2}) as gw:
            reply = await gw.client().chat.completions.with_raw_response.create(
                model="smart", **HELLO, stream=stream
            )
            assert (reply.headers["x-tidegate-model"], reply.headers["x-tidegate-attempts"]) == ("small", "3")
            if stream:
                assert {chunk.model async for chunk in reply.parse()} == {"small"}
            (row,) = await gw.rows()
    assert (row.model, row.endpoint, row.outcome, row.attempts) == ("small", "small", "ok", 3)
    assert row.charge_nano_usd == 1000 * (row.prompt_tokens + row.completion_tokens)


async def test_where_every_model_fails_the_last_failure_is_told(tmp_path: Path, worker: SimWorker):
    worker.order(Fault(kind="status", status=500))
    async with gateway(tmp_path, models=models(worker), aliases={"smart": SMART}) as gw:
        with pytest.raises(openai.InternalServerError, match="2 endpoints were tried") as failed:
            await ask(gw, "smart")
        assert failed.value.code == "upstream_error"
        (row,) = await gw.rows()
    assert (row.endpoint, row.outcome, row.attempts, row.charge_nano_usd) == ("", "upstream_error", 2, 0)


async def test_what_is_the_calls_own_fault_is_told_at_once(tmp_path: Path, worker: SimWorker):
    async with gateway(tmp_path, models=models(worker), aliases={"smart": SMART}) as gw:
        worker.order(Fault(kind="status", status=422, count=1))
        with pytest.raises(openai.UnprocessableEntityError):
            await ask(gw, "smart")
        assert len(worker.requests) == 1


async def test_a_suffix_makes_price_or_time_decide_and_is_no_part_of_the_models_name(
    tmp_path: Path, worker: SimWorker
):
    slow = endpoint(worker, "slow", gpu="t4", cost={"input": 1, "output": 1})
    middling = endpoint(worker, "middling", gpu="l40s", cost={"input": 1.1, "output": 1.1})
    fast = endpoint(worker, "fast", gpu="b200", cost={"input": 100_000, "output": 100_000})
    served = {
        "llama": {
            "aliases": ["tiny"],
            "price": {"input": 1, "output": 2},
            "endpoints": [slow, middling, fast],
        }
    }
    wanted = {
        ("llama", "default"): "middling",
        ("llama:floor", "default"): "slow",
        ("tiny:floor", "priority"): "slow",
        ("llama:nitro", "default"): "fast",
        ("tiny:nitro", "flex"): "fast",
    }
    found = {}
    async with gateway(tmp_path, models=served) as gw:
        for name, tier in wanted:
            reply = await gw.client().chat.completions.with_raw_response.create(
                model=name, **HELLO, service_tier=tier
            )
            answer = reply.parse()
            found[name, tier] = reply.headers["x-tidegate-endpoint"]
            assert (answer.model, answer.service_tier) == ("llama", tier)
            assert (reply.headers["x-tidegate-model"], reply.headers["x-tidegate-tier"]) == ("llama", tier)
        with pytest.raises(openai.NotFoundError, match="llama:cheap"):
            await ask(gw, "llama:cheap")
    assert found == wanted
