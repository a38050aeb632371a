"""Prices over time: what was in force, and what calls were charged by it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pool import HELLO, INSTANT, PRICE, Gateway, endpoint, gateway, until

from gateway.billing import Order, balance_nano_usd, enter
from gateway.ledger import ONCE
from gateway.prices import Priced, Rates, versions
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path

MASTER = "sk-master-0123456789"


async def test_tiers_and_tenants_multiply_what_is_charged_and_all_of_it_is_written_down(tmp_path: Path):
    async with SimWorker(INSTANT) as worker:
        models = {
            "llama": {"price": PRICE, "endpoints": [endpoint(worker, cost={"input": 0.25, "output": 0.5})]}
        }
        sections: dict[str, Any] = {
            "models": models,
            "tiers": {"flex": {"price_multiplier": 0.5}},
            "tenants": {"harbour": {"billing": {"price_multiplier": "1.1"}}},
        }
        async with gateway(tmp_path, **sections) as gw:
            mill = gw.client(await gw.new_key("mill"))
            for client, tier in (
                (gw.client(), "default"),
                (gw.client(), "flex"),
                (mill, "default"),
                (mill, "flex"),
            ):
                raw = await client.chat.completions.with_raw_response.create(**HELLO, service_tier=tier)
                row = (await gw.rows())[-1]
                factor = (0.5 if tier == "flex" else 1) * (1.1 if row.tenant == "harbour" else 1)
                list_price = row.prompt_tokens * 1000 - row.cached_tokens * 500 + row.completion_tokens * 2000
                assert row.charge_nano_usd == round(list_price * factor)
                assert float(raw.headers["x-tidegate-cost-usd"]) == row.charge_nano_usd / 1e9
            first = {version.priced: version for version in versions(gw.store)}
        assert first.keys() == {
            Priced("charge", "llama"),
            Priced("cost", "llama", "worker-1"),
            *(Priced("tier", tier) for tier in ("priority", "default", "flex")),
            Priced("tenant", "harbour"),
        }
        assert first[Priced("charge", "llama")].rates == Rates(1_000_000, 2_000_000, 500_000)
        assert first[Priced("tier", "flex")].rates == Rates(millionths=500_000)
        assert first[Priced("tenant", "harbour")].rates == Rates(millionths=1_100_000)
        models["llama"]["price"] = {"input": 3, "output": 4}
        async with gateway(tmp_path, models=models, auth={"master_key": MASTER}) as gw:
            charges = versions(gw.store, Priced("charge", "llama"))
            assert [each.rates.input_pico_usd for each in charges] == [1_000_000, 3_000_000]
            assert charges[0].valid_from_ms < charges[1].valid_from_ms
            assert [each.rates.millionths for each in versions(gw.store, Priced("tenant", "harbour"))] == [
                1_100_000,
                ONCE,
            ]
            assert len(versions(gw.store, Priced("cost", "llama", "worker-1"))) == 1
            assert await entered(gw, whom="harbour", amount_usd="0.5", idempotency_key="k") == (201, True)
            assert await entered(gw, whom="harbour", amount_usd="0.5", idempotency_key="k") == (200, False)
            assert await entered(gw, whom="harbour", amount_usd="0.6", idempotency_key="k") == (409, None)
            assert await entered(gw, whom="harbour", amount_usd="x", idempotency_key="j") == (400, None)
            assert (await entered(gw, whom="harbour", amount_usd="1"))[0] in {400, 422}
            balances = await gw.http.get(
                "/admin/billing/balances", headers={"authorization": f"Bearer {MASTER}"}
            )
            assert balances.json()["amounts_nano_usd"]["credit"] == 500_000_000


async def entered(gw: Gateway, **body: str) -> tuple[int, bool | None]:
    """Status, and whether it is new."""
    headers = {"authorization": f"Bearer {MASTER}"}
    reply = await gw.http.post("/admin/billing/credit", json=body, headers=headers)
    return reply.status_code, reply.json().get("new")


async def test_a_tenant_that_pays_in_advance_can_spend_that_and_no_more(tmp_path: Path):
    async with SimWorker(INSTANT) as worker:
        sections: dict[str, Any] = {"tenants": {"harbour": {"billing": {"mode": "prepaid"}}}}
        async with gateway(tmp_path, worker, auth={"master_key": MASTER}, **sections) as gw:
            create = gw.client().chat.completions.create
            with pytest.raises(openai.RateLimitError) as refused:
                await create(**HELLO)
            assert refused.value.code == "insufficient_quota"
            paid_nano_usd = 1_000_000
            await asyncio.to_thread(enter, gw.store, Order("payment", "harbour", paid_nano_usd))
            await until(lambda: answered(gw))
            answers = 1
            while await answered(gw):
                answers += 1
            rows = await gw.rows(answers)
            spent_nano_usd = sum(row.charge_nano_usd for row in rows)
            assert 0 < spent_nano_usd <= paid_nano_usd
            assert paid_nano_usd - spent_nano_usd < 500_000  # what one call may cost at most is held
            assert balance_nano_usd(gw.store, "harbour") == paid_nano_usd - spent_nano_usd


async def answered(gw: Gateway) -> bool:
    """Whether a call is let through. What others have on hold may come free, so one refused with a 429 is not tried again."""
    try:
        await gw.client().chat.completions.create(**HELLO)
    except openai.RateLimitError:
        return False
    return True


@pytest.mark.parametrize("kind", ["tenant", "tier", "neither"])
async def test_a_calls_price_cap_is_about_what_its_tenant_is_charged(tmp_path: Path, kind: str):
    sections: dict[str, Any] = {
        "tenant": {"tenants": {"harbour": {"billing": {"price_multiplier": "1.25"}}}},
        "tier": {"tiers": {"default": {"price_multiplier": "1.25"}}},
        "neither": {},
    }[kind]
    cheap = {"input": 0.1, "output": 0.1}
    async with SimWorker(INSTANT) as worker:
        served = {"llama": {"price": PRICE, "endpoints": [endpoint(worker, cost=cheap)]}}
        async with gateway(tmp_path, models=served, auth={"master_key": MASTER}, **sections) as gw:
            create = gw.client().chat.completions.create
            charged = 1 if kind == "neither" else 1.25
            await create(
                **HELLO, extra_body={"routing": {"max_price": {"input": charged, "output": 2 * charged}}}
            )
            capped = {"routing": {"max_price": {"input": charged - 0.000001}}}
            with pytest.raises(
                openai.BadRequestError, match=f"llama: input is charged at {charged:g}"
            ) as refused:
                await create(**HELLO, extra_body=capped)
            assert (refused.value.code, refused.value.param) == ("demands_not_met", "routing.max_price")
            # What a policy says of prices is what endpoints may cost.
            bounded = await gw.new_key("harbour", max_input_pico_usd=100_000)
            await gw.client(bounded).chat.completions.create(**HELLO)
            explained = await gw.http.post(
                "/admin/explain",
                json={"request": {**HELLO, **capped}, "tenant": "harbour"},
                headers={"authorization": f"Bearer {MASTER}"},
            )
            assert explained.json()["error"]["code"] == "demands_not_met"
