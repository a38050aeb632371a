"""The client of one call: its request as it comes in, and the way out for the reply.

A call sends so little besides what an endpoint sends that each copy, check and wake-up on the way shows in its price. So
a reply is header lines and bytes, and goes to the socket in as few writes as it has parts.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from gateway.errors import ApiError

if TYPE_CHECKING:
    from gateway.connection import Connection

STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class Client:
    __slots__ = (
        "_body",
        "_connection",
        "_too_large",
        "_unsent",
        "_waiter",
        "chunked",
        "complete",
        "expects_continue",
        "gone",
        "headers",
        "keep_alive",
        "lines",
        "method",
        "overdue",
        "queued",
        "replied",
        "started",
        "target",
    )

    def __init__(self, connection: Connection) -> None:
        self.method = b""
        self.target = b""
        """As it stands in the request line: path and query."""
        self.headers: dict[bytes, bytes] = {}
        """By name in lower case; of one that comes twice, the last."""
        self.chunked = True
        """Whether a stream goes out in chunks. HTTP/1.0 knows none: there it ends with the connection."""
        self.keep_alive = True
        self.expects_continue = False
        self.complete = False
        """All of the body has come."""
        self.lines = b""
        """Header lines that go with whatever reply there is."""
        self.started = False
        """The head of the reply has been given out."""
        self.replied = False
        """So has the last byte."""
        self.gone = False
        """The connection is closed, by the client or by `cut_off`."""
        self.overdue = False
        """It has been cut off."""
        self.queued = False
        """It waits for its turn, and nobody has begun to answer it."""
        self._connection = connection
        self._body = bytearray()
        """Not a list of blocks: a client may send it two bytes at a time, and each would take fifty."""
        self._too_large = False
        self._unsent = b""
        self._waiter: asyncio.Future[None] | None = None

    # The way in

    async def body(self, limit_bytes: int) -> bytes:
        """The request's body. Raises ApiError as soon as it exceeds the limit.

        What is left of it then is read and forgotten: a client that is cut off while it sends sees no reply.
        """
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > limit_bytes:
            raise _too_large(limit_bytes)
        if not self.complete:
            if self.expects_continue:
                self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            while not self.complete and not self._too_large:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        if self._too_large or len(self._body) > limit_bytes:
            raise _too_large(limit_bytes)
        return bytes(self._body)

    def received(self, block: bytes, *, limit_bytes: int) -> None:
        """A part of the body has come. Beyond the limit, and once there is a reply, it is not kept."""
        if self.replied or self._too_large:
            return
        self._body += block
        if len(self._body) > limit_bytes:
            self._too_large = True
            self._body.clear()
            self._wake()

    @property
    def body_bytes(self) -> int:
        """What is kept of it."""
        return len(self._body)

    def ended(self) -> None:
        """All of it has come."""
        self.complete = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def peer(self) -> str | None:
        """The network address at the other end of the connection."""
        return self._connection.peer

    @property
    def scheme(self) -> str:
        return "http" if self._connection.transport.get_extra_info("sslcontext") is None else "https"

    @property
    def leaving(self) -> bool:
        """The server has been told to stop."""
        return self._connection.leaving

    @property
    def stopping(self) -> bool:
        """The server takes no more work."""
        return self._connection.stopping

    # The way out

    def reply(self, status: int, lines: bytes, body: bytes) -> None:
        """A whole reply; `lines` are header lines."""
        head = self._head(status, lines, b"content-length: %d\r\n" % len(body))
        self._send(head if self.method == b"HEAD" else head + body)
        self._over()

    def start(self, status: int, lines: bytes) -> None:
        """The head of a reply in parts. It is sent with the first of them."""
        self._unsent = self._head(status, lines, b"transfer-encoding: chunked\r\n" if self.chunked else b"")

    def write(self, block: bytes) -> None:
        """A part of the reply; an empty one only sees to it that the head is sent."""
        if block and self.chunked:
            block = b"%x\r\n%b\r\n" % (len(block), block)
        if self._unsent:
            block, self._unsent = self._unsent + block, b""
        self._send(block)

    def finish(self, block: bytes) -> None:
        """The last part."""
        if self.chunked and not block:
            block = b"0\r\n\r\n"
        elif self.chunked:
            block = b"%x\r\n%b\r\n0\r\n\r\n" % (len(block), block)
        self._send(self._unsent + block)
        self._over()

    def fail(self, error: ApiError) -> None:
        """End with an error: as the whole reply, or in a stream that has begun as an event, with no `[DONE]` after it."""
        if not self.started:
            self.reply(error.status, error.header_lines(), error.body())
        elif not self.replied:
            self.finish(b"data: " + error.body() + b"\n\n")

    @property
    def full(self) -> bool:
        """Whether what has been written waits for a client that is slow to read."""
        return self._connection.full

    async def drain(self) -> None:
        """Wait until it is not full."""
        await self._connection.drain()

    def cut_off(self) -> None:
        """The call's time has run out while the client was slow to read: close the connection without another word.

        Whoever answers is cancelled, as if the client had left.
        """
        self.overdue = True
        self._connection.reset()

    def _head(self, status: int, lines: bytes, framing: bytes) -> bytes:
        self.started = True
        close = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status  # an endpoint's own may be any
        return b"".join((line, self._connection.date_line, lines, self.lines, framing, close))

    def _send(self, block: bytes) -> None:
        if not self.gone:
            self._connection.transport.write(block)

    def _over(self) -> None:
        self.replied = True
        self._body.clear()


def _too_large(limit_bytes: int) -> ApiError:
    return ApiError("request_too_large", f"the body is larger than {limit_bytes} bytes")
