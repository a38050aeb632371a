"""Which connection an exchange gets, and what becomes of it."""

import asyncio
import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest
from scripted import OK, answers, ask, exchange, lane_at, serving, until

from backends.base import AttemptFailed, CallTimeout, ConnectFailed, ConnectTimeout, LaneFull, ReplyBroken
from backends.exchange import CROSSED_S
from backends.incoming import Patience
from backends.lane import LaneLimits

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def gone_before_its_reply(*, reset: bool):
    async def script(peer):
        await peer.request()
        if reset:
            peer.reset()
        else:
            await peer.fin()

    return script


async def test_the_connection_used_last_is_used_next():
    async with serving(answers(OK)) as (server, lane):
        async with exchange(lane) as first, exchange(lane) as second:
            await first.read_whole(9)
            await second.read_whole(9)
        # `second` was given back first, so `first` is the last one used.
        for _ in range(3):
            await ask(lane)
        assert [len(peer.requests) for peer in server.peers] == [4, 1]


async def test_an_idle_connection_is_closed_in_time():
    async with serving(answers(OK), idle_s=0.05) as (server, lane):
        await ask(lane)
        assert lane.connections == 1
        await until(lambda: lane.connections == 0)
        await ask(lane)
        assert len(server.peers) == 2


async def test_a_connection_in_use_does_not_count_as_idle():
    async with serving(answers(STREAM + b"2\r\nok\r\n"), idle_s=0.01) as (_, lane):
        async with exchange(lane) as reply:
            assert await reply.read() == b"ok"
            await asyncio.sleep(0.05)
            assert lane.connections == 1


async def test_no_more_connections_are_opened_than_the_limit_allows():
    async with serving(answers(OK), connections=2, idle_s=0.05) as (server, lane):
        async with exchange(lane), exchange(lane):
            with pytest.raises(LaneFull):
                await ask(lane)
        await until(lambda: lane.connections == 0)
        assert await ask(lane) == b"ok"
        assert len(server.peers) == 3


async def test_a_lane_is_not_full_before_its_limit_is_reached():
    async with serving(answers(OK), connections=20) as (server, lane):
        replies = await asyncio.gather(*[ask(lane) for _ in range(20)])
        assert replies == [b"ok"] * 20
        assert len(server.peers) == 20
        outcomes = await asyncio.gather(*[ask(lane) for _ in range(21)], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(LaneFull) == 1


@pytest.mark.parametrize("reset", ["fin", "reset"])
async def test_a_connection_that_idled_and_was_closed_is_not_used(reset: str):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await closing.wait()
        if reset == "reset":
            peer.reset()
        else:
            await peer.fin()

    closing = asyncio.Event()
    async with serving(script, answers(OK)) as (server, lane):
        await ask(lane)
        closing.set()
        await until(lambda: lane.connections == 0)
        assert await ask(lane) == b"ok"
        assert [len(peer.requests) for peer in server.peers] == [1, 1]


async def test_a_request_that_crosses_a_close_is_asked_once_more_on_a_new_connection():
    """The worker's FIN is under way when the request is sent: the loop has not had the time to read it."""

    async def script(peer):
        await peer.request()
        peers.append(peer)
        await peer.send(OK)
        await asyncio.Event().wait()

    peers = []
    async with serving(script, answers(OK)) as (server, lane):
        for _ in range(50):
            await ask(lane)
            # No await between the two: the client can have seen nothing yet.
            peers.pop()._writer.close()
            assert await ask(lane) == b"ok"
            await lane.close()
            server.peers.clear()


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "fin"])
async def test_a_reused_connection_lost_before_a_byte_of_the_reply_is_replaced_once(reset):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await gone_before_its_reply(reset=reset)(peer)

    async with serving(script, answers(OK)) as (server, lane):
        await ask(lane, b"first")
        assert await ask(lane, b"second") == b"ok"
        bodies = [[body for _, body in peer.requests] for peer in server.peers]
        assert bodies == [[b"first", b"second"], [b"second"]]


async def test_a_request_that_crosses_the_end_of_its_worker_was_seen_by_nobody():
    async def script(peer):
        await peer.request()
        peers.append(peer)
        await peer.send(OK)
        await asyncio.Event().wait()

    async def seen() -> bool:
        async with serving(script) as (server, lane):
            await ask(lane)
            # No await between these: neither the end of the listener nor that of the connection can have been seen yet.
            server.stop_listening()
            peers.pop()._writer.transport.abort()
            with pytest.raises((ConnectFailed, ReplyBroken)) as failed:
                await ask(lane)
            return failed.type is ReplyBroken

    peers = []
    for _ in range(
        20
    ):  # a machine that stands still for a moment makes it look as if the worker had died of it
        if not await seen():
            return
    pytest.fail("each time the worker was taken to have died of the request")


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "fin"])
async def test_the_replacement_is_not_replaced_again(reset):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await gone_before_its_reply(reset=reset)(peer)

    async with serving(script, gone_before_its_reply(reset=reset), answers(OK)) as (server, lane):
        await ask(lane)
        with pytest.raises(ReplyBroken, match="before its reply"):
            await ask(lane)
        assert len(server.peers) == 2


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "fin"])
async def test_a_new_connection_lost_before_the_reply_is_not_replaced(reset):
    async with serving(gone_before_its_reply(reset=reset), answers(OK)) as (server, lane):
        with pytest.raises(ReplyBroken, match="before its reply"):
            await ask(lane)
        assert len(server.peers) == 1


async def test_a_worker_that_goes_down_under_a_call_on_a_reused_connection_is_not_one_that_cannot_be_reached():
    asked, deaf = asyncio.Event(), asyncio.Event()

    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.request()
        asked.set()
        await deaf.wait()
        peer.reset()

    async with serving(script) as (server, lane):
        assert await ask(lane) == b"ok"
        second = asyncio.create_task(ask(lane))
        await asked.wait()
        server.stop_listening()
        # It has had the time to read the request, and to die of it. Twice: a timer of uvloop may go off a bit early.
        await asyncio.sleep(2 * CROSSED_S)
        deaf.set()
        with pytest.raises(ReplyBroken):
            await second


@pytest.mark.parametrize("start", [b"H", b"HTTP/1.1 2", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_reused_connection_lost_after_a_byte_of_the_reply_is_not_replaced(start: bytes):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(start)
        await peer.fin()

    async with serving(script, answers(OK)) as (server, lane):
        await ask(lane)
        with pytest.raises(ReplyBroken, match="in the middle"):
            await ask(lane)
        assert len(server.peers) == 1


async def test_a_reused_connection_that_only_stays_silent_is_not_replaced():
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await peer.lost()

    async with serving(script, answers(OK)) as (server, lane):
        await ask(lane)
        with pytest.raises(AttemptFailed):
            await ask(lane, b"", Patience(0.05, 1.0, 1.0))
        assert len(server.peers) == 1


@pytest.mark.parametrize("surplus", [b"x", OK, b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"])
async def test_bytes_that_nobody_asked_for_close_an_idle_connection(surplus: bytes):
    async def script(peer):
        await peer.request()
        await peer.send(OK)
        await speaking.wait()
        await peer.send(surplus)
        await peer.lost()

    speaking = asyncio.Event()
    async with serving(script, answers(OK)) as (server, lane):
        await ask(lane)
        speaking.set()
        await until(lambda: lane.connections == 0)
        assert await ask(lane) == b"ok"
        assert len(server.peers) == 2


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "fin"])
async def test_a_connection_closed_as_soon_as_it_is_made_fails_at_once(reset):
    async def script(peer):
        if reset:
            peer.reset()
        else:
            await peer.fin()

    async with serving(script) as (_, lane):
        for _ in range(100):
            with pytest.raises((ReplyBroken, ConnectFailed)):
                async with asyncio.timeout(1):
                    await ask(lane)
        await until(lambda: lane.connections == 0)


@pytest.mark.parametrize("greeting", [b"220 smtp.example.com\r\n", b"\x00"])
async def test_a_server_that_speaks_first_never_hangs_a_call(greeting: bytes):
    async def script(peer):
        await peer.send(greeting)
        await peer.lost()

    async with serving(script) as (_, lane):
        for _ in range(50):
            try:
                async with asyncio.timeout(1):
                    await ask(lane)
            except AttemptFailed:
                pass


async def test_closing_a_lane_ends_what_is_under_way_on_it():
    async with serving(answers(STREAM + b"2\r\nok\r\n")) as (server, lane):
        async with exchange(lane) as reply:
            await reply.read()
            await lane.close()
            with pytest.raises(ReplyBroken):
                await reply.read()
        await until(lambda: lane.connections == 0)
        assert len(server.peers) == 1


async def test_thousands_of_exchanges_with_aborts_leak_no_descriptor_and_no_task():
    async def script(peer):
        while True:
            body = await peer.request()
            if body == b"half":
                await peer.send(STREAM, b"2\r\nok\r\n")
            elif body == b"reset":
                peer.reset()
                return
            else:
                await peer.send(OK)

    async def one(number: int) -> None:
        kind = [b"whole", b"half", b"reset", b"cancel"][number % 4]
        try:
            if kind == b"cancel":
                async with asyncio.timeout(0.0001 * (number % 30)):
                    await ask(lane, b"half")
            elif kind == b"half":
                async with exchange(lane, kind) as reply:
                    await reply.read()
            else:
                await ask(lane, kind)
        except (AttemptFailed, TimeoutError):
            pass

    async with serving(script) as (server, lane):
        await ask(lane)
        before = descriptors()
        for start in range(0, 2000, 40):
            await asyncio.gather(*[one(number) for number in range(start, start + 40)])
            server.peers.clear()
        await lane.close()
        await until(lambda: lane.connections == 0)
        await until(lambda: descriptors() <= before)
        await until(lambda: len(asyncio.all_tasks()) < 10)


def test_idle_connections_are_given_up_before_vllm_closes_them():
    assert LaneLimits().idle_s < 5.0


def full_backlog() -> tuple[socket.socket, list[socket.socket]]:
    """A listener that never accepts and whose queue is full: the next SYN is dropped."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    waiting = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.connect(listener.getsockname())
        waiting.append(client)
    return listener, waiting


@pytest.mark.parametrize("ends_first", [False, True], ids=["connect_s", "ends_s"])
async def test_a_connection_that_is_not_made_in_time_fails(ends_first):
    listener, waiting = full_backlog()
    await asyncio.sleep(0.05)
    connect_s, call_s = (9.0, 0.1) if ends_first else (0.1, 9.0)
    begun_s = time.monotonic()
    try:
        async with lane_at(listener.getsockname()[1], connect_s=connect_s) as lane:
            with pytest.raises(CallTimeout if ends_first else ConnectTimeout):
                async with exchange(lane, ends_s=begun_s + call_s):
                    pass
            assert 0.09 < time.monotonic() - begun_s < 5.0
            assert lane.connections == 0
    finally:
        for sock in (listener, *waiting):
            sock.close()


async def test_a_refused_connection_fails_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with lane_at(port) as lane:
        with pytest.raises(ConnectFailed, match="cannot connect"):
            await ask(lane)
        assert lane.connections == 0


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid", "a..b"])
async def test_a_host_that_has_no_address_fails_the_attempt(host: str):
    async with lane_at(1, host=host) as lane:
        with pytest.raises(ConnectFailed):
            await ask(lane)
        assert lane.connections == 0


async def test_leaving_while_connecting_leaves_nothing_behind():
    listener, waiting = full_backlog()
    try:
        async with lane_at(listener.getsockname()[1]) as lane:
            task = asyncio.create_task(ask(lane))
            await until(lambda: lane.connections == 1)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert lane.connections == 0
    finally:
        for sock in (listener, *waiting):
            sock.close()
