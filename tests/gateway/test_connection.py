"""The server on real sockets, with an application of the test's own: what no call through the gateway can bring about."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from site_served import LIMIT_S, reply, serving

from gateway.errors import ApiError
from gateway.server import LAST_REQUESTS_S

if TYPE_CHECKING:
    from gateway.client import Client

HELLO = b"GET /hello HTTP/1.1\r\nhost: h\r\n\r\n"


async def echo(client: Client) -> None:
    try:
        body = await client.body(1_000_000)
    except ApiError as error:
        client.fail(error)
    else:
        client.reply(200, b"", client.target + body)


async def the_end(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection is closed, however that is done."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def test_an_idle_connection_is_closed_after_a_while():
    async with serving(echo, keep_alive_s=0.1) as site, site.connected() as (reader, writer):
        writer.write(HELLO)
        assert await reply(reader) == b"/hello"
        assert await the_end(reader) == b""


@pytest.mark.parametrize("sent", [b"", b"GET /hello HTTP/1.1\r\nhost: "], ids=["nothing", "half a head"])
async def test_a_head_that_does_not_come_is_not_waited_for(sent: bytes):
    async with serving(echo, head_s=0.1) as site, site.connected() as (reader, writer):
        writer.write(sent)
        assert await the_end(reader) == b""


async def test_a_head_that_trickles_in_is_not_waited_for():
    async with serving(echo, head_s=0.3) as site, site.connected() as (reader, writer):
        ended = asyncio.create_task(the_end(reader))
        writer.write(b"GET / HTTP/1.1\r\n")
        while not ended.done():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.02)
        assert await ended == b""


async def test_a_body_that_does_not_come_ends_its_request():
    cancelled = asyncio.Event()

    async def app(client: Client) -> None:
        try:
            await client.body(1000)
        except asyncio.CancelledError:
            assert client.gone
            cancelled.set()

    async with serving(app, request_s=0.1) as site, site.connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n12345")
        assert await the_end(reader) == b""
        await cancelled.wait()


async def test_a_call_may_take_longer_than_its_request_may():
    async def app(client: Client) -> None:
        await asyncio.sleep(1)
        client.reply(200, b"", b"late")

    async with serving(app, request_s=0.1, head_s=0.1) as site, site.connected() as (reader, writer):
        writer.write(HELLO)
        assert await reply(reader) == b"late"


async def test_a_client_that_sends_far_ahead_of_its_replies_is_not_read_any_more():
    go_on = asyncio.Event()

    async def app(client: Client) -> None:
        await go_on.wait()
        await echo(client)

    post = b"POST /%d HTTP/1.1\r\nhost: h\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000
    async with serving(app) as site, site.connected() as (reader, writer):
        for number in range(100):
            writer.write(post % number)
        sending = asyncio.create_task(writer.drain())
        await asyncio.sleep(0.5)
        assert writer.transport.get_write_buffer_size() > 5_000_000  # of twenty; sockets buffer some
        go_on.set()
        for number in range(100):
            body = await reply(reader)
            assert body[: len(body) - 200_000] == b"/%d" % number
        await sending


async def test_a_client_that_does_not_read_its_replies_is_answered_no_more_until_it_does():
    full: list[bool] = []

    async def app(client: Client) -> None:
        full.append(client.full)
        client.reply(200, b"", bytes(20_000))

    async with serving(app) as site, site.connected() as (reader, writer):
        writer.write(3000 * HELLO)  # for which there are 60 MB of replies
        await asyncio.sleep(0.3)
        assert [len(await reply(reader)) for _ in range(3000)] == 3000 * [20_000]
        assert full == 3000 * [False]


async def test_a_client_that_goes_on_not_reading_is_cut_off():
    async def app(client: Client) -> None:
        client.reply(200, b"", bytes(20_000))

    async with serving(app, keep_alive_s=0.2, head_s=0.2) as site, site.connected() as (_, writer):
        writer.write(3000 * HELLO)
        while not site.server.connections:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
        while site.server.connections:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)


async def test_requests_sent_ahead_are_answered_in_their_order():
    async def app(client: Client) -> None:
        await asyncio.sleep(0.01 if client.target == b"/0" else 0)
        await echo(client)

    async with serving(app) as site, site.connected() as (reader, writer):
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nhost: h\r\n\r\n" % number for number in range(50)))
        assert [await reply(reader) for _ in range(50)] == [b"/%d" % number for number in range(50)]


async def test_nothing_is_heard_of_a_request_sent_ahead_by_a_client_that_has_left():
    heard: list[bytes] = []
    begun, never = asyncio.Event(), asyncio.Event()

    async def app(client: Client) -> None:
        heard.append(client.target)
        begun.set()
        await never.wait()

    async with serving(app) as site:
        async with site.connected() as (_, writer):
            writer.write(HELLO * 3)
            await begun.wait()
        while site.server.busy:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
        assert heard == [b"/hello"]


async def test_a_defect_of_the_application_ends_the_connection_and_no_other():
    async def app(client: Client) -> None:
        if client.target == b"/bad":
            client.start(200, b"")
            client.write(b"half")
            return
        await echo(client)

    async with (
        serving(app) as site,
        site.connected() as (reader, writer),
        site.connected() as (well, to_well),
    ):
        writer.write(b"GET /bad HTTP/1.1\r\nhost: h\r\n\r\n")
        assert not (await the_end(reader)).endswith(b"0\r\n\r\n")
        to_well.write(HELLO)
        assert await reply(well) == b"/hello"


async def test_a_stream_to_an_old_client_ends_with_its_connection():
    async def app(client: Client) -> None:
        client.start(200, b"")
        client.write(b"one ")
        client.finish(b"two")

    async with serving(app) as site, site.connected() as (reader, writer):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head, _, body = (await the_end(reader)).partition(b"\r\n\r\n")
        assert body == b"one two"
        assert b"chunked" not in head
        assert b"connection: close" in head


async def test_a_body_in_tiny_chunks_takes_no_more_memory_than_its_bytes():
    held: list[int] = []

    async def app(client: Client) -> None:
        body = await client.body(1_000_000)
        held.append(tracemalloc.get_traced_memory()[1])
        client.reply(200, b"", b"%d" % len(body))

    async with serving(app) as site, site.connected() as (reader, writer):
        tracemalloc.start()
        try:
            writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(100):
                writer.write(b"2\r\nab\r\n" * 1000)
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            assert await reply(reader) == b"200000"
        finally:
            tracemalloc.stop()
    assert held[0] < 3_000_000  # as a list of blocks 5 million, beside what sockets and the test itself take


async def test_offers_to_upgrade_sent_one_after_another_are_not_read_deeper_and_deeper(
    caplog: pytest.LogCaptureFixture,
):
    offer = b"GET /hello HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    async with serving(echo) as site, site.connected() as (reader, writer):
        writer.write(offer * 3000)
        await the_end(reader)
    assert caplog.records == []


async def test_a_client_too_many_is_told_so_and_those_that_are_there_are_served_on():
    async with serving(echo, most_connections=2) as site, site.connected() as (reader, writer):
        async with site.connected():
            async with site.connected() as (third, _):
                refused = await the_end(third)
            writer.write(HELLO)
            assert await reply(reader) == b"/hello"
        head, _, body = refused.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1\r\n" in head
        assert b"\r\nconnection: close" in head
        assert b'"code":"overloaded"' in body
        async with asyncio.timeout(LIMIT_S):
            while len(site.server.connections) > 1:  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)
        async with site.connected() as (fourth, other):
            other.write(HELLO)
            assert await reply(fourth) == b"/hello"


async def test_a_request_that_is_on_its_way_while_the_last_call_ends_is_answered():
    first_may_end, cut = asyncio.Event(), asyncio.Event()

    async def app(client: Client) -> None:
        try:
            if client.target == b"/first":
                await first_may_end.wait()
            else:
                await asyncio.sleep(3 * LAST_REQUESTS_S)
        except asyncio.CancelledError:
            cut.set()
        client.reply(200, b"", client.target)

    async with (
        serving(app) as site,
        site.connected() as (first, to_first),
        site.connected() as (late, to_late),
    ):
        to_first.write(b"GET /first HTTP/1.1\r\nhost: h\r\n\r\n")
        while not site.server.busy:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.001)
        site.server.stop()
        while not site.server.stopping:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        first_may_end.set()
        assert await reply(first) == b"/first"
        to_late.write(HELLO)
        # On a machine that takes its time, it comes too late to be answered at all.
        ended = await the_end(late)
        assert not ended or ended.endswith(b"/hello")
        assert not cut.is_set()


async def test_until_it_stops_a_server_that_leaves_answers_and_says_that_it_will_close():
    async with serving(echo) as site, site.connected() as (reader, writer):
        site.server.unready_s = LIMIT_S
        writer.write(HELLO)
        assert b"connection: close" not in (await reader.readuntil(b"/hello"))
        site.server.stop()
        async with site.connected() as (new, to_new):
            for each, to_each in ((reader, writer), (new, to_new)):
                to_each.write(HELLO)
                said = await the_end(each)
                assert b"connection: close" in said
                assert said.endswith(b"/hello")
