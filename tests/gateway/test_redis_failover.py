"""Limits and gossip when another server takes the place of the one that had them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from limit_stores import LIMIT, ONE, OTHER, budget, granted
from redis_fleet import Cluster, Watched

from gateway.gossip import RedisLink
from gateway.limit_store import LimitStoreAway
from gateway.redis_store import RedisStore
from loadtest import redis_server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from gateway.allowance import Grant

LIMIT_S = 60
FLEETS = {"sentinel": Watched, "cluster": Cluster}


@pytest.fixture
def program() -> str:
    found = redis_server.program()
    if found is None:
        pytest.skip("Redis is not installed: there is no redis-server on PATH")
    return found


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest, program: str, tmp_path: Path) -> Iterator[Watched | Cluster]:
    """Of the test's own: it kills some of it."""
    with ExitStack() as stack:
        yield FLEETS[request.param](program, tmp_path, stack)


async def once_back(ask: Callable[[], Awaitable[Grant]]) -> Grant:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return await ask()
            except LimitStoreAway:
                await asyncio.sleep(0.1)


async def said_until_heard(link: RedisLink, heard: list[bytes]) -> None:
    heard.clear()
    async with asyncio.timeout(LIMIT_S):
        while not heard:
            await link.send(b"hello")
            await asyncio.sleep(0.02)


async def test_the_replica_of_a_primary_that_is_killed_gives_nothing_before_everybody_could_speak(
    fleet: Watched | Cluster,
):
    """Of the last grants it may know nothing; then it goes on, and gossip with it."""
    store, link = RedisStore(fleet.url, settling_s=1), RedisLink(fleet.url)
    heard: list[bytes] = []
    async with link.receiving(heard.append):
        await said_until_heard(link, heard)
        await asyncio.sleep((await granted(store, ONE, budget())).settling_ms / 1000 + 0.05)
        assert (await granted(store, ONE, budget(need=LIMIT - 7))).lease == LIMIT - 7
        await asyncio.to_thread(fleet.kill_primary)
        with pytest.raises(LimitStoreAway):
            await granted(store, OTHER, budget(need=1))
        grant = await once_back(lambda: granted(store, OTHER, budget(need=7)))
        assert grant.lease == 0
        assert grant.settling_ms > 0
        assert (await granted(store, ONE, budget(had=LIMIT - 5, need=LIMIT - 5))).lease == LIMIT - 5
        await asyncio.sleep(grant.settling_ms / 1000 + 0.05)
        assert (await granted(store, OTHER, budget(need=6))).lease == 0
        assert (await granted(store, OTHER, budget(need=5))).lease == 5
        await said_until_heard(link, heard)
    await store.close()


async def test_keys_that_are_moved_to_another_server_of_a_cluster_are_followed(redis_cluster: Cluster):
    store, link = RedisStore(redis_cluster.url, settling_s=0), RedisLink(redis_cluster.url)
    heard: list[bytes] = []
    async with link.receiving(heard.append):
        for _ in range(2):
            await said_until_heard(link, heard)
            assert (await granted(store, ONE, budget(had=9, need=9))).lease == 9
            await asyncio.to_thread(redis_cluster.move_slot)
            since, _ = await store.exchange(OTHER, 0, [])
            assert (await granted(store, OTHER, budget(need=LIMIT - 8))).lease == 0
            assert (await granted(store, OTHER, budget(need=LIMIT - 9))).lease == LIMIT - 9
            assert (await granted(store, OTHER, budget(had=LIMIT - 9))).lease == 0
            assert (await store.exchange(OTHER, since, []))[0] == since
            await said_until_heard(link, heard)
    await store.close()


async def test_a_cluster_without_channels_of_one_slot_carries_gossip_by_those_of_all(
    program: str, tmp_path: Path
):
    """As those before Redis 7."""
    without = ["--rename-command", "SPUBLISH", "nothing", "--rename-command", "SSUBSCRIBE", "nothing2"]
    with ExitStack() as stack:
        cluster = Cluster(program, tmp_path, stack, *without, replicas=False)
        link = RedisLink(cluster.url)
        heard: list[bytes] = []
        async with link.receiving(heard.append):
            await said_until_heard(link, heard)
