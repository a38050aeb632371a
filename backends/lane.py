"""The lean HTTP/1.1 client on the way to a worker.

A general HTTP client costs a gateway more than all else it does: on one core, httpx takes twenty times as long per call
as this module and aiohttp three times. So the worker's lane is ours: a pool of keep-alive connections to one origin,
each an `asyncio.Protocol` that feeds llhttp, and bodies handed on as the bytes that came. It knows nothing of what
they mean.

    async with lane.exchange(head, body, patience) as exchange:
        exchange.status, exchange.headers
        block = await exchange.read()          # b"" at the end of the reply
        whole = await exchange.read_whole(limit_bytes)

Leaving the block before the reply is complete closes the connection at once; a vLLM worker takes that as an abort.
Deadlines are plain attributes which one `sweep` for all exchanges compares with the clock, since a timer a read would
cost more than the read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import httptools
from msgspec import Struct

from backends.base import (
    AttemptFailed,
    CallTimeout,
    ConnectFailed,
    ConnectTimeout,
    FirstByteTimeout,
    LaneFull,
    ReplyBroken,
    ReplyLate,
    ReplyMalformed,
    ReplyOversized,
    SilenceTimeout,
    TlsFailed,
)

if TYPE_CHECKING:
    from types import TracebackType

log = logging.getLogger(__name__)

HIGH_WATER_BYTES = 65_536
"""What a reply may run ahead of its reader; beyond it the socket is not read, and TCP slows the worker down."""
MAX_HEAD_BYTES = 65_536
"""Of anything that is not body, between two pieces of body: headers, trailers, 1xx replies, chunk extensions."""
DRAIN_S = 0.5
"""For the last bytes of a reply, after its content; a worker that takes longer loses the connection, no more."""


_TOO_LONG = "not done within the call's time"

Sink = Callable[[bytes], bool]
"""Takes a block of a reply; True: no more for now."""


class Origin(Struct, frozen=True):
    """Where a lane leads."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class LaneLimits(Struct, frozen=True):
    connections: int = 1024
    idle_s: float = 4.0
    """Less than the 5 s after which vLLM's server closes an idle connection."""
    connect_s: float = 5.0


class Patience(Struct, frozen=True):
    """How long one exchange may take, in seconds."""

    first_byte_s: float = 120.0
    silence_s: float = 30.0
    total_s: float = 600.0


class Lane:
    """The connections to one origin. Idle ones are reused last in, first out, so that surplus ones grow old."""

    def __init__(self, origin: Origin, limits: LaneLimits) -> None:
        self.origin = origin
        self.limits = limits
        self._idle: dict[_Connection, None] = {}
        self._connections: set[_Connection] = set()
        self._connecting = 0

    @property
    def connections(self) -> int:
        """Open connections and those being opened."""
        return len(self._connections) + self._connecting

    def exchange(self, head: bytes, body: bytes, patience: Patience, ends_s: float = math.inf) -> Exchange:
        """One request and its reply; `head` ends with the empty line and `body` has the length it names.

        `ends_s`, on the monotonic clock, is when the call that this is for has to be done.
        """
        return Exchange(self, head, body, patience, ends_s)

    async def close(self) -> None:
        for connection in list(self._connections):
            connection.abort()
        # A transport closes its socket in the next turn of the loop.
        await asyncio.sleep(0)

    def sweep(self, now_s: float) -> None:
        """Fail the exchanges whose deadline has passed and close the connections that have idled too long."""
        for connection in list(self._connections):
            exchange = connection.exchange
            if exchange is not None:
                if now_s >= exchange.deadline_s:
                    exchange.expire()
            elif now_s - connection.idle_since_s >= self.limits.idle_s:
                connection.abort()

    def take_idle(self) -> _Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, ends_s: float) -> _Connection:
        """A new connection.

        Raises LaneFull, ConnectFailed, ConnectTimeout, TlsFailed or CallTimeout.
        """
        if self.connections >= self.limits.connections:
            raise LaneFull(f"all {self.limits.connections} connections are in use")
        origin = self.origin
        loop = asyncio.get_running_loop()
        left_s = ends_s - time.monotonic()
        self._connecting += 1
        try:
            async with asyncio.timeout(min(self.limits.connect_s, left_s)):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self),
                    origin.host,
                    origin.port,
                    ssl=origin.tls,
                    server_hostname=origin.host if origin.tls else None,
                )
        except TimeoutError:
            if left_s <= self.limits.connect_s:
                raise CallTimeout(_TOO_LONG) from None
            raise ConnectTimeout(f"no connection within {self.limits.connect_s:g} s") from None
        except (ssl.SSLError, ssl.CertificateError) as error:
            raise TlsFailed(f"TLS handshake failed: {error}") from None
        except OSError as error:
            raise ConnectFailed(f"cannot connect: {error.strerror or error}") from None
        except UnicodeError as error:
            raise ConnectFailed(f"no host can have this name: {error}") from None
        finally:
            self._connecting -= 1
        # From here on its loss is told to whoever asks, so it must not have been lost before.
        if connection.transport.is_closing():
            raise ConnectFailed("the connection was closed as soon as it was made")
        self._connections.add(connection)
        return connection

    def lost(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._idle.pop(connection, None)

    def give_back(self, connection: _Connection) -> None:
        self._idle[connection] = None


class _Connection(asyncio.Protocol):
    """A socket, and the exchange that has it now."""

    transport: asyncio.Transport

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.exchange: Exchange | None = None
        self.idle_since_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:
            self.abort()  # nothing was asked: whatever this is, it is not for the next call
        else:
            self.exchange.received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lane.lost(self)
        if self.exchange is not None:
            self.exchange.lost(exc)

    def abort(self) -> None:
        self.transport.abort()


class Exchange:
    """One request and its reply on one connection."""

    __slots__ = (
        "_begun",
        "_beside_bytes",
        "_blocks",
        "_body",
        "_connection",
        "_ends_s",
        "_error",
        "_expiry",
        "_head",
        "_head_complete",
        "_lane",
        "_limit_bytes",
        "_loop",
        "_parser",
        "_patience",
        "_paused",
        "_reusable",
        "_sink",
        "_size",
        "_waiter",
        "complete",
        "deadline_s",
        "headers",
        "status",
    )

    def __init__(self, lane: Lane, head: bytes, body: bytes, patience: Patience, ends_s: float) -> None:
        self._lane = lane
        self._head = head
        self._body = body
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._ends_s = min(time.monotonic() + patience.total_s, ends_s)
        self._expiry: type[ReplyLate] = CallTimeout
        self.deadline_s = math.inf
        self._connection: _Connection | None = None
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._begun = False
        self._head_complete = False
        self._beside_bytes = 0
        self._reusable = False
        self._blocks: list[bytes | bytearray] = []
        self._size = 0
        self._limit_bytes: int | None = None
        self._paused = False
        self._error: AttemptFailed | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None

    # The caller's side

    async def __aenter__(self) -> Self:
        connection = self._lane.take_idle()
        if connection is not None:
            try:
                await self._ask(connection)
            except ReplyBroken:
                # The worker closed an idle connection just as it was reused. Not a byte of a reply has come, so the
                # call is not known to have been seen: ask once more on a connection that cannot be stale.
                if self._begun:
                    raise
                self._reset()
            else:
                return self
        await self._ask(await self._lane.connect(self._ends_s))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def read(self) -> bytes:
        """What has come since the last read, at least a byte; b"" at the end of the reply.

        Raises ReplyBroken, ReplyMalformed, SilenceTimeout or CallTimeout.
        """
        while not self._blocks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait(time.monotonic() + self._patience.silence_s, SilenceTimeout)
        return self._take()

    async def pour(self, sink: Sink) -> bool:
        """Call `sink` with every block as it comes, until it says True, for enough; whether the reply is at its end.

        A block then goes from socket to socket without waking a task for it, which is half the cost of a slow stream.
        Raises what `read` and `sink` raise; of the latter it has to be an AttemptFailed.
        """
        if self._blocks and sink(self._take()):
            return False
        self._sink = sink
        try:
            while self._sink is not None and not self.complete and self._error is None:
                await self._wait(time.monotonic() + self._patience.silence_s, SilenceTimeout)
        finally:
            enough, self._sink = self._sink is None, None
        if self._error is not None:
            raise self._error
        return not enough

    async def read_whole(self, limit_bytes: int) -> bytes:
        """The rest of the reply.

        Raises what `read` raises, and ReplyOversized beyond `limit_bytes`.
        """
        self._limit_bytes = limit_bytes
        if max(self._size, int(self.headers.get(b"content-length", b"0"))) > limit_bytes:
            self._fail(ReplyOversized(f"a reply of more than {limit_bytes} bytes"))
        self._resume()
        while not self.complete and self._error is None:
            await self._wait(time.monotonic() + self._patience.silence_s, SilenceTimeout)
        if self._error is not None:
            raise self._error
        return self._take()

    async def drain(self) -> None:
        """Wait a moment for the end of a reply that has said all it has to say, so that the connection can be reused."""
        self._ends_s = min(self._ends_s, time.monotonic() + DRAIN_S)
        self.deadline_s = min(self.deadline_s, self._ends_s)
        with contextlib.suppress(AttemptFailed):
            while not self.complete:
                await self.read()

    async def _ask(self, connection: _Connection) -> None:
        self._connection = connection
        connection.exchange = self
        now_s = time.monotonic()
        until_s = now_s + self._patience.first_byte_s
        try:
            if now_s >= self._ends_s:
                raise CallTimeout(_TOO_LONG)  # noqa: TRY301 - see below
            transport = connection.transport
            if len(self._body) < HIGH_WATER_BYTES:
                transport.write(self._head + self._body)
            else:
                transport.writelines((self._head, self._body))
            while not self._head_complete and self._error is None:
                await self._wait(until_s, FirstByteTimeout)
            if self._error is not None:
                raise self._error  # noqa: TRY301 - a failure found here is cleaned up like one found elsewhere
        except BaseException:
            self.release()
            raise

    async def _wait(self, until_s: float, expiry: type[ReplyLate]) -> None:
        if until_s < self._ends_s:
            self.deadline_s, self._expiry = until_s, expiry
        else:
            self.deadline_s, self._expiry = self._ends_s, CallTimeout
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            # While the reader is busy elsewhere (a slow client) the worker's silence is not its fault.
            self.deadline_s, self._expiry = self._ends_s, CallTimeout

    def _take(self) -> bytes:
        blocks = self._blocks
        block = bytes(blocks[0]) if len(blocks) == 1 else b"".join(blocks)
        blocks.clear()
        self._size = 0
        self._resume()
        return block

    def _resume(self) -> None:
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.transport.resume_reading()

    def release(self) -> None:
        """Give the connection back, or close it where the reply has not come to its end."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        # The parser knows this exchange: left alone, the two would wait together for the garbage collector, and every
        # call would find its memory cold.
        self._parser = None
        connection.exchange = None
        transport = connection.transport
        reusable = (
            self.complete
            and self._reusable
            and not self._paused
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        )
        if reusable:
            connection.idle_since_s = time.monotonic()
            self._lane.give_back(connection)
        else:
            connection.abort()

    # The connection's side

    def received(self, data: bytes) -> None:
        if self.complete:
            self._reusable = False  # more than was asked for: out of step
            return
        self._begun = True
        self._beside_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(ReplyMalformed("the worker switched protocols"))
        except httptools.HttpParserError as error:
            self._reusable = False
            if not self.complete:
                self._fail(ReplyMalformed(f"not HTTP: {error}"))
        if self._beside_bytes > MAX_HEAD_BYTES and not self.complete:
            self._fail(ReplyOversized(f"more than {MAX_HEAD_BYTES} bytes of headers or the like"))
        if self._sink is not None and self._blocks:
            self._pour(self._sink)
        # Whoever wants the whole reply, or has it poured, is woken once, at its end.
        if self.complete or self._error is not None or (self._limit_bytes is None and self._sink is None):
            self._wake()
        else:
            self.deadline_s = min(time.monotonic() + self._patience.silence_s, self._ends_s)

    def _pour(self, sink: Sink) -> None:
        try:
            if sink(self._take()):
                self._sink = None
        except AttemptFailed as failure:
            self._error = failure

    def lost(self, exc: Exception | None) -> None:
        if self.complete or self._error is not None:
            return
        ends_with_connection = (
            self._head_complete
            and b"content-length" not in self.headers
            and b"transfer-encoding" not in self.headers
        )
        if ends_with_connection and exc is None:
            self.complete = True
        else:
            where = "in the middle of its reply" if self._begun else "before its reply"
            self._error = ReplyBroken(
                f"the worker closed the connection {where}" + (f": {exc}" if exc else "")
            )
        self._wake()

    def expire(self) -> None:
        patience = self._patience
        texts = {
            FirstByteTimeout: f"no reply within {patience.first_byte_s:g} s",
            SilenceTimeout: f"nothing came for {patience.silence_s:g} s",
            CallTimeout: _TOO_LONG,
        }
        self._fail(self._expiry(texts[self._expiry]))
        self._wake()

    def _fail(self, error: AttemptFailed) -> None:
        if self._error is None:
            self._error = error
        self.deadline_s = math.inf
        if self._connection is not None:
            self._connection.abort()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # llhttp's side

    def on_message_begin(self) -> None:
        if self.complete:
            self._reusable = False  # more than was asked for: out of step

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head_complete:  # else a trailer
            self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self.headers.clear()  # 100 Continue and the like: the reply is still to come
        else:
            self.status = status
            self._head_complete = True

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        if self._limit_bytes is not None and self._blocks:
            # One block grows: a worker may send a whole reply two bytes at a time, and each would take fifty.
            last = self._blocks[-1]
            grown = last if isinstance(last, bytearray) else bytearray(last)
            grown += body
            self._blocks[-1] = grown
        else:
            self._blocks.append(body)
        self._beside_bytes = 0
        self._size += len(body)
        limit = self._limit_bytes
        if limit is not None:
            if self._size > limit:
                self._fail(ReplyOversized(f"a reply of more than {limit} bytes"))
        elif self._size > HIGH_WATER_BYTES and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._head_complete and not self.complete:
            self.complete = True
            # Asked now, for llhttp forgets it with the message.
            self._reusable = self._parser.should_keep_alive()


class Sweep:
    """The one timer of all lanes: a background task that compares their deadlines with the clock."""

    def __init__(self, lanes: Callable[[], list[Lane]], interval_s: float = 0.05) -> None:
        self._lanes = lanes
        self._interval_s = interval_s
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="lane sweep")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            now_s = time.monotonic()
            for lane in self._lanes():
                try:
                    lane.sweep(now_s)
                except Exception:
                    # A defect must not leave every call of the process without deadlines.
                    log.exception("sweeping the lane to %s failed", lane.origin.host)
