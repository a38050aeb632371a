"""What a store of limits is to do, it does in memory and in Redis: on one server, behind Sentinels and in a cluster."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from limit_stores import BUDGET, LIMIT, ONE, OTHER, REDIS, budget, granted, opened, rate

from gateway.allowance import MINUTE_NS, Ask, Grant
from gateway.limit_store import LimitStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(params=["memory", *REDIS])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LimitStore]:
    async with opened(request.param, request) as store:
        yield store


async def test_who_does_not_know_that_a_store_has_begun_anew_is_given_no_budget_until_he_does(
    store: LimitStore,
):
    since, (grant,) = await store.exchange(ONE, 0, [budget(need=5)])
    assert grant.lease == 0
    assert grant.settling_ms > 0
    assert await store.exchange(ONE, since, [budget(need=5)]) == (since, [Grant(5, 0, 0)])


async def test_who_asks_for_what_is_left_gets_it_to_the_last_nano_usd(store: LimitStore):
    assert (await granted(store, ONE, budget(need=LIMIT - 1))).lease == LIMIT - 1
    assert await granted(store, OTHER, budget(need=1)) == Grant(1, 0, LIMIT - 1)


async def test_who_needs_more_than_is_left_gets_nothing_of_it(store: LimitStore):
    await granted(store, ONE, budget(need=LIMIT - 1))
    assert (await granted(store, OTHER, budget(need=2))).lease == 0


async def test_who_needs_less_than_he_wants_gets_what_is_left(store: LimitStore):
    await granted(store, ONE, budget(need=LIMIT - 10))
    assert (await granted(store, OTHER, budget(need=2, wanted=50))).lease == 10


async def test_what_one_gives_back_another_can_have(store: LimitStore):
    await granted(store, ONE, budget(need=LIMIT))
    assert (await granted(store, ONE, budget(had=LIMIT, wanted=LIMIT - 5))).lease == LIMIT - 5
    assert (await granted(store, OTHER, budget(need=5))).lease == 5


async def test_what_is_spent_is_no_longer_there_and_never_becomes_less(store: LimitStore):
    assert (await granted(store, ONE, budget(spent=LIMIT - 3, need=4))).lease == 0
    assert await granted(store, OTHER, budget(spent=LIMIT - 90, need=3)) == Grant(3, LIMIT - 3, 0)


async def test_what_somebody_has_stays_his_though_the_limit_is_lowered(store: LimitStore):
    await granted(store, ONE, budget(need=100))
    assert (await granted(store, ONE, budget(had=100, need=100, limit=10))).lease == 100
    assert (await granted(store, OTHER, budget(need=1, limit=10))).lease == 0


async def test_what_is_said_twice_counts_once(store: LimitStore):
    for _ in range(3):
        assert (await granted(store, ONE, budget(had=40, need=40, spent=7, limit=100))).lease == 40
    assert await granted(store, OTHER, budget(need=53, limit=100)) == Grant(53, 7, 40)


async def test_accounts_know_nothing_of_each_other(store: LimitStore):
    day = Ask("tenant:acme/usd/day/2026-11-23", "usd", 10, 0, 0, 10, 10)
    since, _ = await store.exchange(ONE, 0, [])
    _, grants = await store.exchange(ONE, since, [day, budget(need=20)])
    assert [grant.lease for grant in grants] == [10, 20]


async def test_a_rate_has_the_whole_minutes_limit_at_once_and_refills_at_its_own_pace(store: LimitStore):
    began_ns = time.monotonic_ns()
    assert (await granted(store, ONE, rate(need=600_000))).lease == 600_000
    assert (await granted(store, ONE, rate(spent=600_000, need=600_000))).lease == 0
    ends_s = time.monotonic() + 60
    while (await granted(store, ONE, rate(need=1000))).lease < 1000:  # a tenth of a second's
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.01)
    assert time.monotonic_ns() - began_ns >= 0.99 * MINUTE_NS / 600


async def test_what_a_call_did_not_use_of_a_rate_comes_back(store: LimitStore):
    limit = 60  # a second each
    await granted(store, ONE, rate(need=60, limit=limit))
    assert (await granted(store, ONE, rate(spent=60, limit=limit))).spent >= 59
    assert (await granted(store, ONE, rate(spent=-50, need=50, limit=limit))).lease == 50


async def test_a_rate_that_somebody_has_on_lease_does_not_refill_above_the_limit(store: LimitStore):
    await granted(store, ONE, rate(need=400_000))
    await asyncio.sleep(0.01)
    assert (await granted(store, OTHER, rate(need=200_001))).lease == 0
    assert (await granted(store, OTHER, rate(need=200_000))).lease == 200_000


async def test_of_a_process_that_has_ended_only_what_is_in_the_ledger_is_left(store: LimitStore):
    await granted(store, ONE, budget(need=80, limit=100))
    assert await store.accounts_of(ONE) == [BUDGET]
    await store.ended(ONE, {BUDGET: 33})
    assert await store.accounts_of(ONE) == []
    assert await granted(store, OTHER, budget(need=67, limit=100)) == Grant(67, 33, 0)


async def test_a_store_knows_whom_it_has_heard_and_for_how_long_it_gives_nothing(store: LimitStore):
    await store.exchange(ONE, 0, [])
    assert await store.heard() == (0, {ONE})


async def test_a_process_has_no_accounts_where_it_has_given_all_back(store: LimitStore):
    await granted(store, ONE, budget(need=80))
    await granted(store, ONE, budget(had=80))
    assert await store.accounts_of(ONE) == []


async def test_beyond_nine_million_usd_what_is_left_is_exact_to_the_nano_usd(store: LimitStore):
    limit, spent = 10**18, 10**18 - 5  # a billion USD, of which a double knows no unit below 128
    assert (await granted(store, ONE, budget(spent=spent, need=6, limit=limit))).lease == 0
    assert await granted(store, ONE, budget(spent=spent, need=2, limit=limit)) == Grant(2, spent, 0)
    assert (await granted(store, OTHER, budget(spent=spent - 1, need=4, limit=limit))).lease == 0
    assert await granted(store, OTHER, budget(spent=spent, need=3, limit=limit)) == Grant(3, spent, 2)
    await store.ended(ONE, {BUDGET: spent + 1})
    assert (await store.spent())[BUDGET] == spent + 1
    assert (await granted(store, OTHER, budget(spent=spent + 1, had=3, need=4, limit=limit))).lease == 4


async def test_of_very_much_that_is_left_each_gets_what_he_asks_for(store: LimitStore):
    limit = 10**18
    assert (await granted(store, ONE, budget(need=10**15 + 1, limit=limit))).lease == 10**15 + 1
    assert await granted(store, OTHER, budget(need=7, limit=limit)) == Grant(7, 0, 10**15 + 1)


async def test_what_is_taken_to_be_spent_wrongly_is_put_right_and_then_given_to_who_has_read_the_ledger(
    store: LimitStore,
):
    await granted(store, ONE, budget(need=30, limit=100))
    since, _ = await store.exchange(OTHER, 0, [])
    await store.exchange(OTHER, since, [budget(spent=90, limit=100)])
    assert await store.repair({BUDGET: (89, 20)}) == []  # it is not what it was when it was looked at
    assert await store.repair({BUDGET: (90, 20)}) == [BUDGET]
    assert await store.spent() == {BUDGET: 20}
    _, (grant,) = await store.exchange(OTHER, since, [budget(spent=20, need=1, limit=100)])
    assert grant.lease == 0
    assert grant.settling_ms > 0
    # What somebody has stays his.
    assert await granted(store, OTHER, budget(spent=20, need=50, limit=100)) == Grant(50, 20, 30)


@pytest.mark.parametrize("kind", ["memory", *REDIS])
async def test_a_store_that_has_just_begun_gives_of_budgets_only_what_somebody_has_already(
    kind: str, request: pytest.FixtureRequest
):
    async with opened(kind, request, settling_s=0.5) as store:
        grant = await granted(store, ONE, budget(need=1))
        assert grant.lease == 0
        assert 0 < grant.settling_ms <= 500
        assert (await store.heard())[0] <= 500
        assert (await granted(store, OTHER, budget(had=LIMIT - 1, need=LIMIT - 1))).lease == LIMIT - 1
        assert (await granted(store, ONE, rate(need=1))).lease == 1
        await asyncio.sleep(grant.settling_ms / 1000 + 0.01)
        assert (await granted(store, ONE, budget(need=2))).lease == 0
        assert (await granted(store, ONE, budget(need=1))).lease == 1


async def test_a_clock_in_memory_that_is_set_back_takes_nothing_away():
    now_ns = [10**18]
    store = MemoryStore(lambda: now_ns[0])
    await granted(store, ONE, rate(need=100))
    await granted(store, ONE, rate(spent=100))
    now_ns[0] -= 3600 * 10**9
    assert (await granted(store, ONE, rate(need=599_900))).lease == 599_900
