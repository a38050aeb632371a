"""A Redis primary that is killed while two gateways spend a budget from it: the replica that Sentinels name then goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from gateway_process import database_url, gateway_beside
from redis_fleet import Watched
from test_shared_limits import (
    charge,
    cost_of_one,
    given_back,
    key_with_budget,
    ledger_in,
    metric,
    models,
    settled,
    spec,
    told_more,
    until_spent,
)

from loadtest import redis_server
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path

CALLERS, BEFORE, IN_ALL = 8, 20, 80
"""Calls at once, those that end before it is killed, and those that the budget is enough for."""


async def test_calls_go_on_at_the_replica_and_not_a_nano_usd_too_much_is_spent(tmp_path: Path):
    program = redis_server.program()
    if program is None:
        pytest.skip("Redis is not installed: there is no redis-server on PATH")
    async with SimWorker(spec()) as worker, AsyncExitStack() as stack:
        fleet = await asyncio.to_thread(Watched, program, tmp_path, stack)
        one, held = await cost_of_one(worker)
        budget = IN_ALL * one + held
        key = key_with_budget(database_url(tmp_path), budget)
        shared = {"database": database_url(tmp_path), "shared_state": fleet.url}
        starting = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            running = gateway_beside(tmp_path / name, models(worker), **shared)
            starting.append(stack.enter_async_context(running))
        gateways = await asyncio.gather(*starting)
        await asyncio.to_thread(fleet.be_ready)
        told: Counter[str] = Counter()
        calling = [asyncio.create_task(until_spent(gateways[n % 2], key, told)) for n in range(CALLERS)]
        await told_more(told, "", BEFORE)
        fleet.now().stop()
        ended = [each for calls in await asyncio.gather(*calling) for each in calls]
        await settled(*gateways)
        account = await given_back(fleet)
        away = [await metric(gateway, "tidegate_limits_store_away") for gateway in gateways]

    spent, ledger = sum(map(charge, ended)), ledger_in(database_url(tmp_path))
    # Nobody was refused while money was free: there is less left than such a call may cost.
    assert budget - held < spent <= budget
    assert int(account["spent"]) == ledger.by_hour == ledger.entered == spent
    assert away == [0, 0]
    assert any("limits cannot be looked up" in (tmp_path / name / "gateway.log").read_text() for name in "ab")
    assert set(told) <= {"", "insufficient_quota", "limits_unavailable", "budget_held"}
