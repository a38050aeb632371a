import asyncio
from collections.abc import Awaitable, Callable

import pytest
from scripted import OK, answers, answers_and_closes, ask, exchange, read_all, read_whole, serving, until

from backends.base import ReplyBroken, ReplyMalformed, ReplyOversized
from backends.exchange import Exchange

Read = Callable[[Exchange], Awaitable[bytes]]
WAYS: list[Read] = [read_all, read_whole]
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

WHOLE = {
    "content-length": (OK, b"ok"),
    "chunked": (CHUNKED + b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n", b"ok"),
    "chunked with extensions": (CHUNKED + b"2;a=b\r\nok\r\n0;c\r\n\r\n", b"ok"),
    "chunked in capital hex": (CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n", b"ok"),
    "no body": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    "no chunk": (CHUNKED + b"0\r\n\r\n", b""),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", b""),
    "100 before it": (b"HTTP/1.1 100 Continue\r\nx-early: 1\r\n\r\n" + OK, b"ok"),
    "many 1xx before it": (b"HTTP/1.1 102 Processing\r\n\r\n" * 3 + b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" + OK, b"ok"),
    "HTTP/1.0 kept alive": (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "no reason phrase": (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", b"ok"),
}  # fmt: skip

LAST = {
    "connection: close": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "a second reply": (OK + OK, b"ok"),
    "the start of a second reply": (OK + b"HTTP/1.", b"ok"),
    "bytes after the reply": (OK + b"\x00surplus", b"ok"),
    "bytes after the last chunk": (CHUNKED + b"2\r\nok\r\n0\r\n\r\nsurplus", b"ok"),
    "bytes after connection: close": (
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok and more",
        b"ok",
    ),
}

MALFORMED = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
    "both lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "lengths in the other order": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokk",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    "a length that is no number": b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
    "a length beyond 64 bits": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nok",
    "a chunk size that is no number": CHUNKED + b"xyz\r\nok\r\n",
    "a negative chunk size": CHUNKED + b"-2\r\nok\r\n",
    "a chunk size beyond 64 bits": CHUNKED + b"fffffffffffffffff\r\nok\r\n",
    "no line end after a chunk": CHUNKED + b"2\r\nokay\r\n0\r\n\r\n",
    "a header without a colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "a header with a control character": b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 2\r\n\r\nok",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("name", WHOLE)
async def test_a_reply_is_read_whole_and_its_connection_used_again(name: str):
    wire, body = WHOLE[name]
    async with serving(answers(wire)) as (server, lane):
        for _ in range(3):
            assert await ask(lane) == body
            async with exchange(lane) as reply:
                assert await read_all(reply) == body
                assert await reply.read() == b""
        assert len(server.peers) == 1


@pytest.mark.parametrize("name", WHOLE)
async def test_a_reply_may_be_cut_at_any_byte(name: str):
    wire, body = WHOLE[name]
    async with serving(answers(*[wire[i : i + 1] for i in range(len(wire))])) as (_, lane):
        assert await ask(lane) == body
        async with exchange(lane) as reply:
            assert await read_all(reply) == body


@pytest.mark.parametrize("name", ["chunked", "trailers", "100 before it", "content-length"])
async def test_a_reply_may_come_in_any_two_pieces(name: str):
    wire, body = WHOLE[name]

    async def script(peer):
        for cut in range(1, len(wire)):
            await peer.request()
            await peer.send(wire[:cut], wire[cut:])

    async with serving(script) as (server, lane):
        for _ in range(1, len(wire)):
            assert await ask(lane) == body
        assert len(server.peers) == 1


@pytest.mark.parametrize("name", LAST)
async def test_a_reply_that_ends_its_connection_is_whole(name: str):
    wire, body = LAST[name]
    async with serving(answers(wire)) as (server, lane):
        assert await ask(lane) == body
        async with exchange(lane) as reply:
            assert await read_all(reply) == body
        assert len(server.peers) == 2


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_reply_without_a_length_ends_with_its_connection(version: bytes):
    wire = b"HTTP/%b 200 OK\r\ncontent-type: text/plain\r\n\r\nall of it" % version
    async with serving(answers_and_closes(wire)) as (server, lane):
        assert await ask(lane) == b"all of it"
        async with exchange(lane) as reply:
            assert await read_all(reply) == b"all of it"
        assert len(server.peers) == 2


async def test_a_reply_without_a_length_that_is_reset_is_not_whole():
    async def script(peer):
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of")
        await resetting.wait()
        peer.reset()

    resetting = asyncio.Event()
    async with serving(script) as (_, lane), exchange(lane) as reply:
        assert await reply.read() == b"half of"
        resetting.set()
        with pytest.raises(ReplyBroken, match="in the middle"):
            await reply.read()


@pytest.mark.parametrize("read", WAYS)
@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_no_reply_is_never_passed_off_as_one(name: str, read: Read):
    async with serving(answers(MALFORMED[name])) as (server, lane):
        with pytest.raises(ReplyMalformed):
            async with exchange(lane) as reply:
                await read(reply)
        await until(lambda: lane.connections == 0)
        assert len(server.peers) == 1


TRUNCATED = {
    "in its status line": b"HTTP/1.1 20",
    "in its headers": b"HTTP/1.1 200 OK\r\ncontent-le",
    "before its body": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
    "in its body": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfour",
    "in a chunk size": CHUNKED + b"2\r\nok\r\n1",
    "in a chunk": CHUNKED + b"5\r\nok",
    "between chunks": CHUNKED + b"2\r\nok\r\n",
    "before the empty line after the last chunk": CHUNKED + b"2\r\nok\r\n0\r\n",
    "in its trailers": CHUNKED + b"2\r\nok\r\n0\r\nx-sum: 1\r\n",
    "after a 100": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("read", WAYS)
@pytest.mark.parametrize("name", TRUNCATED)
async def test_a_reply_cut_short_is_broken(name: str, read: Read):
    async with serving(answers_and_closes(TRUNCATED[name])) as (server, lane):
        with pytest.raises(ReplyBroken, match="in the middle of its reply"):
            async with exchange(lane) as reply:
                await read(reply)
        assert len(server.peers) == 1


async def test_headers_are_found_by_their_lower_case_name_and_trailers_are_not_among_them():
    wire = b"HTTP/1.1 200 OK\r\nX-Thing:  a b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx-thing: c\r\nx-sum: 1\r\n\r\n"
    async with (
        serving(answers(b"HTTP/1.1 103 Hints\r\nlink: a\r\n\r\n" + wire)) as (_, lane),
        exchange(lane) as reply,
    ):
        await reply.read_whole(0)
        assert reply.status == 200
        assert reply.headers == {b"x-thing": b"a b", b"transfer-encoding": b"chunked"}


def endless(start: bytes, piece: bytes):
    async def script(peer):
        await peer.request()
        peer.write(start)
        while True:
            await peer.send(piece)

    return script


@pytest.mark.parametrize(
    "script",
    [
        endless(b"HTTP/1.1 200 OK\r\nx: ", b"y" * 1000),
        endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 200),
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    ],
    ids=["one long header", "many headers", "many 1xx"],
)
async def test_headers_without_an_end_are_oversized(script):
    async with serving(script) as (_, lane):
        with pytest.raises(ReplyOversized):
            async with exchange(lane):
                pass


@pytest.mark.parametrize("read", WAYS)
@pytest.mark.parametrize(
    "script",
    [
        endless(CHUNKED + b"2\r\nok\r\n0\r\nx: ", b"y" * 1000),
        endless(CHUNKED + b"2\r\nok\r\n0\r\n", b"x: y\r\n" * 200),
        endless(CHUNKED + b"2\r\nok\r\n2;", b"y" * 1000),
    ],
    ids=["one long trailer", "many trailers", "a long chunk extension"],
)
async def test_what_comes_beside_the_body_without_an_end_is_oversized(script, read: Read):
    async with serving(script) as (_, lane):
        with pytest.raises(ReplyOversized):
            async with asyncio.timeout(5), exchange(lane) as reply:
                await read(reply)


@pytest.mark.parametrize("size", [1_000, 65_536, 1_000_000])
@pytest.mark.parametrize("framing", ["chunked", "content-length"])
async def test_a_whole_reply_may_have_the_limit_but_no_more(size: int, framing: str):
    body = bytes(size)
    wire = CHUNKED + b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    if framing == "content-length":
        wire = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + body
    async with serving(answers(wire)) as (_, lane):
        async with exchange(lane) as reply:
            assert await reply.read_whole(size) == body
        async with exchange(lane) as reply:
            with pytest.raises(ReplyOversized):
                await reply.read_whole(size - 1)
        async with exchange(lane) as reply:
            assert await read_all(reply) == body


async def test_a_whole_reply_without_a_length_is_held_to_the_limit():
    script = endless(b"HTTP/1.1 200 OK\r\n\r\n", bytes(10_000))
    async with serving(script) as (_, lane), exchange(lane) as reply:
        with pytest.raises(ReplyOversized):
            await reply.read_whole(20_000)


async def test_an_announced_length_beyond_the_limit_is_refused_before_the_body_comes():
    wire = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
    async with serving(answers(wire)) as (_, lane), exchange(lane) as reply:
        with pytest.raises(ReplyOversized):
            await reply.read_whole(999)


async def test_the_request_arrives_byte_for_byte():
    async with serving(answers(OK)) as (server, lane):
        for body in (b"", b"x", bytes(range(256)) * 100, bytes(range(256)) * 20_000):
            assert await ask(lane, body) == b"ok"
            head, received = server.peers[0].requests[-1]
            assert head.startswith(b"POST /v1/x HTTP/1.1\r\nhost: x\r\n")
            assert received == body
        assert len(server.peers) == 1


async def test_a_reply_may_come_before_the_request_has_been_read():
    async def script(peer):
        await peer.send(OK)
        await until(lambda: finished)
        await peer.lost()

    finished = []
    async with serving(script, answers(OK)) as (server, lane):
        assert await ask(lane, bytes(30_000_000)) == b"ok"
        finished.append(True)
        # What is left of the request must not be taken for the next one.
        assert await ask(lane, b"next") == b"ok"
        assert [body for _, body in server.peers[1].requests] == [b"next"]
        await until(lambda: server.peers[0].lost_s is not None)


async def test_every_reply_finds_its_own_asker():
    async def script(peer):
        while True:
            body = await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body)

    async def one(number: int) -> bool:
        body = b"%d" % number * (number % 7 + 1)
        return await ask(lane, body) == body

    async with serving(script) as (_, lane):
        assert all(await asyncio.gather(*[one(number) for number in range(300)]))
