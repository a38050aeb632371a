"""The HTTP server: it listens, keeps the time of all connections, and ends without cutting calls short.

Ours, like the lane on the other side, since it is on the way of every byte of every call. One timer serves all
connections; it ends once running calls have finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

from gateway.config import Timeouts
from gateway.connection import Connection

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from gateway.client import Client

BACKLOG = 4096
SAY_GOODBYE_S = 2.0
"""For calls that were cut short to say so to their clients, and to settle."""
LAST_REQUESTS_S = 0.1
"""After the last connection has been taken: requests that were on their way when we stopped have come by then."""
_TICK_S = 0.5


class Server:
    """Serves until it is told to stop; told so again, it cuts running calls short."""

    def __init__(
        self,
        app: Callable[[Client], Awaitable[None]],
        *,
        drain_s: float,
        unready_s: float = 0.0,
        header_limit_bytes: int,
        body_limit_bytes: int,
        most_connections: int,
        on_ready: Callable[[], None],
    ) -> None:
        self.app = app
        self.header_limit_bytes = header_limit_bytes
        self.body_limit_bytes = body_limit_bytes
        self.take_times(Timeouts())
        self.tls: ssl.SSLContext | None = None
        self.busy: set[Connection] = set()
        """Those where a request is being answered."""
        self.leaving = False
        """It has been told to stop: it is not ready any more, and replies say that their connections will be closed."""
        self.stopping = False
        """It takes no more work."""
        self.date_line = b""
        self._most_connections = most_connections
        self.unready_s = unready_s
        self._drain_s = drain_s
        self._on_ready = on_ready
        self.connections: set[Connection] = set()
        self._listeners: Sequence[socket.socket] = ()
        self._listening: dict[int, tuple[socket.socket, asyncio.Server]] = {}
        """By number of the listener, with its duplicate that is accepted from, which is closed by itself."""
        self._stop = asyncio.Event()
        self._hurried = asyncio.Event()
        self._drained = asyncio.Event()
        """No call is left to wait for, or somebody is in a hurry."""

    def take_times(self, times: Timeouts) -> None:
        """What a client may take for its requests, and between them."""
        self.head_s = float(times.request_head_s)
        self.request_s = float(times.request_s)
        self.keep_alive_s = float(times.idle_client_s)

    def stop(self) -> None:
        """Be ready no more, and after `unready_s` take no more connections and return from `serve` once running calls have
        finished, or their time is up.
        """
        if self.leaving:
            self._hurried.set()
            self._drained.set()
        self.leaving = True
        self._stop.set()

    async def serve(self, *listeners: socket.socket, number: int = 0) -> None:
        """Accept connections from the one of these with that number, and from others as it is told. All are closed then."""
        self._listeners = listeners
        await self.accept_from([number])
        ticking = asyncio.create_task(self._tick(), name="connections' clock")
        try:
            self._on_ready()
            await self._stop.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.unready_s):
                    await self._hurried.wait()
            self.stopping = True
            await self._stop_accepting()
            await self._drain()
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            await self._stop_accepting()
            for connection in tuple(self.connections):
                connection.abort()
            await asyncio.sleep(0)  # a transport closes its socket in the next turn of the loop

    async def accept_from(self, numbers: Iterable[int]) -> None:
        """From the listeners with these numbers, and from no others, from now on."""
        loop, wanted = asyncio.get_running_loop(), set() if self.stopping else set(numbers)
        for number in wanted - self._listening.keys():
            own = self._listeners[number].dup()
            own.setblocking(False)
            listening = await loop.create_server(
                lambda: Connection(self),
                sock=own,
                backlog=BACKLOG,
                ssl=self.tls,
                ssl_handshake_timeout=self._handshake_s,
            )
            self._listening[number] = own, listening
        for number in self._listening.keys() - wanted:
            own, listening = self._listening.pop(number)
            if self.stopping:
                await self._accept_the_last(own)
            listening.close()

    @property
    def _handshake_s(self) -> float | None:
        return None if self.tls is None else self.head_s

    async def _stop_accepting(self) -> None:
        await self.accept_from(())
        for listener in self._listeners:
            listener.close()

    async def _accept_the_last(self, listener: socket.socket) -> None:
        """Who has connected before we stop is served: it is our client already, though we have not seen it."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(BlockingIOError):
            for _ in range(BACKLOG):
                accepted, _ = listener.accept()
                await loop.connect_accepted_socket(
                    lambda: Connection(self), accepted, ssl=self.tls, ssl_handshake_timeout=self._handshake_s
                )

    # For connections

    def opened(self, connection: Connection) -> bool:
        """Whether there is room for it. Where there is not, it is looked after until it is closed all the same."""
        self.connections.add(connection)
        return len(self.connections) <= self._most_connections

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.finished(connection)

    def finished(self, connection: Connection) -> None:
        """Nothing is being answered there any more."""
        self.busy.discard(connection)
        if self.stopping and not self.busy:
            self._drained.set()

    async def _tick(self) -> None:
        while True:
            self.date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
            now_s = time.monotonic()
            for connection in tuple(self.connections):
                if now_s >= connection.deadline_s:
                    connection.expire()
            await asyncio.sleep(_TICK_S)

    async def _drain(self) -> None:
        await asyncio.sleep(LAST_REQUESTS_S)
        if not self._hurried.is_set():
            self._drained.clear()  # set where all had finished before the last of them came
        for connection in tuple(self.connections):
            connection.stop()
        await self._until_drained(self._drain_s)
        for connection in tuple(self.busy):
            connection.cut_short()
        self._drained.clear()
        await self._until_drained(SAY_GOODBYE_S)

    async def _until_drained(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s if self.busy else 0):
                await self._drained.wait()


@contextlib.contextmanager
def stopped_by_signals(servers: Sequence[Server]) -> Iterator[None]:
    """SIGTERM and SIGINT stop all of these, as long as the block runs; a second SIGINT cuts running calls short."""
    loop = asyncio.get_running_loop()

    def terminate() -> None:
        for server in servers:
            if not server.leaving:
                server.stop()

    def interrupt() -> None:
        for server in servers:
            server.stop()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        loop.remove_signal_handler(signal.SIGINT)
