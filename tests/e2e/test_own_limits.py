"""What a tenant sees of its limits with its own key."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from pool import HELLO, INSTANT, Gateway, gateway, until

from gateway.billing import Order, balance_nano_usd, enter
from gateway.policy import Policy
from gateway.subjects import Subjects
from gateway.windows import Window
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

BUDGET = 10**9


async def usage(gw: Gateway, key: str) -> Any:
    reply = await gw.http.get("/v1/usage", headers={"authorization": f"Bearer {key}"})
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_a_key_without_limits_sees_that_there_are_none(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        found = await usage(gw, gw.key)
        assert (found["limits"], found["budgets"], found["balance_nano_usd"]) == ([], [], None)


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_key_sees_what_is_left_of_all_limits_that_bound_it(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
):
    sections: dict[str, Any] = {"tenants": {"acme": {"policy": {"requests_per_min": 600}}}}
    if kind == "redis":
        sections["shared_state"] = request.getfixturevalue("redis").url
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, **sections) as gw:
        subjects = Subjects(gw.store)
        project = Policy(tokens_per_min=6000, budgets={"month": BUDGET, "total": 2 * BUDGET})
        subjects.create_project("acme", "web", project)
        own = Policy(concurrency=3, budgets={"day": BUDGET})
        made = subjects.create_key("acme", policy=own, project="web")
        await until(lambda: gw._admits(made.secret))
        untouched = await usage(gw, made.secret)
        assert [(each["name"], each["used"], each["left"]) for each in untouched["limits"]] == [
            ("requests_per_min", 0, 600),
            ("tokens_per_min", 0, 6000),
            ("concurrency", 0, 3),
        ]
        await gw.client(made.secret).chat.completions.create(**HELLO)
        (row,) = await gw.rows(1)
        found = await usage(gw, made.secret)
        ours = f"key:{made.record.id}"
        shown = {(each["subject"], each["name"]): each for each in found["limits"]}
        assert shown["tenant:acme", "requests_per_min"]["limit"] == 600
        tokens = shown["project:acme/web", "tokens_per_min"]
        assert 0 <= tokens["used"] <= row.prompt_tokens + row.completion_tokens
        assert tokens["used"] + tokens["left"] == 6000
        assert shown[ours, "concurrency"]["resets_in_s"] is None
        budgets = {(each["subject"], each["period"]): each for each in found["budgets"]}
        assert list(budgets) == [("project:acme/web", "month"), ("project:acme/web", "total"), (ours, "day")]
        for (_, period), each in budgets.items():
            assert each["used_nano_usd"] == row.charge_nano_usd > 0
            total = each["used_nano_usd"] + each["held_nano_usd"] + each["left_nano_usd"]
            assert total == each["limit_nano_usd"] == (2 * BUDGET if period == "total" else BUDGET)
        assert budgets["project:acme/web", "total"]["resets"] is None
        ends = datetime.fromisoformat(budgets[ours, "day"]["resets"])
        assert ends.timestamp() == Window.at(ours, "day", datetime.now(UTC).timestamp()).until_s


async def test_what_calls_under_way_may_cost_is_shown_as_held(tmp_path: Path):
    slow = WorkerSpec(decode_s_per_token=0.05)
    async with SimWorker(slow) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", budgets={"total": BUDGET}, concurrency=2)
        stream = await gw.client(key).chat.completions.create(**{**HELLO, "max_tokens": 500}, stream=True)
        await anext(aiter(stream))
        found = await usage(gw, key)
        (budget,) = found["budgets"]
        assert budget["used_nano_usd"] == 0
        assert budget["held_nano_usd"] >= 500 * 2000  # what 500 tokens cost
        assert [(each["used"], each["left"]) for each in found["limits"]] == [(1, 1)]
        await stream.close()


async def test_what_is_left_of_money_paid_in_advance_is_shown(tmp_path: Path):
    sections: dict[str, Any] = {"tenants": {"harbour": {"billing": {"mode": "prepaid"}}}}
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, **sections) as gw:
        assert (await usage(gw, gw.key))["balance_nano_usd"] == 0
        await asyncio.to_thread(enter, gw.store, Order("payment", "harbour", BUDGET))

        async def is_seen() -> bool:
            return bool((await usage(gw, gw.key))["budgets"][0]["left_nano_usd"])

        await until(is_seen)
        await gw.client().chat.completions.create(**HELLO)
        (row,) = await gw.rows(1)
        found = await usage(gw, gw.key)
        assert found["balance_nano_usd"] == BUDGET - row.charge_nano_usd
        assert found["balance_nano_usd"] == balance_nano_usd(gw.store, "harbour")
        (budget,) = found["budgets"]
        assert (budget["period"], budget["limit_nano_usd"]) == ("total", BUDGET)


async def test_while_redis_is_away_budgets_are_shown_and_rates_are_not_known(tmp_path: Path, redis: Any):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, shared_state=redis.url) as gw:
        key = await gw.new_key("acme", budgets={"total": BUDGET}, requests_per_min=60)
        await gw.client(key).chat.completions.create(**HELLO)
        (row,) = await gw.rows(1)
        redis.stop()
        found = await usage(gw, key)
        assert [(each["limit"], each["used"], each["left"]) for each in found["limits"]] == [(60, None, None)]
        assert found["budgets"][0]["used_nano_usd"] == row.charge_nano_usd
        redis.start()
