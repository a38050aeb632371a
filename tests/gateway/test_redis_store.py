"""What a store of limits is to do in Redis alone."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from limit_stores import BUDGET, LIMIT, ONE, OTHER, REDIS, budget, granted, opened, rate

from gateway.allowance import Ask
from gateway.limit_store import LimitStoreAway
from gateway.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from loadtest.redis_server import Server


@pytest.fixture
async def in_redis(request: pytest.FixtureRequest) -> AsyncIterator[RedisStore]:
    async with opened("redis", request, dead_after_s=0.2, forgotten_after_s=0.4) as store:
        yield store


async def test_the_calls_of_a_process_that_is_not_heard_of_are_free_again_and_its_budgets_are_not(
    in_redis: RedisStore,
):
    calls = Ask("key:k/calls", "calls", 1, 0, 0, 1, 1)
    await granted(in_redis, ONE, calls)
    await granted(in_redis, ONE, budget(need=LIMIT))
    assert (await granted(in_redis, OTHER, calls)).lease == 0
    await asyncio.sleep(0.25)
    assert (await granted(in_redis, OTHER, calls)).lease == 1
    assert (await granted(in_redis, OTHER, budget(need=1))).lease == 0


async def test_a_process_that_is_not_heard_of_for_long_is_named(in_redis: RedisStore):
    await granted(in_redis, ONE, budget(need=5))
    await asyncio.sleep(0.45)
    await granted(in_redis, OTHER, budget(need=5))
    assert await in_redis.forgotten() == [ONE]
    await in_redis.ended(ONE, dict.fromkeys(await in_redis.accounts_of(ONE), 0))
    assert await in_redis.forgotten() == []


@pytest.mark.parametrize("kind", REDIS)
async def test_who_is_short_is_heard_by_the_others_and_so_is_what_comes_back(
    kind: str, request: pytest.FixtureRequest
):
    async with opened(kind, request) as store:
        await is_heard(store, request.getfixturevalue(REDIS[kind]))


async def is_heard(store: RedisStore, redis: Server) -> None:
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    listening = [
        asyncio.create_task(store.listen(who, lambda what, account: heard.put_nowait((what, account))))
        for who in (ONE, OTHER)
    ]
    with redis.client() as client:
        await until(lambda: client.pubsub_numsub("{tidegate}:news")[0][1] == 2)
    await granted(store, ONE, budget(need=LIMIT))
    await granted(store, OTHER, budget(need=1))
    async with asyncio.timeout(60):
        assert await heard.get() == ("short", BUDGET)
    await granted(store, ONE, budget(had=LIMIT, wanted=5))
    async with asyncio.timeout(60):
        assert await heard.get() == ("back", BUDGET)
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)


async def test_a_redis_that_is_started_anew_knows_nothing_and_gives_nothing_until_others_had_time_to_speak(
    redis: Server, request: pytest.FixtureRequest
):
    async with opened("redis", request, settling_s=0.3) as store:
        await granted(store, ONE, budget())
        await asyncio.sleep(0.35)
        assert (await granted(store, ONE, budget(need=LIMIT))).lease == LIMIT
        redis.stop()
        with pytest.raises(LimitStoreAway):
            await granted(store, OTHER, budget(need=1))
        redis.start()
        assert (await granted(store, OTHER, budget(need=1))).settling_ms > 0
        assert (await granted(store, ONE, budget(had=LIMIT, need=LIMIT))).lease == LIMIT
        await asyncio.sleep(0.35)
        assert (await granted(store, OTHER, budget(need=1))).lease == 0


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.01)


async def test_a_question_that_comes_after_the_next_one_changes_nothing(redis: Server, in_redis: RedisStore):
    assert (await granted(in_redis, ONE, budget(need=10))).lease == 10
    late = RedisStore(redis.url, settling_s=0)  # it has asked less often
    _, leases = await late.exchange(ONE, 0, [budget(had=10)])
    assert leases == []
    await late.close()
    assert (await granted(in_redis, OTHER, budget(need=LIMIT - 9))).lease == 0


async def test_an_account_that_was_thrown_out_begins_the_store_anew(redis: Server, in_redis: RedisStore):
    """By a Redis that may throw out what it takes to be worth least."""
    await granted(in_redis, ONE, budget(need=10))
    since, _ = await in_redis.exchange(OTHER, 0, [])
    with redis.client() as client:
        assert client.delete("{tidegate}:" + BUDGET) == 1
    anew, (grant,) = await in_redis.exchange(OTHER, since, [budget(need=LIMIT)])
    assert (anew > since, grant.lease) == (True, 0)
    assert (await granted(in_redis, ONE, budget(had=10, need=10))).lease == 10
    assert (await granted(in_redis, OTHER, budget(need=LIMIT - 9))).lease == 0
    assert (await granted(in_redis, OTHER, budget(need=LIMIT - 10))).lease == LIMIT - 10


async def test_a_clock_that_is_set_back_takes_nothing_away(redis: Server, in_redis: RedisStore):
    await granted(in_redis, ONE, rate(need=100))
    await granted(in_redis, ONE, rate(spent=100))
    ahead_us = int((time.time() + 3600) * 1e6)
    with redis.client() as client:
        client.hset("{tidegate}:key:k/tokens", "at", ahead_us)
        client.hset("{tidegate}:meta", "since", ahead_us)
    assert (await granted(in_redis, ONE, rate(need=599_900))).lease == 599_900
    grant = await granted(in_redis, ONE, budget(need=5))
    assert (grant.lease, grant.settling_ms) == (5, 0)
