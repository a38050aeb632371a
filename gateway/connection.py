"""One connection of a client: requests come in, and are answered one after another in that order.

HTTP/1.1 as llhttp parses it, with limits on everything a stranger can make large or slow: headers, trailers, requests sent
ahead, and the time that a request may take to come in.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools

from gateway.client import STATUS_LINES, Client
from gateway.errors import ApiError
from gateway.ids import call_ids

if TYPE_CHECKING:
    from gateway.server import Server

_AT_ONCE = struct.pack("ii", 1, 0)
AHEAD_REQUESTS = 16
AHEAD_BYTES = 262_144
"""What a client may send ahead of its replies before it is not read any more."""


class _TooLarge(Exception):
    """The headers are; raised through the parser, which ends with it."""


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.deadline_s = math.inf
        """On the monotonic clock: when it is closed for being idle or slow."""
        self.full = False
        self._server = server
        self._parser: Any = None
        self._incoming: Client | None = None
        """What is coming in now."""
        self._answering: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._ahead: deque[Client] = deque()
        self._in_head = False
        self._field_bytes = 0
        """Of the current request's headers and trailers."""
        self._since_body = 0
        """Bytes that have come without any of them being of a body: a field that does not end shows only here."""
        self._reading = True
        self._drained: asyncio.Future[None] | None = None

    @property
    def date_line(self) -> bytes:
        return self._server.date_line

    @property
    def leaving(self) -> bool:
        return self._server.leaving

    @property
    def stopping(self) -> bool:
        return self._server.stopping

    @property
    def peer(self) -> str | None:
        address = self.transport.get_extra_info("peername")
        return address[0] if isinstance(address, tuple) else None

    # The transport's side

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._parser = _parser_for(self)
        self.deadline_s = time.monotonic() + self._server.head_s
        if not self._server.opened(self):
            self._say(ApiError("overloaded", "as many clients are connected as may", retry_after_s=1.0))
            self._close()

    def data_received(self, data: bytes) -> None:
        self._since_body += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse()
            return
        limit_bytes = self._server.header_limit_bytes
        if self._since_body > limit_bytes or self._field_bytes > limit_bytes:
            self._field_bytes = limit_bytes + 1
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost makes no difference
        self._server.closed(self)
        self._parser = None  # the two know each other
        self._ahead.clear()
        self.resume_writing()
        answering = self._answering
        if answering is not None:
            answering.gone = True
            if self._task is not None and not answering.replied:
                self._task.cancel("the client left")

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self._ahead and self._answering is None:
            self._go_on()

    # The parser's side

    def on_message_begin(self) -> None:
        self._incoming = Client(self)
        self._in_head, self._field_bytes, self._since_body = True, 0, 0
        if self._answering is None:
            self.deadline_s = time.monotonic() + self._server.head_s

    def on_url(self, url: bytes) -> None:
        self._field_bytes += len(url)
        if self._incoming is not None:
            self._incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_bytes += len(name) + len(value) + 4
        if self._in_head and self._incoming is not None:  # what comes behind the body are no headers
            self._incoming.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        parser, incoming = self._parser, self._incoming
        if incoming is None or parser.should_upgrade():
            return  # the latter is read again, without the offer
        self._in_head = False
        if self._field_bytes > self._server.header_limit_bytes:
            raise _TooLarge
        incoming.method = parser.get_method()
        if not incoming.target.startswith(b"/"):
            incoming.target = _path_of(incoming.target)
        incoming.chunked = parser.get_http_version() == "1.1"
        incoming.keep_alive = incoming.chunked and parser.should_keep_alive() and not self._server.leaving
        expect = incoming.headers.get(b"expect")
        incoming.expects_continue = expect is not None and expect.lower() == b"100-continue"
        if self._answering is None and not self.full:
            self.deadline_s = time.monotonic() + self._server.request_s
            self._answer(incoming)
        else:
            self._ahead.append(incoming)
            self._keep_reading()

    def on_body(self, body: bytes) -> None:
        self._since_body = 0
        if self._incoming is not None:
            self._incoming.received(body, limit_bytes=self._server.body_limit_bytes)
            if self._ahead:
                self._keep_reading()

    def on_message_complete(self) -> None:
        incoming = self._incoming
        if incoming is None or self._parser.should_upgrade():
            return
        if self._field_bytes > self._server.header_limit_bytes:
            raise _TooLarge
        self._incoming = None
        incoming.ended()
        if incoming is self._answering:
            self.deadline_s = math.inf
            if incoming.replied and self._task is None:
                self._next()

    # Answers

    def _answer(self, request: Client) -> None:
        self._answering = request
        self._server.busy.add(self)
        self._task = asyncio.get_running_loop().create_task(self._run(request))

    async def _run(self, request: Client) -> None:
        try:
            await self._server.app(request)
        finally:
            self._task = None
            self._server.finished(self)
            if not request.replied:
                self.transport.abort()  # the client must not take what it has for a whole reply
            elif request.complete:
                self._next()

    def _next(self) -> None:
        """What was being answered has been, and all of it has come in."""
        answered, self._answering = self._answering, None
        if answered is None or not answered.keep_alive or self._server.stopping:
            self._close()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Answer what was sent ahead, if anything was and the client takes its replies: they would pile up here."""
        if self._ahead and not self.full:
            request = self._ahead.popleft()
            self._answer(request)
            self.deadline_s = math.inf if request.complete else time.monotonic() + self._server.request_s
            self._keep_reading()
        else:
            self.deadline_s = time.monotonic() + (
                self._server.keep_alive_s if self._incoming is None else self._server.head_s
            )

    def stop(self) -> None:
        """Close now if nothing is being answered, else when that has been. What only waits for its turn gets none."""
        if self._task is None or self._answering is None:
            self._close()
        else:
            self._answering.keep_alive = False
            if self._answering.queued:
                self.cut_short()

    def expire(self) -> None:
        """Its deadline has passed. A client that does not even take what it has been sent is not waited for."""
        if self._answering is None and not self.transport.is_closing() and not self.full:
            self._close()
        else:
            self.reset()

    def reset(self) -> None:
        """Close at once; the system, too, forgets what the client has not taken yet."""
        sock = self.transport.get_extra_info("socket")
        if not self.transport.is_closing() or self.full:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def _close(self) -> None:
        """Close once all that has been written has gone out."""
        self.deadline_s = time.monotonic() + self._server.keep_alive_s
        self._ahead.clear()
        self.transport.close()

    def cut_short(self) -> None:
        """Cancel what is being answered; it may still say why."""
        if self._task is not None:
            self._task.cancel("the server is shutting down")

    async def drain(self) -> None:
        while self.full:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def abort(self) -> None:
        self.transport.abort()

    def _keep_reading(self) -> None:
        """Read on or not, by how much has been sent ahead."""
        ahead = self._ahead
        wanted = len(ahead) <= AHEAD_REQUESTS and sum(request.body_bytes for request in ahead) <= AHEAD_BYTES
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # What is no request

    def _decline_upgrade(self, rest: bytes) -> None:
        """Go on in HTTP/1.1, which a client that offers HTTP/2 expects. The parser has stopped, so another one takes the
        same head without the offer.
        """
        method, incoming = self._parser.get_method(), self._incoming
        # One who sends offers ahead of the replies to others wants something else: each would be read a level deeper.
        if method == b"CONNECT" or incoming is None or self._ahead:
            self._refuse()
            return
        head = b"%b %b HTTP/1.1\r\n" % (method, incoming.target)
        head += b"".join(
            b"%b: %b\r\n" % field for field in incoming.headers.items() if field[0] != b"upgrade"
        )
        self._parser = _parser_for(self)
        self.data_received(head + b"\r\n" + rest)

    def _refuse(self) -> None:
        """Close, with an error unless another reply is due or on its way, into which it must not be written."""
        answering = self._answering
        in_turn = (
            not self._ahead if answering is None else answering is self._incoming and not answering.started
        )
        if in_turn and not self.transport.is_closing():
            limit_bytes = self._server.header_limit_bytes
            if self._field_bytes > limit_bytes:
                error = ApiError("headers_too_large", f"the headers are larger than {limit_bytes} bytes")
            else:
                error = ApiError("invalid_http", "what came is not an HTTP/1.1 request")
            self._say(error)
        self._close()

    def _say(self, error: ApiError) -> None:
        """An error outside of any call, after which the connection is closed."""
        body = error.body()
        self.transport.write(
            b"%b%b%bx-request-id: req_%b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (
                STATUS_LINES[error.status],
                self.date_line,
                error.header_lines(),
                call_ids()().encode(),
                len(body),
                body,
            )
        )


def _path_of(target: bytes) -> bytes:
    """The path of a target in absolute form, as proxies are sent it; of any other, the target itself."""
    try:
        return httptools.parse_url(target).path or target
    except httptools.HttpParserInvalidURLError:
        return target


def _parser_for(connection: Connection) -> Any:
    parser = httptools.HttpRequestParser(connection)
    # Whatever comes after a request that said `connection: close` is no reason not to answer that request.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
