"""An OTLP collector that takes whatever is sent to it: for tests, which look at what came, and for benches, which do not."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_ACCEPTED = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"


class Collector:
    """Keeps the bodies it has got, unless it is only to swallow them."""

    def __init__(self, *, keeps: bool) -> None:
        self.url = ""
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.taken = 0
        """Requests."""
        self._keeps = keeps

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length))
                self.taken += 1
                if self._keeps:
                    self.heads.append(head)
                    self.bodies.append(body)
                writer.write(_ACCEPTED)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it has what it wanted to say
        finally:
            writer.close()


@asynccontextmanager
async def collector(*, keeps: bool = False, port: int = 0) -> AsyncIterator[Collector]:
    """A collector on a port of this machine, as long as the block runs."""
    taking = Collector(keeps=keeps)
    server = await asyncio.start_server(taking.serve, "127.0.0.1", port)
    taking.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield taking
    finally:
        server.close()
