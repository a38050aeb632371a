"""Exchanges that go wrong on the wire, one class per way of going wrong.

The routes answer as ever; what they say is let through up to the point where the fault strikes.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from loadtest.simworker.connection import Connection, Exchange, Request, Server
from loadtest.simworker.errors import ENGINE_DIED, error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from loadtest.simworker.faults import Fault, FaultKind

_FILLER = b"tide " * 13_000


class FaultyExchange(Exchange):
    """Lets `after_chunks` events through, then strikes. Whoever produces the reply is told that the client has left."""

    def __init__(self, connection: Connection, request: Request, server: Server, fault: Fault) -> None:
        super().__init__(connection, request, server)
        self._fault = fault
        self._events = 0
        self._streaming = False

    def strike(self) -> None:
        raise NotImplementedError

    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        if self._over:
            return
        if self._fault.after_chunks > 0:
            self.write(self.head(status, len(body), content_type, headers) + body[: len(body) // 2])
        self._struck()

    def open_stream(self) -> None:
        self._streaming = True
        if self._fault.after_chunks > 0:
            super().open_stream()
        else:
            self._struck()

    def event(self, event: bytes) -> None:
        if self._events >= self._fault.after_chunks:
            self._struck()
        else:
            self._events += 1
            super().event(event)

    def end_stream(self) -> None:
        self._struck()

    def _struck(self) -> None:
        if not self._over:
            self.strike()
            self.lost()


class Hang(FaultyExchange):
    """Nothing, for ever; the connection stays open until the client has had enough."""

    def begin(self) -> bool:
        return False


class Stall(FaultyExchange):
    def strike(self) -> None:
        pass

    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        if self._fault.after_chunks == 0:
            self.write(self.head(status, len(body), content_type, headers))
        super().reply(status, body, content_type, headers)

    def open_stream(self) -> None:
        self._streaming = True
        Exchange.open_stream(self)


class Reset(FaultyExchange):
    def begin(self) -> bool:
        if self._fault.after_chunks == 0:
            self._struck()
        return not self._over

    def strike(self) -> None:
        self.connection.reset()


class Truncated(FaultyExchange):
    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        length = len(body) // 2 if self._fault.clean else len(body)
        self.write(self.head(status, length, content_type, headers) + body[: len(body) // 2])
        self._struck()

    def open_stream(self) -> None:
        self._streaming = True
        Exchange.open_stream(self)

    def event(self, event: bytes) -> None:
        if b'"finish_reason":"' in event:
            self._struck()
        else:
            super().event(event)

    def strike(self) -> None:
        if self._streaming and self._fault.clean:
            self.write(b"0\r\n\r\n")
        self.connection.transport.close()


class Garbage(FaultyExchange):
    def strike(self) -> None:
        nonsense = b"\x16\x03\x01 what the tide brought in \xff\xfe\r\n\r\n"
        if self._streaming and self._fault.part == "body":
            if self._fault.after_chunks == 0:
                self.write(self.stream_head())
            self.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(nonsense), nonsense))
        elif self._fault.part == "body":
            self.write(self.head(200, len(nonsense), "application/json") + nonsense)
        else:
            self.write(nonsense)
        self.connection.transport.close()

    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        del status, body, content_type, headers
        self._struck()


class EngineDied(FaultyExchange):
    def strike(self) -> None:
        if self._streaming:
            if self._fault.after_chunks == 0:
                self.write(self.stream_head())
            for event in (ENGINE_DIED, b"data: [DONE]\n\n"):
                self.write(b"%x\r\n%b\r\n" % (len(event), event))
            self.write(b"0\r\n\r\n")
            self.connection.over(keep_alive=self._keep_alive)
        else:
            Exchange.reply(self, 500, ENGINE_DIED.removeprefix(b"data: ").rstrip())

    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        del status, body, content_type, headers
        Exchange.reply(self, 500, ENGINE_DIED.removeprefix(b"data: ").rstrip())


class Status(FaultyExchange):
    """An error before the engine hears of the request."""

    def begin(self) -> bool:
        fault = self._fault
        wait = "" if fault.retry_after_s is None else f"retry-after: {fault.retry_after_s:g}\r\n"
        body = error_body(fault.status, fault.message, HTTPStatus(fault.status).phrase, fault.param)
        Exchange.reply(self, fault.status, body, headers=wait)
        return False


class _Writer(Exchange):
    """A reply that is written by a task of its own, at its own pace."""

    def __init__(self, connection: Connection, request: Request, server: Server, fault: Fault) -> None:
        super().__init__(connection, request, server)
        self._fault = fault
        self._task: asyncio.Task[None] | None = None

    def run(self, pace: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(pace())

    def lost(self) -> None:
        if self._task is not None:
            self._task.cancel()
        super().lost()


class Drip(_Writer):
    def __init__(self, connection: Connection, request: Request, server: Server, fault: Fault) -> None:
        super().__init__(connection, request, server, fault)
        self._pending = bytearray()
        self._whole = False

    def write(self, data: bytes) -> None:
        self._pending += data
        if self._task is None:
            self.run(self._drip)

    def complete(self) -> None:
        self._whole = True

    async def _drip(self) -> None:
        while self._pending or not self._whole:
            if self._pending:
                self.connection.transport.write(bytes(self._pending[:1]))
                del self._pending[:1]
            await asyncio.sleep(self._fault.delay_s)
        super().complete()


class Oversized(_Writer):
    def reply(
        self, status: int, body: bytes, content_type: str | None = "application/json", headers: str = ""
    ) -> None:
        del body
        size = self._fault.size_bytes
        start = self.head(status, size + 16, content_type, headers) + b'{"choices":"'
        self._flood(b"HTTP/1.1 200 OK\r\nx-tide: " if self._fault.part == "head" else start)

    def open_stream(self) -> None:
        if self._fault.part == "head":
            self._flood(b"HTTP/1.1 200 OK\r\nx-tide: ")
        else:
            self._flood(self.stream_head() + b'%x\r\ndata: {"choices":"' % (self._fault.size_bytes + 20))

    def event(self, event: bytes) -> None:
        pass

    def end_stream(self) -> None:
        pass

    def _flood(self, start: bytes) -> None:
        self.connection.transport.write(start)
        self.run(self._write_all)

    async def _write_all(self) -> None:
        left = self._fault.size_bytes
        while left > 0:
            self.connection.transport.write(_FILLER[:left])
            left -= len(_FILLER)
            await self.connection.writable()
        self.connection.transport.close()


_KINDS: dict[FaultKind, Callable[[Connection, Request, Server, Fault], Exchange]] = {
    "hang": Hang,
    "reset": Reset,
    "stall": Stall,
    "drip": Drip,
    "garbage": Garbage,
    "status": Status,
    "truncated": Truncated,
    "engine_died": EngineDied,
    "oversized": Oversized,
}


def faulty(connection: Connection, request: Request, server: Server, fault: Fault) -> Exchange:
    """The exchange that goes wrong as ordered. A slow one goes right on the wire: the engine takes its time."""
    if fault.kind == "slow":
        exchange = Exchange(connection, request, server)
        exchange.slowness = fault.factor
        return exchange
    return _KINDS[fault.kind](connection, request, server, fault)
