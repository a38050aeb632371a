"""The load generator: sends calls at an OpenAI-compatible server and measures what each of them met with.

In an open loop a call's latency counts from when it was meant to begin, not from when the generator got round to it,
so that a stalled target cannot hide its stall by holding up the measurement (coordinated omission). In a closed loop
each of a number of clients sends its next call when its last has ended.

The HTTP client here is its own, and shares nothing with the lane the gateway speaks to its workers through: an
instrument must not share bugs with what it measures. It is a Protocol over httptools with a keep-alive pool and no
task and no timer per call, which drives some ten thousand calls a second on one core.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import time
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import urlsplit

import httptools

from loadtest.sample import ABORTED, OK, Sample, StreamTally, judge_body
from loadtest.workloads import render_requests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from loadtest.workloads import Workload

_SWEEP_S = 0.1
_RETRY_CONNECT_S = 0.05
"""A closed loop's client that could not connect waits this long, or it would do nothing but hammer."""


class _Exchange:
    """One call under way."""

    __slots__ = (
        "abort",
        "body",
        "bytes",
        "client",
        "connection",
        "intended_s",
        "request",
        "retried",
        "started_s",
        "status",
        "tally",
    )

    def __init__(
        self, intended_s: float, started_s: float, request: bytes, *, client: bool, stream: bool
    ) -> None:
        self.intended_s = intended_s
        self.started_s = started_s
        self.request = request
        self.client = client
        """Whether a closed loop's client waits for its end."""
        self.connection: _Connection | None = None
        self.retried = False
        self.abort: asyncio.TimerHandle | None = None
        self.status = 0
        self.bytes = 0
        self.body: list[bytes] = []
        self.tally = StreamTally() if stream else None


class _Connection(asyncio.Protocol):
    """One connection to the target, with at most one call on it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: _Exchange | None = None
        self._used = False
        self._answered = False
        self._in_body = False
        self._framed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit asyncio's

    def send(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._answered = self._in_body = self._framed = False
        exchange.connection = self
        self._transport.write(exchange.request)

    def drop(self) -> None:
        """Close at once, whatever is under way."""
        self._exchange = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("malformed")
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002 - httptools' signature
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._framed = True

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._exchange is not None:
            self._exchange.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        if self._exchange is not None:
            self._load.received(self._exchange, piece)

    def on_message_complete(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:  # a reply nobody asked for
            self._transport.abort()
            return
        self._used = True
        if self._parser.should_keep_alive():
            self._load.release(self)
        else:
            self._transport.close()
        self._load.completed(exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.forget(self)
        exchange = self._exchange
        if exchange is None:
            return
        if not self._answered and self._used and not exchange.retried:
            self._exchange = None
            self._load.retry(exchange)  # an idle connection that the server closed as we took it
        elif self._in_body and not self._framed and exc is None:
            self._exchange = None
            self._load.completed(exchange)  # a body that ends with the connection
        else:
            self._fail("truncated" if self._in_body and exc is None else "reset")

    def _fail(self, kind: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._load.ended(exchange, kind)


class Load:
    """One run against one target: the calls under way, the connections, and what has been measured."""

    def __init__(self, workload: Workload) -> None:
        parts = urlsplit(workload.url)
        if parts.hostname is None or parts.scheme not in {"http", "https"}:
            raise ValueError(f"not an http(s) base URL: {workload.url!r}")
        self._workload = workload
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._requests = render_requests(workload)
        self._dice = random.Random(workload.seed)
        self._loop: asyncio.AbstractEventLoop
        self._start_s = 0.0
        self._active: dict[_Exchange, None] = {}
        self._idle: dict[_Connection, None] = {}
        self._connects: set[asyncio.Task[None]] = set()
        self._typical_s = 0.01
        self._until_s = 0.0
        self._calls_left = 0
        self._pending = 0
        """Open loop: 1 until the last arrival. Closed loop: clients that wait before they connect again."""
        self._sweep: asyncio.TimerHandle | None = None
        self._quiet = asyncio.Event()
        self.samples: list[Sample] = []
        self.tokens = 0
        """Tokens received so far, also of calls that have not ended."""
        self.errors = 0
        self.retries = 0

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._start_s = time.perf_counter()
        self._sweep = self._loop.call_later(_SWEEP_S, self._time_out)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        for task in self._connects:
            task.cancel()
        for exchange in self._active:
            if exchange.abort is not None:
                exchange.abort.cancel()
            if exchange.connection is not None:
                exchange.connection.drop()
        for connection in tuple(self._idle):
            connection.drop()
        await asyncio.gather(*self._connects, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    @property
    def inflight(self) -> int:
        return len(self._active)

    async def open_loop(self, arrivals: Iterator[float]) -> None:
        """Begin a call at each of `arrivals`; returns when all have ended.

        A thread keeps the time: the event loop's own timers are good to a millisecond only, which would drown what a
        gateway adds.
        """
        stop = threading.Event()
        begun_s = self.now_s()

        def keep_time() -> None:
            for after_s in arrivals:
                due_s = begun_s + after_s
                if stop.wait(max(0.0, due_s - self.now_s())):
                    return
                self._loop.call_soon_threadsafe(self._arrive, due_s)
            self._loop.call_soon_threadsafe(self._all_arrived)

        self._pending = 1
        self._quiet.clear()
        thread = threading.Thread(target=keep_time, name="arrivals", daemon=True)
        thread.start()
        try:
            await self._quiet.wait()
        finally:
            stop.set()
            thread.join()

    async def closed_loop(
        self, clients: int, *, seconds: float | None = None, calls: int | None = None
    ) -> None:
        """Keep `clients` calls under way for `seconds`, or until `calls` were sent; returns when all have ended."""
        self._until_s = float("inf") if seconds is None else self.now_s() + seconds
        self._calls_left = -1 if calls is None else calls
        self._quiet.clear()
        for _ in range(clients):
            self._next()
        if self._active:
            await self._quiet.wait()

    def _next(self) -> None:
        now_s = self.now_s()
        if self._calls_left != 0 and now_s < self._until_s:
            self._calls_left -= 1
            self._begin(now_s, client=True)

    def _next_after_pause(self) -> None:
        self._pending -= 1
        self._next()
        self._settle()

    def _arrive(self, due_s: float) -> None:
        self._begin(due_s, client=False)

    def _all_arrived(self) -> None:
        self._pending -= 1
        self._settle()

    def _settle(self) -> None:
        if not self._active and not self._pending:
            self._quiet.set()

    def _begin(self, intended_s: float, *, client: bool) -> None:
        workload = self._workload
        request = self._requests[(len(self.samples) + len(self._active)) % len(self._requests)]
        exchange = _Exchange(intended_s, self.now_s(), request, client=client, stream=workload.stream)
        self._active[exchange] = None
        if workload.abort_fraction and self._dice.random() < workload.abort_fraction:
            delay_s = self._dice.random() * self._typical_s
            exchange.abort = self._loop.call_later(delay_s, self._abort, exchange)
        self._send(exchange)

    def _send(self, exchange: _Exchange) -> None:
        if self._idle:
            connection, _ = self._idle.popitem()
            connection.send(exchange)
        else:
            task = self._loop.create_task(self._connect(exchange))
            self._connects.add(task)
            task.add_done_callback(self._connects.discard)

    async def _connect(self, exchange: _Exchange) -> None:
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self), self._host, self._port, ssl=self._tls
            )
        except OSError:
            if exchange in self._active:
                self.ended(exchange, "connect")
            return
        if exchange in self._active:
            connection.send(exchange)
        else:
            self.release(connection)  # its call was aborted or timed out meanwhile

    def _abort(self, exchange: _Exchange) -> None:
        self._cut(exchange, ABORTED)

    def _cut(self, exchange: _Exchange, outcome: str) -> None:
        if exchange.connection is not None:
            exchange.connection.drop()
        self.ended(exchange, outcome)

    def _time_out(self) -> None:
        """One sweep for all calls. They are kept in the order they were begun in, so it ends at the first young one."""
        latest_s = self.now_s() - self._workload.timeout_s
        while self._active:
            oldest = next(iter(self._active))
            if oldest.started_s > latest_s:
                break
            self._cut(oldest, "timeout")
        self._sweep = self._loop.call_later(_SWEEP_S, self._time_out)

    def release(self, connection: _Connection) -> None:
        """`connection` can take another call."""
        self._idle[connection] = None

    def forget(self, connection: _Connection) -> None:
        """`connection` has closed."""
        self._idle.pop(connection, None)

    def retry(self, exchange: _Exchange) -> None:
        """Send the call again: what it was sent on had already been closed by the target."""
        self.retries += 1
        exchange.retried = True
        exchange.connection = None
        self._send(exchange)

    def received(self, exchange: _Exchange, piece: bytes) -> None:
        """A piece of the body has come."""
        exchange.bytes += len(piece)
        if exchange.tally is None or exchange.status != 200:
            exchange.body.append(piece)
        else:
            self.tokens += exchange.tally.feed(piece, self.now_s())

    def completed(self, exchange: _Exchange) -> None:
        """The reply has ended as HTTP wants it; whether it is whole is another question."""
        if exchange.status != 200:
            self.ended(exchange, f"status_{exchange.status}")
        elif exchange.tally is not None:
            self.ended(exchange, exchange.tally.outcome)
        else:
            outcome, tokens = judge_body(b"".join(exchange.body))
            self.tokens += tokens
            self.ended(exchange, outcome, tokens)

    def ended(self, exchange: _Exchange, outcome: str, tokens: int = 0) -> None:
        """The call is over, however it went."""
        del self._active[exchange]
        if exchange.abort is not None:
            exchange.abort.cancel()
        now_s, tally = self.now_s(), exchange.tally
        if tally is not None:
            tokens = tally.tokens if tally.reported is None else tally.reported
        sample = Sample(
            intended_s=exchange.intended_s,
            started_s=exchange.started_s,
            ended_s=now_s,
            outcome=outcome,
            first_token_s=tally.first_token_s if tally is not None else None,
            last_token_s=tally.last_token_s if tally is not None else None,
            tokens=tokens,
            bytes=exchange.bytes,
        )
        self.samples.append(sample)
        if outcome == OK:
            self._typical_s += (sample.duration_s - self._typical_s) * 0.05
        elif outcome != ABORTED:
            self.errors += 1
        if exchange.client:
            if outcome == "connect":
                self._pending += 1
                self._loop.call_later(_RETRY_CONNECT_S, self._next_after_pause)
            else:
                self._next()
        self._settle()
