"""The load balancer of the endurance run: who is asked, and who is not any more."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loadtest.balancer import Balancer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT_S = 60


class Backend:
    """Says its name, after it has been asked anything but its health."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.status = b"200 OK"
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Backend]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        if b"/health/ready" in asked:
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % self.status)
        elif asked:
            writer.write(self.name)
            await self.may_end.wait()
            writer.write(b" and out")
        writer.close()


async def said(url: str) -> bytes:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(b"who is there\n")
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_backends_take_turns_until_one_says_that_it_is_not_ready():
    async with asyncio.timeout(LIMIT_S), Backend(b"one").running() as one, Backend(b"two").running() as two:
        balancer = Balancer([one.port, two.port])
        async with balancer.running() as url:
            for each in (one, two):
                await balancer.until_ready(each.port)
            assert {await said(url) for _ in range(4)} == {b"one and out", b"two and out"}
            two.may_end.clear()
            held = [asyncio.create_task(said(url)) for _ in range(2)]
            two.status = b"503 Service Unavailable"
            await balancer.until_ready(two.port, ready=False)
            assert {await said(url) for _ in range(4)} == {b"one and out"}
            two.may_end.set()  # what had begun there goes on
            assert {await each for each in held} == {b"one and out", b"two and out"}


async def test_where_nobody_listens_the_client_is_refused_as_nobody_else_is_asked():
    async with asyncio.timeout(LIMIT_S), Backend(b"one").running() as one:
        balancer = Balancer([one.port])
        async with balancer.running() as url:
            await balancer.until_ready(one.port)
            balancer.backends[0].port = 1
            assert await said(url) == b""
