"""The lean HTTP/1.1 client on the way to an endpoint: the connections to one origin.

A general HTTP client costs a gateway more than all else it does: on one core, httpx takes twenty times as long per call
as this one and aiohttp three times. So the lane is ours: a pool of keep-alive connections, each an `asyncio.Protocol`
that feeds the `Exchange` which has it now, and bodies handed on as the bytes that came. It knows nothing of what they
mean.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from backends.base import CallTimeout, ConnectFailed, ConnectTimeout, LaneFull, TlsFailed
from backends.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Collection

    from backends.base import AttemptFailed
    from backends.incoming import Patience


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


class Lane:
    """The connections to one origin. Idle ones are reused last in, first out, so that surplus ones grow old."""

    def __init__(self, origin: Origin, limits: LaneLimits) -> None:
        self.origin = origin
        self.limits = limits
        self._idle: dict[Connection, None] = {}
        self._connections: set[Connection] = set()
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

    def break_off(self, failure: AttemptFailed) -> None:
        """End the calls under way so."""
        for connection in list(self._connections):
            if connection.exchange is not None and connection.exchange.is_call:
                connection.exchange.break_off(failure)

    def keep_only(self, addresses: Collection[str]) -> None:
        """The name leads to these now: connections to others are not used again."""
        for connection in list(self._connections):
            peer = connection.transport.get_extra_info("peername")
            connection.is_stale = bool(peer) and peer[0] not in addresses
            if connection.is_stale and connection in self._idle:
                connection.abort()

    def sweep(self, now_s: float) -> None:
        """Fail the exchanges whose deadline has passed and close the connections that have idled too long."""
        for connection in list(self._connections):
            exchange = connection.exchange
            if exchange is not None:
                if now_s >= exchange.deadline_s:
                    exchange.expire()
            elif now_s - connection.idle_since_s >= self.limits.idle_s:
                connection.abort()

    def take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.transport.is_closing():
                return connection
        return None

    async def connect(self, ends_s: float) -> Connection:
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
                    lambda: Connection(self),
                    origin.host,
                    origin.port,
                    ssl=origin.tls,
                    server_hostname=origin.host if origin.tls else None,
                )
        except TimeoutError:
            if left_s <= self.limits.connect_s:
                raise CallTimeout from None
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

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._idle.pop(connection, None)

    def give_back(self, connection: Connection) -> None:
        if connection.is_stale:
            connection.abort()
        else:
            self._idle[connection] = None


class Connection(asyncio.Protocol):
    """A socket, and the exchange that has it now."""

    transport: asyncio.Transport

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.exchange: Exchange | None = None
        self.idle_since_s = 0.0
        self.is_stale = False
        """Whether its name leads elsewhere by now."""

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
