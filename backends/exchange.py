"""One request and its reply, on a connection of a lane.

    async with lane.exchange(head, body, patience) as exchange:
        exchange.status, exchange.headers
        block = await exchange.read()          # b"" at the end of the reply
        whole = await exchange.read_whole(limit_bytes)

Leaving the block before the reply is complete closes the connection at once; a vLLM worker takes that as an abort.
Deadlines are plain attributes which one `Sweep` for all exchanges compares with the clock, since a timer a read would
cost more than the read.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any, Self

import httptools
from msgspec import structs

from backends.base import (
    AttemptFailed,
    CallTimeout,
    ConnectFailed,
    EndpointLeaves,
    FirstByteTimeout,
    ReplyBroken,
    ReplyLate,
    ReplyMalformed,
    ReplyOversized,
    SilenceTimeout,
)
from backends.incoming import HIGH_WATER_BYTES, Incoming, Patience

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from backends.lane import Connection, Lane

MAX_HEAD_BYTES = 65_536
"""Of anything that is not body, between two pieces of body: headers, trailers, 1xx replies, chunk extensions."""
STALE_S = 1.0
"""After a call was sent, for how long the loss of a reused connection can be that of a stale one."""

CROSSED_S = 0.02
"""Where it is lost as soon as this, nobody has seen the call: no server reads a request and dies of it so quickly."""

DRAIN_S = 0.5
"""For the last bytes of a reply, after its content; a worker that takes longer loses the connection, no more."""


class _OutOfStep(Exception):
    """More than was asked for; raised through the parser, which ends with it."""


class Exchange(Incoming):
    """One request and its reply on one connection."""

    is_call = False
    """Whether it is more than a look at how the endpoint is."""

    __slots__ = (
        "_begun",
        "_beside_bytes",
        "_body",
        "_connection",
        "_ends_s",
        "_full_patience",
        "_gives_up",
        "_head",
        "_head_complete",
        "_lane",
        "_late",
        "_limit_bytes",
        "_loop",
        "_parser",
        "_raw_headers",
        "_reusable",
        "deadline_s",
        "headers",
        "on_body",
        "on_header",
        "status",
    )

    def __init__(self, lane: Lane, head: bytes, body: bytes, patience: Patience, ends_s: float) -> None:
        self._lane = lane
        self._head = head
        self._body = body
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._ends_s = min(time.monotonic() + patience.total_s, ends_s)
        self._late: type[ReplyLate] = CallTimeout
        self._full_patience = patience
        self._gives_up: Callable[[], bool] | None = None
        self.deadline_s = math.inf
        self._connection: Connection | None = None
        self._reset()

    def _reset(self) -> None:
        super()._reset()
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        # What llhttp finds is put where it belongs without a call of ours for each: it is looked at when all that has come
        # is parsed.
        self._raw_headers: dict[bytes, bytes] = {}
        self.on_header = self._raw_headers.__setitem__
        self.on_body = self._blocks.append
        self._parser: Any = httptools.HttpResponseParser(self)
        self._begun = False
        self._head_complete = False
        self._beside_bytes = 0
        self._reusable = False
        self._limit_bytes: int | None = None

    # The caller's side

    async def __aenter__(self) -> Self:
        connection = self._lane.take_idle()
        if connection is None:
            await self._ask(await self._lane.connect(self._ends_s))
            return self
        asked_s = time.monotonic()
        try:
            await self._ask(connection)
        except EndpointLeaves:
            raise
        except ReplyBroken as broken:
            # The worker closed an idle connection just as it was reused. Not a byte of a reply has come, so the
            # call is not known to have been seen: ask once more on a connection that cannot be stale.
            if self._begun or time.monotonic() - asked_s > STALE_S:
                raise
            self._reset()
            lost_s = time.monotonic()
            try:
                connection = await self._lane.connect(self._ends_s)
            except ConnectFailed:
                if lost_s - asked_s < CROSSED_S:
                    raise  # who was there had gone before it was asked
                raise broken from None  # it was not the connection that was at its end
            await self._ask(connection)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    async def read_whole(self, limit_bytes: int) -> bytes:
        """The rest of the reply.

        Raises ReplyBroken, ReplyMalformed, ReplyOversized beyond `limit_bytes`, SilenceTimeout or CallTimeout.
        """
        self._limit_bytes = limit_bytes
        if max(self._size, int(self.headers.get(b"content-length", b"0"))) > limit_bytes:
            self._fail(ReplyOversized(f"a reply of more than {limit_bytes} bytes"))
        if self._paused:
            self._paused = False
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

    async def _ask(self, connection: Connection) -> None:
        self._connection = connection
        connection.exchange = self
        now_s = time.monotonic()
        until_s = now_s + self._patience.first_byte_s
        try:
            if now_s >= self._ends_s:
                raise CallTimeout  # noqa: TRY301 - see below
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

    async def _wait(self, until_s: float, late: type[ReplyLate]) -> None:
        if until_s < self._ends_s:
            self.deadline_s, self._late = until_s, late
        else:
            self.deadline_s, self._late = self._ends_s, CallTimeout
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            # While the reader is busy elsewhere (a slow client) the worker's silence is not its fault.
            self.deadline_s, self._late = self._ends_s, CallTimeout

    def _resume(self) -> None:
        if self._connection is not None:
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
        held = len(self._blocks)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(ReplyMalformed("the worker switched protocols"))
        except httptools.HttpParserError as error:
            self._reusable = False
            if not self.complete:
                self._fail(ReplyMalformed(f"not HTTP: {error}"))
        if len(self._blocks) > held:
            self._count(self._blocks, held)
        else:
            self._beside_bytes += len(data)
            if self._beside_bytes > MAX_HEAD_BYTES and not self.complete:
                self._fail(ReplyOversized(f"more than {MAX_HEAD_BYTES} bytes of headers or the like"))
        if self._sink is not None and self._blocks:
            self._pour(self._sink)
        # Whoever wants the whole reply, or has it poured, is woken once, at its end.
        if self.complete or self._error is not None or (self._limit_bytes is None and self._sink is None):
            self._wake()
        else:
            self.deadline_s = min(time.monotonic() + self._patience.silence_s, self._ends_s)

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

    def hasten(self, first_s: float) -> None:
        """Be content with so short a wait for the first of it. To be called before its block is entered."""
        full = self._full_patience
        first_byte_s, silence_s = min(full.first_byte_s, first_s), min(full.silence_s, first_s)
        self._patience = structs.replace(full, first_byte_s=first_byte_s, silence_s=silence_s)

    def watch(self, silence_s: float, gives_up: Callable[[], bool]) -> None:
        """Be content with so short a silence from now on, unless `gives_up`, which is asked when it has passed, says no."""
        full = self._full_patience
        self._patience = structs.replace(full, silence_s=min(full.silence_s, silence_s))
        self._gives_up = gives_up

    def expire(self) -> None:
        gives_up, self._gives_up = self._gives_up, None
        if self._late is SilenceTimeout and gives_up is not None and not gives_up():
            full = self._full_patience
            more_s = full.silence_s - self._patience.silence_s
            if more_s > 0.0:
                self._patience = full
                self.deadline_s = min(self.deadline_s + more_s, self._ends_s)
                return
        self.break_off(self._patience.failure(self._late))

    def break_off(self, failure: AttemptFailed) -> None:
        """End it so, from outside."""
        self._fail(failure)
        self._wake()

    def _fail(self, error: AttemptFailed) -> None:
        if self._error is None:
            self._error = error
        self.deadline_s = math.inf
        if self._connection is not None:
            self._connection.abort()

    def _count(self, blocks: list[bytes | bytearray], held: int) -> None:
        """There were so many blocks, and more have come."""
        self._beside_bytes = 0
        self._size += len(blocks[held]) if len(blocks) == held + 1 else sum(map(len, blocks[held:]))
        limit = self._limit_bytes
        if limit is None:
            if self._size > HIGH_WATER_BYTES and not self._paused and self._connection is not None:
                self._paused = True
                self._connection.transport.pause_reading()
        elif self._size > limit:
            self._fail(ReplyOversized(f"a reply of more than {limit} bytes"))
        elif len(blocks) > 1:
            # One block grows: a worker may send a whole reply two bytes at a time, and each would take fifty.
            first = blocks[0]
            grown = first if isinstance(first, bytearray) else bytearray(first)
            grown += b"".join(blocks[1:])
            blocks[:] = (grown,)

    # llhttp's side

    def on_message_begin(self) -> None:
        if self.complete:
            raise _OutOfStep

    def on_headers_complete(self) -> None:
        raw, status = self._raw_headers, self._parser.get_status_code()
        if status < 200:
            raw.clear()  # 100 Continue and the like: the reply is still to come
        else:
            self.status = status
            self._head_complete = True
            self.headers = {name.lower(): value for name, value in raw.items()}  # trailers stay outside

    def on_message_complete(self) -> None:
        if self._head_complete:
            self.complete = True
            # Asked now, for llhttp forgets it with the message.
            self._reusable = self._parser.should_keep_alive()
