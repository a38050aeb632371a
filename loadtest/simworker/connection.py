"""One client connection, and the one reply at a time that goes over it.

Raw enough that a fault can put any bytes on the wire, or none; otherwise it speaks HTTP/1.1 as uvicorn does under
vLLM, header for header. A client that disconnects is known at once, because reading never pauses.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, cast

import httptools
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_BODY_BYTES = 256 * 1024 * 1024
_STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class Request(Struct, gc=False):
    """A request as it was received, byte for byte."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool
    choices: list[list[int]] = []
    """What the engine has made for it so far, or had when its client left."""

    @property
    def tokens_made(self) -> int:
        return sum(map(len, self.choices))

    @property
    def is_work(self) -> bool:
        """Whether it asks the model for something."""
        return self.method == "POST" and self.target.startswith("/v1/")

    def header(self, name: bytes) -> str | None:
        return next((value.decode("latin-1") for given, value in self.headers if given.lower() == name), None)


class Server(Protocol):
    """What a connection needs of whoever accepted it."""

    def opened(self, connection: Connection) -> None: ...
    def closed(self, connection: Connection) -> None: ...
    def exchange(self, connection: Connection, request: Request) -> Exchange: ...
    def answer(self, request: Request, exchange: Exchange) -> None: ...
    def date_header(self) -> str: ...


class Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._asked: deque[Request] = deque()
        self._exchange: Exchange | None = None
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._writable = asyncio.Event()
        self.transport: asyncio.Transport

    # From the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._writable.set()
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (how it was lost makes no difference)
        self._server.closed(self)
        self._writable.set()
        self._asked.clear()
        if self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            exchange.lost()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an upgrade that is not offered is ignored, as HTTP/1.1 has it
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n")
            self.transport.write(b"connection: close\r\n\r\nInvalid HTTP request received.")
            self.transport.close()
        # Not from within the parser, which would take an error of ours for one of the client's.
        self._answer_next()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # From the parser

    def on_message_begin(self) -> None:
        self._target, self._headers, self._body, self._body_bytes = b"", [], [], 0

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if any(
            name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in self._headers
        ):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > _MAX_BODY_BYTES:
            self.transport.abort()
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._asked.append(
            Request(
                method=self._parser.get_method().decode("latin-1"),
                target=self._target.decode("latin-1"),
                headers=self._headers,
                body=b"".join(self._body),
                keep_alive=self._parser.should_keep_alive(),
            )
        )

    # For exchanges

    @property
    def idle(self) -> bool:
        return self._exchange is None

    def over(self, *, keep_alive: bool) -> None:
        """The reply is complete."""
        self._exchange = None
        if not keep_alive:
            self.transport.close()
        elif self._asked:
            self._answer_next()

    def reset(self) -> None:
        """Closed with RST instead of FIN."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def writable(self) -> None:
        await self._writable.wait()

    def _answer_next(self) -> None:
        if self._exchange is None and self._asked and not self.transport.is_closing():
            request = self._asked.popleft()
            self._exchange = exchange = self._server.exchange(self, request)
            if exchange.begin():
                self._server.answer(request, exchange)


class Exchange:
    """The reply to one request: either `reply` once, or `open_stream`, `event`s and `end_stream`."""

    def __init__(self, connection: Connection, request: Request, server: Server) -> None:
        self.connection = connection
        self.on_lost: Callable[[], None] | None = None
        """Called when the client leaves before the reply is complete."""
        self.slowness = 1.0
        """By what factor to take longer than usual."""
        self._keep_alive = request.keep_alive
        self._server = server
        self._over = False

    @property
    def over(self) -> bool:
        """Whether nothing more is wanted: complete, or the client has left."""
        return self._over

    def begin(self) -> bool:
        """Whether the request is to be answered at all."""
        return True

    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        """The whole of a reply with one write. `headers`: further lines, each with its CRLF."""
        if not self._over:
            self.write(self.head(status, len(body), content_type, headers) + body)
            self.complete()

    def open_stream(self) -> None:
        if not self._over:
            self.write(self.stream_head())

    def event(self, event: bytes) -> None:
        """One SSE event, blank line included, as one chunk of the body."""
        if not self._over:
            self.write(b"%x\r\n%b\r\n" % (len(event), event))

    def end_stream(self) -> None:
        if not self._over:
            self.write(b"0\r\n\r\n")
            self.complete()

    def lost(self) -> None:
        self._over = True
        on_lost, self.on_lost = self.on_lost, None
        if on_lost is not None:
            on_lost()

    # What replies are made of; faults put it together in other ways

    def head(self, status: int, length: int, content_type: str | None, headers: str = "") -> bytes:
        kind = f"content-type: {content_type}\r\n" if content_type else ""
        return (
            f"{_STATUS_LINE[status]}{self._server.date_header()}server: uvicorn\r\ncontent-length: {length}\r\n"
            f"{kind}vary: Origin\r\n{headers}{self._closing()}\r\n"
        ).encode("latin-1")

    def stream_head(self) -> bytes:
        return (
            f"HTTP/1.1 200 OK\r\n{self._server.date_header()}server: uvicorn\r\n"
            "content-type: text/event-stream; charset=utf-8\r\nvary: Origin\r\n"
            f"{self._closing()}transfer-encoding: chunked\r\n\r\n"
        ).encode("latin-1")

    def write(self, data: bytes) -> None:
        self.connection.transport.write(data)

    def complete(self) -> None:
        self._over = True
        self.connection.over(keep_alive=self._keep_alive)

    def _closing(self) -> str:
        return "" if self._keep_alive else "connection: close\r\n"


class DateHeader:
    """The `date` header, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = ""

    def __call__(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._line = second, f"date: {formatdate(second, usegmt=True)}\r\n"
        return self._line
