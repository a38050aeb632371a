"""The server on a real socket, with an application of the test's own."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gateway.client import Client

LIMIT_S = 30


class Site:
    def __init__(self, server: Server, address: tuple[str, int]) -> None:
        self.server = server
        self._address = address

    @property
    def port(self) -> int:
        return self._address[1]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            yield reader, writer
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    app: Callable[[Client], Awaitable[None]], *, most_connections: int = 100, **attributes: Any
) -> AsyncIterator[Site]:
    ready = asyncio.Event()
    server = Server(
        app,
        drain_s=LIMIT_S,
        header_limit_bytes=10_000,
        body_limit_bytes=1_000_000,
        most_connections=most_connections,
        on_ready=ready.set,
    )
    for name, value in attributes.items():
        setattr(server, name, value)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server.serve(listener))
        async with asyncio.timeout(LIMIT_S):
            await ready.wait()
            yield Site(server, listener.getsockname())
            server.stop()
            await task


async def reply(reader: asyncio.StreamReader) -> bytes:
    """The body of the next whole reply."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length))
