"""How long an exchange waits, how much it holds, and how fast it lets go."""

import asyncio
import time
from contextlib import suppress
from typing import Self

import pytest
from scripted import OK, PATIENT, answers, ask, exchange, head, read_all, serving, until

from backends.base import (
    CallTimeout,
    FirstByteTimeout,
    ReplyLate,
    SilenceTimeout,
)
from backends.incoming import HIGH_WATER_BYTES, Patience

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
SHORT_S = 0.1


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def silent(*pieces: bytes):
    async def script(peer):
        await peer.request()
        await peer.send(*pieces)
        await peer.lost()

    return script


def dripping(start: bytes, piece: bytes, gap_s: float, count: int, end: bytes = b""):
    async def script(peer):
        await peer.request()
        await peer.send(start)
        for _ in range(count):
            await asyncio.sleep(gap_s)
            await peer.send(piece)
        await peer.send(end)
        await peer.lost()

    return script


class Timed:
    def __enter__(self) -> Self:
        self.start_s = time.monotonic()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.took_s = time.monotonic() - self.start_s


@pytest.mark.parametrize(
    ("pieces", "patience", "expected"),
    [
        ((), Patience(SHORT_S, 9.0, 9.0), FirstByteTimeout),
        ((), Patience(9.0, 9.0, SHORT_S), CallTimeout),
        ((b"HTTP/1.1 20",), Patience(SHORT_S, 9.0, 9.0), FirstByteTimeout),
        ((b"HTTP/1.1 100 Continue\r\n\r\n",), Patience(SHORT_S, 9.0, 9.0), FirstByteTimeout),
        ((STREAM,), Patience(9.0, SHORT_S, 9.0), SilenceTimeout),
        ((STREAM + chunk(b"ok"),), Patience(9.0, SHORT_S, 9.0), SilenceTimeout),
        ((STREAM + chunk(b"ok"),), Patience(9.0, 9.0, SHORT_S), CallTimeout),
    ],
)
@pytest.mark.parametrize("whole", ["whole", "stream"])
async def test_each_wait_has_its_own_failure(
    pieces: tuple[bytes, ...], patience: Patience, expected: type[ReplyLate], whole: str
):
    async with serving(silent(*pieces)) as (server, lane):
        with Timed() as timed, pytest.raises(ReplyLate) as failure:
            async with exchange(lane, b"", patience) as reply:
                await (reply.read_whole(1000) if whole == "whole" else read_all(reply))
        assert type(failure.value) is expected
        assert SHORT_S * 0.9 < timed.took_s < SHORT_S + 0.5
        await until(lambda: server.peers[0].lost_s is not None)


async def test_a_reply_whose_head_drips_in_is_late_all_the_same():
    async with serving(dripping(b"HTTP/1.1 200 OK\r\nx: ", b"y", 0.02, 100)) as (_, lane):
        with Timed() as timed, pytest.raises(FirstByteTimeout):
            await ask(lane, b"", Patience(SHORT_S, 9.0, 9.0))
        assert timed.took_s < 0.5


@pytest.mark.parametrize("whole", ["whole", "stream"])
async def test_silence_is_counted_from_the_last_byte(whole: str):
    script = dripping(STREAM, chunk(b"x"), 0.05, 8, b"0\r\n\r\n")
    async with serving(script) as (_, lane), exchange(lane, b"", Patience(9.0, 0.25, 9.0)) as reply:
        read = reply.read_whole(1000) if whole == "whole" else read_all(reply)
        assert await read == b"xxxxxxxx"


async def test_the_whole_call_ends_in_time_though_bytes_keep_coming():
    async with serving(dripping(STREAM, chunk(b"x"), 0.01, 1000)) as (_, lane):
        for whole in (True, False):
            with Timed() as timed, pytest.raises(CallTimeout):
                async with exchange(lane, b"", Patience(9.0, 9.0, 0.2)) as reply:
                    await (reply.read_whole(100_000) if whole else read_all(reply))
            assert 0.15 < timed.took_s < 0.6


async def test_the_time_a_reader_takes_is_not_the_worker_s_silence():
    async with serving(silent(STREAM + chunk(b"one"))) as (_, lane):
        async with exchange(lane, b"", Patience(9.0, SHORT_S, 9.0)) as reply:
            assert await reply.read() == b"one"
            await asyncio.sleep(3 * SHORT_S)
            with Timed() as timed, pytest.raises(SilenceTimeout):
                await reply.read()
            assert timed.took_s > SHORT_S * 0.9


async def test_the_call_s_own_deadline_holds_in_every_state():
    async with serving(silent(), silent(STREAM), silent(STREAM + chunk(b"ok"))) as (_, lane):
        for _ in range(3):
            with Timed() as timed, pytest.raises(CallTimeout):
                async with exchange(lane, ends_s=time.monotonic() + SHORT_S) as reply:
                    await read_all(reply)
            assert timed.took_s < 0.5


async def test_a_call_past_its_deadline_is_not_sent():
    async with serving(answers(OK)) as (server, lane):
        await ask(lane)
        for _ in range(2):
            with pytest.raises(CallTimeout):
                async with exchange(lane, ends_s=time.monotonic()):
                    pass
        assert sum(len(peer.requests) for peer in server.peers) == 1


async def test_what_had_come_before_the_deadline_can_still_be_read():
    async with serving(silent(STREAM + chunk(b"ok"))) as (_, lane):
        async with exchange(lane, b"", Patience(9.0, 9.0, SHORT_S)) as reply:
            await asyncio.sleep(2 * SHORT_S)
            assert await reply.read() == b"ok"
            with pytest.raises(CallTimeout):
                await reply.read()


async def flood(peer):
    await peer.request()
    peer.write(STREAM)
    block = chunk(bytes(16_384))
    while True:
        peer.write(block)
        await peer._writer.drain()
        peer.sent += len(block)


async def settled(read) -> int:
    """A figure, once it has stopped growing."""
    last = -1
    while read() != last:
        last = read()
        await asyncio.sleep(0.1)
    return last


async def test_a_reader_that_does_not_read_holds_no_more_than_a_fixed_buffer():
    async def script(peer):
        peer.sent = 0
        await flood(peer)

    async with serving(script) as (server, lane), exchange(lane, b"", PATIENT) as reply:
        await until(lambda: getattr(server.peers[0], "sent", 0) > 0)
        sent = await settled(lambda: server.peers[0].sent)
        held = sum(map(len, reply._blocks))
        assert held < HIGH_WATER_BYTES + 300_000
        # The rest is in the kernel's two buffers, which do not grow with the reply either.
        assert sent < 16_000_000
        assert await settled(lambda: server.peers[0].sent) == sent
        total = 0
        while total < sent + 1_000_000:
            total += len(await reply.read())
        assert server.peers[0].sent > sent


async def test_a_reply_held_back_can_still_fail_and_be_read_to_its_end():
    async def script(peer):
        peer.sent = 0
        await flood(peer)

    async with serving(script) as (server, lane):
        async with exchange(lane, b"", Patience(9.0, 9.0, 0.3)) as reply:
            await asyncio.sleep(0.5)
            with pytest.raises(CallTimeout):
                await read_all(reply)
        await until(lambda: lane.connections == 0)
        assert server.peers[0].sent > 0


async def test_a_reply_held_back_can_be_read_whole():
    size = 8_000_000
    wire = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size)
    async with serving(answers(wire)) as (_, lane), exchange(lane) as reply:
        await asyncio.sleep(0.1)
        assert len(await reply.read_whole(size)) == size


async def test_a_worker_that_does_not_read_the_request_is_late():
    async def script(peer):
        peer._reader._transport.pause_reading()
        await asyncio.sleep(9)

    body = bytes(12_000_000)  # more than both sockets hold
    async with serving(script) as (_, lane):
        with Timed() as timed, pytest.raises(FirstByteTimeout):
            await ask(lane, body, Patience(0.3, 9.0, 9.0))
        assert timed.took_s < 1.0
        await until(lambda: lane.connections == 0)


@pytest.mark.parametrize(
    "state", ["waiting for the reply", "waiting for more", "reading the whole", "not reading"]
)
async def test_leaving_closes_the_connection_at_once(state: str):
    start = {"waiting for the reply": ()}.get(state, (STREAM + chunk(b"ok"),))

    async def call() -> None:
        async with exchange(lane) as reply:
            if state == "reading the whole":
                await reply.read_whole(1000)
            await reply.read()
            if state == "waiting for more":
                await reply.read()
            await asyncio.Event().wait()

    async with serving(silent(*start)) as (server, lane):
        task = asyncio.create_task(call())
        await until(lambda: server.peers and server.peers[0].requests)
        await asyncio.sleep(0.02)
        task.cancel()
        left_s = time.monotonic()
        with suppress(asyncio.CancelledError):
            await task
        await until(lambda: server.peers[0].lost_s is not None)
        assert server.peers[0].lost_s - left_s < 0.05
        assert lane.connections == 0


async def test_draining_waits_for_the_end_of_a_reply_so_that_its_connection_lives_on():
    async def script(peer):
        while True:
            await peer.request()
            await peer.send(STREAM + chunk(b"done"))
            await asyncio.sleep(0.02)
            await peer.send(chunk(b"more") + b"0\r\n\r\n")

    async with serving(script) as (server, lane):
        for _ in range(2):
            async with exchange(lane) as reply:
                assert await reply.read() == b"done"
                await reply.drain()
        assert len(server.peers) == 1


async def test_draining_a_reply_without_an_end_gives_it_up_soon():
    async with serving(dripping(STREAM, chunk(b"x"), 0.01, 1000)) as (_, lane):
        with Timed() as timed:
            async with exchange(lane) as reply:
                await reply.drain()
        assert timed.took_s < 1.0
        await until(lambda: lane.connections == 0)


def test_a_request_head_ends_with_an_empty_line():
    assert head().endswith(b"\r\n\r\n")
