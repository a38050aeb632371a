import asyncio
import time
from contextlib import asynccontextmanager, suppress

import pytest
from scripted import OK, Script, Server, answers, read_whole, until

from backends.base import AttemptFailed, CallRejected, Overloaded, ReplyBroken, ReplyMalformed
from backends.fleet import Fleet, FleetSettings
from backends.incoming import Patience
from backends.lane import LaneLimits
from backends.worker import Access, Outgoing
from loadtest.worker import Fault, SimWorker, WorkerSpec
from routing.types import Call, Endpoint, Tier

SETTINGS = FleetSettings(
    LaneLimits(connections=4), Patience(2.0, 1.0, 5.0), health_interval_s=0.05, health_timeout_s=0.5
)
CHAT = b'{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":3%b}'
CALL = Call("m", Tier("default", 5.0, 1e6), prompt_tokens=1)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def outgoing(*, stream: bool = False, body: bytes = CHAT % b"") -> Outgoing:
    return Outgoing("/chat/completions", body, "rid", stream, time.monotonic() + 10.0)


@asynccontextmanager
async def fleet_at(*urls: str, settings: FleetSettings = SETTINGS, kind: str = "worker"):
    listed = [(Endpoint(f"w{n}", "m", "sim", kind=kind, url=url), Access(url)) for n, url in enumerate(urls)]
    async with Fleet({"m": listed}, settings) as fleet:
        yield fleet, fleet.members


@asynccontextmanager
async def hosted(*scripts: Script):
    """A scripted endpoint that is not checked, so that every connection is a call's."""
    async with (
        Server(*scripts) as server,
        fleet_at(f"http://127.0.0.1:{server.port}/v1", kind="openai") as (fleet, members),
    ):
        yield server, fleet, members[0]


def unavailable(member) -> str | None:
    member.changed()
    return member.load(time.monotonic()).unavailable


def reply(status: int, body: bytes = b"{}", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), headers, body)


async def test_a_worker_is_ready_once_its_health_is_known():
    async with (
        SimWorker(WorkerSpec(decode_s_per_token=0)) as worker,
        fleet_at(worker.url) as (fleet, members),
    ):
        assert not fleet.ready
        await until(lambda: fleet.ready)
        assert unavailable(members[0]) is None


async def test_a_hosted_endpoint_is_ready_without_being_asked():
    async with hosted(answers(OK)) as (server, fleet, _):
        assert fleet.ready
        await asyncio.sleep(0.1)
        assert not server.peers


async def test_a_worker_that_dies_is_found_by_its_checks_and_found_again_when_it_is_back():
    async with (
        SimWorker(WorkerSpec(decode_s_per_token=0)) as worker,
        fleet_at(worker.url) as (fleet, members),
    ):
        await until(lambda: fleet.ready)
        port = int(worker.url.rpartition(":")[2])
        await worker.__aexit__(None, None, None)
        await until(lambda: "health check failed" in (unavailable(members[0]) or ""))
        assert not fleet.ready
        async with SimWorker(WorkerSpec(port=port, decode_s_per_token=0)):
            await until(lambda: fleet.ready)


async def test_one_unreachable_worker_leaves_the_fleet_ready():
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker:
        async with fleet_at(worker.url, "http://127.0.0.1:9") as (fleet, members):
            await until(lambda: all(member.checked for member in members))
            snapshot = fleet.pool("m").snapshot(time.monotonic())
            assert [load.unavailable is None for _, load in snapshot] == [True, False]
            assert fleet.ready


async def test_calls_are_counted_while_their_block_is_open():
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker, fleet_at(worker.url) as (_, members):
        member = members[0]
        async with member.attempt(outgoing(), CALL) as attempt:
            assert member.inflight == 1
            assert member.load(time.monotonic()).inflight == 1
            assert b'"choices"' in await read_whole(attempt.reply)
        assert member.inflight == 0


@pytest.mark.parametrize("fault", ["hang", "reset", "stall", "garbage", "status", "truncated", "oversized"])
@pytest.mark.parametrize("stream", [b"", b',"stream":true'], ids=["whole", "stream"])
async def test_no_failure_leaves_a_call_counted(fault: str, stream: bytes):
    patience = FleetSettings(SETTINGS.lane, Patience(0.2, 0.2, 0.5), 0.05, 0.5)
    spec = WorkerSpec(decode_s_per_token=0, faults=(Fault(fault, after_chunks=1),))
    async with SimWorker(spec) as worker, fleet_at(worker.url, settings=patience) as (_, members):
        with suppress(AttemptFailed):
            async with members[0].attempt(outgoing(stream=bool(stream), body=CHAT % stream), CALL) as attempt:
                while await attempt.reply.read():
                    pass
        assert members[0].inflight == 0
        assert members[0].speed.load(time.monotonic(), 0).pending_work == 0.0


async def test_leaving_at_any_moment_leaves_no_call_counted():
    async with (
        SimWorker(WorkerSpec(decode_s_per_token=0.002)) as worker,
        fleet_at(worker.url) as (_, members),
    ):
        member = members[0]

        async def call() -> None:
            async with member.attempt(outgoing(stream=True, body=CHAT % b',"stream":true'), CALL) as attempt:
                while await attempt.reply.read():
                    attempt.first_token()

        for step in range(40):
            task = asyncio.create_task(call())
            await asyncio.sleep(step * 0.0003)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert member.inflight == 0
        assert unavailable(member) is None
        assert member.ejection.ejections == 0


async def fails(member, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        async with member.attempt(outgoing(), CALL):
            pass


@pytest.mark.parametrize(("header", "least_s"), [(b"retry-after: 7\r\n", 6.5), (b"", 0.5)])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_endpoint_is_left_alone_for_as_long_as_it_asked(
    status: int, header: bytes, least_s: float
):
    async with hosted(answers(reply(status, headers=header))) as (_, _, member):
        await fails(member, Overloaded)
        load = member.load(time.monotonic())
        assert load.unavailable == "asked for a pause"
        assert least_s < load.retry_after_s <= least_s + 0.5
        assert member.ejection.ejections == 0


async def test_a_worker_that_closes_without_a_reply_is_ejected():
    async def script(peer):
        await peer.request()
        peer.reset()

    async with hosted(script) as (_, _, member):
        for _ in range(5):
            await fails(member, ReplyBroken)
        assert "ejected" in unavailable(member)
        assert member.inflight == 0


async def test_the_client_s_own_mistakes_never_eject():
    async with hosted(answers(reply(400, b'{"error":{"message":"no"}}'))) as (_, _, member):
        for _ in range(20):
            await fails(member, CallRejected)
        assert unavailable(member) is None


async def test_a_failure_found_while_reading_is_the_endpoint_s():
    async with hosted(answers(reply(200, b"<html>"))) as (_, _, member):
        for _ in range(5):
            with pytest.raises(ReplyMalformed):  # noqa: PT012 - the failure is the block's own
                async with member.attempt(outgoing(), CALL) as attempt:
                    await read_whole(attempt.reply)
                    raise ReplyMalformed
        assert "ejected" in unavailable(member)


async def test_an_endpoint_in_full_use_takes_no_more_calls():
    async def script(peer):
        await peer.request()
        await peer.send(STREAM)
        await peer.lost()

    async with hosted(script) as (_, _, member):
        attempts = [member.attempt(outgoing(stream=True), CALL) for _ in range(4)]
        for attempt in attempts:
            await attempt.__aenter__()
        assert unavailable(member) == "busy with 4 calls"
        for attempt in attempts:
            await attempt.__aexit__(None, None, None)
        assert unavailable(member) is None


async def test_connections_are_closed_when_the_fleet_is_left():
    async with hosted(answers(OK)) as (_, _, member):
        async with member.attempt(outgoing(), CALL) as attempt:
            await read_whole(attempt.reply)
        assert member.lane.connections == 1
    await until(lambda: member.lane.connections == 0)
