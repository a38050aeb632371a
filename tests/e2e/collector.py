"""An OTLP collector that keeps what is sent to it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ACCEPTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


class Collector:
    def __init__(self) -> None:
        self.url = ""
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until its client has closed it."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                self.bodies.append(await reader.readexactly(int(length)))
                self.heads.append(head)
                writer.write(ACCEPTED)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """A collector on a port of this machine, as long as the block runs."""
    taking = Collector()
    server = await asyncio.start_server(taking.serve, "127.0.0.1", 0)
    taking.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield taking
    finally:
        server.close()
