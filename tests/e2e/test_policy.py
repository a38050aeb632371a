"""What tenants and keys are held to: as the SDK sees it, and with nobody allowed more by asking for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from pool import PRICE, Gateway, endpoint, gateway

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "High water?"}], "max_tokens": 5}
TENANTS = {
    "careful": {"policy": {"least_trust": "verified"}},
    "near": {"policy": {"regions": ["eu", "us"]}},
    "thrifty": {"policy": {"max_price": {"input": 5}}},
    "small": {"policy": {"models": ["tiny"], "tiers": ["flex"]}},
}


def models(worker: SimWorker) -> dict[str, Any]:
    listed = [
        endpoint(worker, "cheap", region="us", trust="community", cost={"input": 1, "output": 1}),
        endpoint(worker, "fair", region="eu", trust="verified", cost={"input": 5, "output": 5}),
        endpoint(worker, "dear", region="asia", trust="provider", cost={"input": 9, "output": 9}),
    ]
    big = {"price": PRICE, "endpoints": listed}
    return {"big": big, "small": {"price": PRICE, "aliases": ["tiny"], "endpoints": listed[:1]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker:
        home = tmp_path_factory.mktemp("gateway")
        aliases = {"smart": {"default": "big", "flex": "small"}}
        async with gateway(home, models=models(worker), aliases=aliases, tenants=TENANTS) as running:
            yield running


async def served_by(gw: Gateway, key: str, routing: dict[str, Any] | None = None, **asked: Any) -> str:
    asked = {"model": "big", **HELLO, **asked}
    reply = await gw.client(key).chat.completions.with_raw_response.create(
        **asked, extra_body={} if routing is None else {"routing": routing}
    )
    return reply.headers["x-tidegate-endpoint"]


async def test_a_tenants_policy_holds_for_its_keys_and_for_no_other(gw: Gateway):
    wanted = {"careful": "fair", "near": "cheap", "thrifty": "cheap", "free": "cheap"}
    keys = await asyncio.gather(*map(gw.new_key, wanted))
    found = [await served_by(gw, key, service_tier="flex") for key in keys]
    assert found == list(wanted.values())


async def test_of_tenant_key_and_call_the_narrowest_holds_in_each_point(gw: Gateway):
    cheapest = {"service_tier": "flex"}
    more_careful, less_careful, near, thrifty = await asyncio.gather(
        gw.new_key("careful", least_trust="provider"),
        gw.new_key("careful", least_trust="community"),
        gw.new_key("near", regions=frozenset({"eu", "asia"})),
        gw.new_key("thrifty", max_input_pico_usd=9_000_000, least_trust="verified"),
    )
    assert await served_by(gw, more_careful, {"trust": "verified"}, **cheapest) == "dear"
    assert await served_by(gw, less_careful, {"trust": "community"}, **cheapest) == "fair"
    assert await served_by(gw, less_careful, {"trust": "provider"}, **cheapest) == "dear"
    assert await served_by(gw, near, **cheapest) == "fair"
    assert await served_by(gw, near, {"regions": ["eu", "us"]}, **cheapest) == "fair"
    assert await served_by(gw, thrifty, {"max_price": {"input": 100}}, **cheapest) == "fair"
    with pytest.raises(openai.BadRequestError, match="held to: trust verified; input up to 5") as refused:
        await served_by(gw, thrifty, {"max_price": {"input": 4}})
    assert refused.value.code == "demands_not_met"


async def test_regions_that_have_nothing_in_common_are_named(gw: Gateway):
    near = await gw.new_key("near")
    with pytest.raises(
        openai.BadRequestError, match="asks for regions asia, and this key may use eu, us"
    ) as refused:
        await served_by(gw, near, {"regions": ["asia"]})
    assert (refused.value.code, refused.value.param) == ("demands_not_met", "routing.regions")
    nowhere = await gw.new_key("near", regions=frozenset({"asia"}))
    with pytest.raises(openai.BadRequestError, match="This key may use none"):
        await served_by(gw, nowhere)


async def test_a_model_that_a_key_may_not_use_is_not_served_and_not_listed(gw: Gateway):
    key = await gw.new_key("small")
    for name in ("big", "big:floor"):
        with pytest.raises(openai.PermissionDeniedError, match=f"may not use the model '{name}'") as refused:
            await served_by(gw, key, model=name)
        assert (refused.value.code, refused.value.param) == ("model_not_allowed", "model")
        assert refused.value.type == "permission_error"
    client = gw.client(key)
    assert [model.id async for model in client.models.list()] == ["small", "smart"]
    assert (await client.models.retrieve("tiny")).id == "small"
    with pytest.raises(openai.PermissionDeniedError):
        await client.models.retrieve("big")
    assert [model.id async for model in gw.client().models.list()] == ["big", "small", "smart"]


async def test_an_alias_is_served_by_those_of_its_models_that_a_key_may_use_and_allows_all_of_them(
    gw: Gateway,
):
    allowed = frozenset({"smart"})
    assert await served_by(gw, await gw.new_key("free", models=allowed), model="big") == "cheap"
    key = await gw.new_key("small", models=allowed)
    assert await served_by(gw, key, model="smart") == "cheap"
    with pytest.raises(openai.PermissionDeniedError):
        await served_by(gw, key, model="big")


async def test_a_tier_that_a_key_may_not_use_is_refused_and_one_it_may_is_given_where_none_is_named(
    gw: Gateway,
):
    key = await gw.new_key("small")
    with pytest.raises(openai.PermissionDeniedError, match="may use flex") as refused:
        await served_by(gw, key, model="small", service_tier="priority")
    assert (refused.value.code, refused.value.param) == ("tier_not_allowed", "service_tier")
    for asked in ({}, {"service_tier": "auto"}, {"service_tier": "flex"}):
        reply = await gw.client(key).chat.completions.with_raw_response.create(
            model="smart", **HELLO, **asked
        )
        assert (reply.headers["x-tidegate-tier"], reply.headers["x-tidegate-model"]) == ("flex", "small")
        assert reply.parse().service_tier == ("flex" if asked else None)
    row = (await gw.rows())[-1]
    assert (row.tier, row.model) == ("flex", "small")


async def test_what_a_policy_refuses_is_counted_and_makes_no_row(gw: Gateway):
    key = await gw.new_key("idle", models=frozenset({"small"}))
    counted = 'tidegate_requests_refused_total{code="model_not_allowed"}'
    before = (await gw.metrics()).get(counted, 0)
    with pytest.raises(openai.PermissionDeniedError):
        await served_by(gw, key)
    assert (await gw.metrics())[counted] == before + 1
    assert "idle" not in {row.tenant for row in await gw.rows(0)}


async def test_where_no_keys_are_asked_for_the_tenant_anonymous_can_be_bounded(tmp_path: Path):
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker:
        tenants = {"anonymous": {"policy": {"models": ["small"]}}}
        async with gateway(tmp_path, models=models(worker), auth={"mode": "none"}, tenants=tenants) as gw:
            assert await served_by(gw, "any", model="small") == "cheap"
            with pytest.raises(openai.PermissionDeniedError):
                await served_by(gw, "any")
