"""How gossip gets from one process to another: by Unix sockets on one machine, by Redis between machines."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from backends.fleet import Fleet, FleetSettings
from backends.worker import Access
from gateway.gossip import EVERY_S, Exchange, LocalLink, RedisLink
from loadtest import redis_server
from routing.gossip import MOST_PIECES, MOST_SAID, Batch, Gossip, Placed, Standings
from routing.types import Call, Endpoint, Tier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

LIMIT_S = 60
TIER = Tier("default", 5.0, 1_000_000.0)


def a_fleet() -> Fleet:
    endpoint = Endpoint("node", "llama", "llama", url="http://127.0.0.1:9")
    return Fleet({"llama": [(endpoint, Access("http://127.0.0.1:9"))]}, FleetSettings())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - nothing says when it is so
            await asyncio.sleep(0.01)


async def knows_of_each_other(*links: LocalLink | RedisLink) -> None:
    """A call that begins at one is known to all others, and so is its end."""
    fleets = [a_fleet() for _ in links]
    exchanges = [
        Exchange(Gossip(f"gateway-{n}", lambda fleet=fleet: fleet.pools)) for n, fleet in enumerate(fleets)
    ]
    async with AsyncExitStack() as stack:
        for exchange, link in zip(exchanges, links, strict=True):
            await stack.enter_async_context(exchange.running(link))
        first, *others = [fleet.members[0] for fleet in fleets]
        run = first.begin(Call("llama", TIER, prompt_tokens=100), 1.0)
        await until(lambda: [member.inflight_elsewhere for member in others] == [1] * len(others))
        run.ended(2.0)
        await until(lambda: [member.inflight_elsewhere for member in others] == [0] * len(others))
        assert first.inflight_elsewhere == 0
        registry = CollectorRegistry()
        registry.register(exchanges[0])
        assert f"tidegate_gossip_peers {len(others)}.0" in generate_latest(registry).decode()


async def test_processes_of_one_machine_know_of_each_others_calls(tmp_path: Path):
    await knows_of_each_other(*(LocalLink(tmp_path, name) for name in ("a", "b", "c")))


async def test_gateways_that_share_a_redis_know_of_each_others_calls():
    path = redis_server.program()
    if path is None:
        pytest.skip("there is no redis-server")
    with redis_server.running(path) as server:
        await knows_of_each_other(*(RedisLink(server.url) for _ in range(3)))


async def test_gossip_goes_on_when_redis_is_back():
    path = redis_server.program()
    if path is None:
        pytest.skip("there is no redis-server")
    with redis_server.running(path) as server:
        heard: list[bytes] = []
        link = RedisLink(server.url)
        async with link.receiving(heard.append):
            await said_until_heard(link, heard)
            server.stop()
            assert await link.send(b"lost") == 0
            server.start()
            heard.clear()
            await said_until_heard(link, heard)


async def said_until_heard(link: RedisLink, heard: list[bytes]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not heard:
            await link.send(b"hello")
            await asyncio.sleep(0.02)


async def test_what_is_not_understood_is_counted_and_changes_nothing(tmp_path: Path):
    fleet = a_fleet()
    exchange = Exchange(Gossip("a", lambda: fleet.pools))
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with exchange.running(LocalLink(tmp_path, "a")):
        with stranger:
            for message in (b"", b"\xff\xff", b"{}", b"\x94\x01\x02\x03\x04"):
                stranger.sendto(message, str(tmp_path / "a.gossip"))
        registry = CollectorRegistry()
        registry.register(exchange)
        await until(lambda: 'batches_total{what="not_understood"} 4.0' in generate_latest(registry).decode())
    assert fleet.members[0].inflight_elsewhere == 0


class Listened:
    """A link to so many others."""

    def __init__(self, others: int) -> None:
        self.others = others
        self.sent = 0

    async def send(self, message: bytes) -> int:
        del message
        self.sent += 1
        return self.others

    @asynccontextmanager
    async def receiving(self, take: Callable[[bytes], None]) -> AsyncIterator[None]:
        del take
        yield


@pytest.mark.parametrize(("others", "batches"), [(0, 10), (1, 200), (16, 200), (32, 100), (1000, 20)])
async def test_where_many_listen_each_says_what_it_has_to_say_less_often(others: int, batches: int):
    fleet, link = a_fleet(), Listened(others)
    exchange = Exchange(Gossip("a", lambda: fleet.pools))
    call = Call("llama", TIER, prompt_tokens=1000)
    for number in range(200):
        fleet.members[0].begin(call, number * EVERY_S)
        await exchange.round(link, number * EVERY_S)
    assert link.sent == pytest.approx(batches, abs=1)


async def test_a_process_that_does_not_read_holds_nobody_up(tmp_path: Path):
    link = LocalLink(tmp_path, "a")
    busy = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    async with link.receiving(lambda _: None):
        with busy:
            busy.bind(str(tmp_path / "b.gossip"))
            sent = [await link.send(b"x" * 1000) for _ in range(2000)]
        assert sent[0] == 1
        assert sent[-1] == 0


async def test_the_largest_batch_fits_into_a_datagram(tmp_path: Path):
    big = 2**64 - 1
    said = [Standings(big, 9999, 9999, 9999, *(1e300,) * 9, "model_missing")] * MOST_SAID
    placed = [Placed(big, (big,) * 1024, None, 1e300)] * (MOST_PIECES // 1024 + 1)
    message = msgspec.msgpack.encode(Batch("x" * 40, big, said, placed))
    one, other = (LocalLink(tmp_path, name) for name in "ab")
    heard: list[bytes] = []
    async with one.receiving(heard.append), other.receiving(lambda _: None):
        assert await other.send(message) == 1
        await until(lambda: heard == [message])
