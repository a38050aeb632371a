"""A TCP server that sends, closes and resets exactly as a test has scripted it, connection by connection."""

import asyncio
import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Self

from backends.incoming import Patience
from backends.lane import Lane, LaneLimits, Origin
from backends.sweep import Sweep

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PATIENT = Patience(first_byte_s=10.0, silence_s=10.0, total_s=20.0)


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.lost_s: float | None = None
        self._reader, self._writer = reader, writer

    async def request(self) -> bytes:
        """The body of the next request; raises IncompleteReadError where the client has gone."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        body = await self._reader.readexactly(length)
        self.requests.append((head, body))
        return body

    def write(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(piece)

    async def send(self, *pieces: bytes) -> None:
        """Each piece as a packet of its own, which the client has read before the next is sent."""
        for piece in pieces:
            if self._writer.is_closing():
                raise ConnectionResetError("the client has gone")
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def fin(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()

    def reset(self) -> None:
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def lost(self) -> float:
        """Wait until the client has closed; when that was."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await self._reader.read(65_536):
                pass
        self.lost_s = time.monotonic()
        return self.lost_s


Script = Callable[[Peer], Awaitable[None]]


def answers(*pieces: bytes) -> Script:
    """Each request is answered with these bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)

    return script


def answers_and_closes(*pieces: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)
        await peer.fin()

    return script


class Server:
    """Each connection follows the next script, and those after the last script follow the last."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.peers: list[Peer] = []
        self.port = 0
        self._scripts = scripts
        self._tls = tls
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._running:
            task.cancel()
        outcomes = await asyncio.gather(*self._running, return_exceptions=True)
        await self._server.wait_closed()
        gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, gone):
                raise outcome

    def stop_listening(self) -> None:
        """New connections are refused from now on."""
        self._server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        self.peers.append(peer)
        self._running.add(asyncio.ensure_future(self._run(script, peer, writer)))

    async def _run(self, script: Script, peer: Peer, writer: asyncio.StreamWriter) -> None:
        try:
            await script(peer)
        finally:
            writer.transport.abort()


@asynccontextmanager
async def lane_at(
    port: int,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    connect_s: float = 60.0,
    **limits: float,
):
    lane = Lane(Origin(host, port, tls), LaneLimits(connect_s=connect_s, **limits))
    async with Sweep(lambda: [lane], interval_s=0.005):
        try:
            yield lane
        finally:
            await lane.close()


@asynccontextmanager
async def serving(*scripts: Script, **limits: float):
    """A server and a lane to it."""
    async with Server(*scripts) as server, lane_at(server.port, **limits) as lane:
        yield server, lane


def head(body: bytes = b"") -> bytes:
    return b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)


def exchange(lane: Lane, body: bytes = b"", patience: Patience = PATIENT, **ends: float):
    return lane.exchange(head(body), body, patience, **ends)


async def ask(lane: Lane, body: bytes = b"", patience: Patience = PATIENT) -> bytes:
    """The whole body of the reply to one request."""
    async with exchange(lane, body, patience) as reply:
        return await reply.read_whole(1 << 24)


async def read_all(reply) -> bytes:
    blocks = []
    while block := await reply.read():
        blocks.append(block)
    return b"".join(blocks)


async def read_whole(reply) -> bytes:
    return await reply.read_whole(1 << 24)


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.001)
