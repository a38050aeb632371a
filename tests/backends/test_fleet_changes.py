"""Members that join, change and leave while calls run."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec import structs
from scripted import OK, Server, answers, until
from test_fleet import CALL, SETTINGS, STREAM, outgoing

from backends.base import ConnectFailed, EndpointLeaves
from backends.fleet import Fleet
from backends.kv_events import KvSource
from backends.member import CONFIG
from backends.worker import Access
from routing.types import Endpoint, Price

LIMIT_S = 60.0


def listed(url: str, name: str = "w", **fields: object):
    return Endpoint(name, "m", "sim", url=url, **fields), Access(url)


@asynccontextmanager
async def empty_fleet():
    async with Fleet({}, SETTINGS) as fleet:
        yield fleet


def names(fleet: Fleet) -> list[str]:
    return [endpoint.name for endpoint, _ in fleet.pool("m").snapshot(time.monotonic())]


def lives() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("life of")]


def reply(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def serves(peer):
    """What a probe asks for, and to calls a stream that goes on."""
    while True:
        body = await peer.request()
        head = peer.requests[-1][0]
        if b"GET /v1/models " in head:
            await peer.send(reply(b'{"data":[{"id":"sim","max_model_len":4096}]}'))
        elif b"POST /v1/completions " in head:
            await peer.send(reply(b'{"choices":[{}]}'))
        elif body:
            await peer.send(STREAM, b"5\r\ndata:\r\n")
            await peer.lost()
            return
        else:
            await peer.send(OK)


async def test_who_joins_is_watched_and_planned_with_and_who_leaves_is_neither():
    async with Server(serves) as server, empty_fleet() as fleet:
        fleet.agree(CONFIG, {"m": [listed(f"http://127.0.0.1:{server.port}")]})
        assert names(fleet) == ["w"]
        await until(lambda: fleet.ready, LIMIT_S)
        fleet.agree(CONFIG, {})
        assert names(fleet) == []
        assert fleet.members == ()
        await until(lambda: lives() == [], LIMIT_S)
        asked = len(server.peers[-1].requests)
        await asyncio.sleep(4 * SETTINGS.health_interval_s)
        assert len(server.peers[-1].requests) == asked


async def test_a_stream_that_runs_when_its_worker_leaves_finishes_and_then_the_connections_are_closed():
    async with Server(serves) as server, empty_fleet() as fleet:
        fleet.agree(CONFIG, {"m": [listed(f"http://127.0.0.1:{server.port}")]})
        (member,) = fleet.members
        async with member.attempt(outgoing(stream=True), CALL) as attempt:
            assert await attempt.reply.read() == b"data:"
            fleet.agree(CONFIG, {})
            with pytest.raises(ConnectFailed, match="it has just left the fleet"):
                fleet.member(member.endpoint)
            await asyncio.sleep(0.1)
            assert member.lane.connections >= 1
            assert lives() == ["life of w"]
            peer = next(peer for peer in server.peers if any(b"/chat/" in head for head, _ in peer.requests))
            await peer.send(b"6\r\n high\n\r\n")
            assert await attempt.reply.read() == b" high\n"
        await until(lambda: member.lane.connections == 0 and lives() == [], LIMIT_S)


async def test_what_is_only_said_of_an_endpoint_changes_without_a_new_connection():
    async with Server(serves) as server, empty_fleet() as fleet:
        endpoint, access = listed(f"http://127.0.0.1:{server.port}")
        fleet.agree(CONFIG, {"m": [(endpoint, access)]})
        (member,) = fleet.members
        dearer = structs.replace(endpoint, cost=Price(1, 2), region="eu")
        fleet.agree(CONFIG, {"m": [(dearer, access)]})
        assert fleet.members == (member,)
        assert fleet.pool("m").snapshot(time.monotonic())[0][0] == dearer
        assert fleet.find(endpoint) is member


async def test_another_way_to_an_endpoint_makes_it_another_one():
    async with Server(serves) as old, Server(serves) as new, empty_fleet() as fleet:
        fleet.agree(CONFIG, {"m": [listed(f"http://127.0.0.1:{old.port}")]})
        (before,) = fleet.members
        async with before.attempt(outgoing(stream=True), CALL) as attempt:
            await attempt.reply.read()
            fleet.agree(CONFIG, {"m": [listed(f"http://127.0.0.1:{new.port}")]})
            (after,) = fleet.members
            assert after is not before
            assert fleet.find(before.endpoint) is None
            assert [load.inflight for _, load in fleet.pool("m").snapshot(time.monotonic())] == [0]
        assert names(fleet) == ["w"]
        await until(lambda: lives() == ["life of w"], LIMIT_S)


async def test_a_draining_worker_gets_nothing_new_and_loses_its_calls_shortly_before_it_has_to_go():
    async with Server(serves) as server, empty_fleet() as fleet:
        fleet.agree(CONFIG, {"m": [listed(f"http://127.0.0.1:{server.port}")]})
        (member,) = fleet.members
        await until(lambda: fleet.ready, LIMIT_S)
        async with member.attempt(outgoing(stream=True), CALL) as attempt:
            assert await attempt.reply.read() == b"data:"
            member.departure.announce(3600.0, draining=True)
            assert fleet.pool("m").snapshot(time.monotonic())[0][1].unavailable == "is draining"
            assert not fleet.ready
            assert member.out(time.monotonic())
            began_s = time.monotonic()
            member.departure.announce(1.0, draining=True)
            with pytest.raises(EndpointLeaves):
                await attempt.reply.read()
            assert time.monotonic() - began_s >= 0.7
        assert member.ejection.ejections == 0
        assert member.inflight == 0
        member.departure.cancel()
        assert fleet.ready


async def test_a_call_that_is_taken_from_a_worker_is_not_sent_there_again_by_itself():
    async with Server(answers(reply(b"ok"))) as server, empty_fleet() as fleet:
        fleet.agree(
            CONFIG, {"m": [(Endpoint("w", "m", "m", "openai"), Access(f"http://127.0.0.1:{server.port}"))]}
        )
        (member,) = fleet.members
        async with member.attempt(outgoing(), CALL) as attempt:
            await attempt.reply.read_whole(100)
        server._scripts = ()
        peer = server.peers[0]
        asked = len(peer.requests)

        async def hang(_: object) -> None:
            await asyncio.Event().wait()

        peer.send = hang
        entering = asyncio.create_task(member.attempt(outgoing(), CALL).__aenter__())
        await until(lambda: len(peer.requests) == asked + 1, LIMIT_S)
        member.departure.break_off()
        with pytest.raises(EndpointLeaves):
            await entering
        assert len(server.peers) == 1


async def test_one_that_has_said_when_it_leaves_gets_what_is_done_before():
    async with Server(serves) as server, empty_fleet() as fleet:
        fleet.agree(CONFIG, {"m": [listed(f"http://127.0.0.1:{server.port}")]})
        (member,) = fleet.members
        await until(lambda: fleet.ready, LIMIT_S)
        pool, long = fleet.pool("m"), CALL
        for _ in range(500):
            pool.wrote("", 100_000)
        member.departure.announce(60.0, draining=False)
        now_s = time.monotonic()
        assert len(pool.plan(structs.replace(CALL, max_tokens=10), now_s, 0.5).ranked) == 1
        (rejection,) = pool.plan(long, now_s, 0.5).rejected
        assert rejection.filter == "departure"
        assert rejection.reason.startswith("leaves in 60 s, and the call is expected to take ")
        member.departure.cancel()
        assert len(pool.plan(long, now_s, 0.5).ranked) == 1


async def test_a_source_speaks_for_its_own_endpoints_only(caplog: pytest.LogCaptureFixture):
    async with Server(serves) as server, empty_fleet() as fleet:
        url = f"http://127.0.0.1:{server.port}"
        fleet.agree(CONFIG, {"m": [listed(url, "a")]})
        fleet.agree("registered", {"m": [listed(url, "b"), listed("http://127.0.0.1:9", "a")]})
        assert "a of m is known by config already" in caplog.text
        assert names(fleet) == ["a", "b"]
        assert fleet.members[0].endpoint.url == url
        fleet.agree(CONFIG, {"m": [listed(url, "a"), listed("http://127.0.0.1:8", "b")]})
        assert [member.source for member in fleet.members] == [CONFIG, CONFIG]
        fleet.agree("registered", {})
        assert names(fleet) == ["a", "b"]


async def test_a_thousand_joins_and_leaves_leave_no_task_and_no_descriptor():
    pytest.importorskip("zmq")
    async with Server(serves) as server, empty_fleet() as fleet:
        url = f"http://127.0.0.1:{server.port}"
        access = Access(url, kv_events=KvSource("tcp://127.0.0.1:9"))
        before: tuple[int, int] | None = None
        for turn in range(50):
            wanted = [(Endpoint(f"w{turn}-{n}", "m", "sim", url=url), access) for n in range(20)]
            fleet.agree(CONFIG, {"m": wanted})
            await asyncio.sleep(0.005)
            async with fleet.members[0].attempt(outgoing(stream=True), CALL) as attempt:
                await attempt.reply.read()
            fleet.agree(CONFIG, {})
            await until(lambda: lives() == [], LIMIT_S)
            if before is None:
                await until(lambda: len(server._running) == sum(t.done() for t in server._running), LIMIT_S)
                before = counted()
        await until(lambda: all(task.done() for task in server._running), LIMIT_S)
        await until(lambda: all(now <= then for now, then in zip(counted(), before, strict=True)), LIMIT_S)
        assert len(fleet.pool("m").prefixes) == 0


def counted() -> tuple[int, int]:
    """Open descriptors and tasks."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())
