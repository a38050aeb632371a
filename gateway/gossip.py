"""Carries what gateways tell each other of the fleet (`routing.gossip`), a few times a second, as far as it gets.

By Redis where it is configured, to all processes of all gateways that share it; otherwise between the processes of this machine,
by datagrams on Unix sockets in a folder that only we may look into. Nothing waits for it: what does not arrive is made good by what
is said next, and calls never look at it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.rounds import rounds
from gateway.redis_url import RedisUrl
from routing.gossip import Batch, Gossip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from backends.fleet import Fleet
    from gateway.config import Config
    from gateway.supervisor import Seat

log = logging.getLogger(__name__)

EVERY_S = 0.05
"""Between two batches: in simulation four gateways then have a tenth longer p99 of times to first token than one, sixteen a third;
with half a second a quarter and a half longer.
"""
AT_PACE = 16
"""Others: where more listen, each says what it has to say less often, in larger batches, so that what all have to hear, and Redis
to pass on, does not grow with the square of how many they are.
"""
SLOWEST_S = 0.5
FORGET_S = 1.0
ALONE_S = 1.0
"""Between two where nobody listens."""
_AGAIN_S = 0.5
_READ_AT_ONCE = 64
_BUFFER_BYTES = 1 << 20
_SUFFIX = ".gossip"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


class Link(Protocol):
    """To the others."""

    async def send(self, message: bytes) -> int:
        """To how many it has gone."""

    def receiving(self, take: Callable[[bytes], None]) -> AbstractAsyncContextManager[None]:
        """Take what comes, as long as the block runs."""


class LocalLink:
    """To the other processes of this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._own = folder / f"{name}{_SUFFIX}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._others: list[Path] = []
        self._looked_s = float("-inf")

    async def send(self, message: bytes) -> int:
        now_s = time.monotonic()
        if now_s - self._looked_s >= FORGET_S:
            self._others = [path for path in self._folder.glob(f"*{_SUFFIX}") if path != self._own]
            self._looked_s = now_s
        sent = 0
        for other in self._others:
            with contextlib.suppress(OSError):  # it is gone, or has too much to read
                self._socket.sendto(message, str(other))
                sent += 1
        return sent

    @asynccontextmanager
    async def receiving(self, take: Callable[[bytes], None]) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with self._socket as own:
            own.bind(str(self._own))
            loop.add_reader(own, self._read, take)
            try:
                yield
            finally:
                loop.remove_reader(own)
                self._own.unlink(missing_ok=True)

    def _read(self, take: Callable[[bytes], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_READ_AT_ONCE):
                take(self._socket.recv(_BUFFER_BYTES))


class RedisLink:
    """To all that share a Redis."""

    def __init__(self, url: str) -> None:
        # Imported here: where there is no Redis, there is none to speak to.
        from redis.exceptions import MovedError, RedisError  # noqa: PLC0415  as above

        from gateway.redis_client import PREFIX, client_of, hear  # noqa: PLC0415  as above

        where = RedisUrl.parse(url)
        self._redis: Any = client_of(where, text=False)
        self._hear = hear
        self._moved, self._errors = MovedError, (RedisError, OSError, TimeoutError)
        # A channel is a server's, not a database's.
        self._channel = f"{PREFIX}gossip:{where.number}"
        self._sharded = where.kind == "cluster"
        """So it concerns the servers of one slot alone, and not all of the cluster."""

    async def send(self, message: bytes) -> int:
        try:
            publish = "SPUBLISH" if self._sharded else "PUBLISH"
            heard = await self._redis.execute_command(publish, self._channel, message)
            return max(0, int(heard) - 1)  # we listen as well
        except self._moved:
            await self._redis.connection_pool.disconnect(inuse_connections=False)
            return 0
        except self._errors as failure:
            self._understand(failure)
            return 0

    @asynccontextmanager
    async def receiving(self, take: Callable[[bytes], None]) -> AsyncIterator[None]:
        task = asyncio.create_task(self._listen(take), name="gossip")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._redis.aclose()

    async def _listen(self, take: Callable[[bytes], None]) -> None:
        while True:
            try:
                await self._hear(self._redis, self._channel, take, sharded=self._sharded)
            except self._errors as failure:
                self._understand(failure)
            await asyncio.sleep(_AGAIN_S)  # that it is away is said where limits are

    def _understand(self, failure: Exception) -> None:
        """A cluster of before Redis 7 has channels of all its servers only."""
        if self._sharded and "unknown command" in str(failure).lower():
            self._sharded = False


def pause_s(others: int) -> float:
    """Between two batches, by how many listen."""
    return min(SLOWEST_S, EVERY_S * max(1.0, others / AT_PACE)) if others else ALONE_S


class Exchange(Collector):
    """One gateway's part in it."""

    def __init__(self, gossip: Gossip, clock: Callable[[], float] = time.monotonic) -> None:
        self._gossip = gossip
        self._clock = clock
        self._forgot_s = self._next_s = float("-inf")
        self._others = 0
        self._not_understood = 0

    @asynccontextmanager
    async def running(self, link: Link) -> AsyncIterator[None]:
        """As long as the block runs."""
        async with (
            link.receiving(self.take),
            rounds(lambda _: self.round(link, self._clock()), EVERY_S, "gossip"),
        ):
            yield

    def take(self, message: bytes) -> None:
        """One of the others has said this."""
        try:
            self._gossip.take(_decode(message), self._clock())
        except msgspec.DecodeError:  # of another version
            self._not_understood += 1

    async def round(self, link: Link, now_s: float) -> None:
        """Say what there is to say."""
        if now_s - self._forgot_s >= FORGET_S:
            self._gossip.forget(now_s)
            self._forgot_s = now_s
        batch = self._gossip.batch(now_s) if now_s >= self._next_s else None
        if batch is not None:
            self._others = await link.send(_encode(batch))
            # Half a round early, since rounds are not quite even.
            self._next_s = now_s + pause_s(self._others) - EVERY_S / 2

    def collect(self) -> Iterable[Metric]:
        batches = CounterMetricFamily(
            "tidegate_gossip_batches_total",
            "Batches of what processes and gateways tell each other of the fleet: sent, heard, or not understood.",
            labels=["what"],
        )
        batches.add_metric(["sent"], self._gossip.sent)
        batches.add_metric(["heard"], self._gossip.heard)
        batches.add_metric(["not_understood"], self._not_understood)
        yield batches
        yield GaugeMetricFamily(
            "tidegate_gossip_peers", "To how many others the last batch went.", value=self._others
        )


@asynccontextmanager
async def gossiping(
    config: Config, fleet: Fleet, seat: Seat | None, who: str, registry: CollectorRegistry
) -> AsyncIterator[None]:
    """Tell the others and listen to them, where there can be any, as long as the block runs."""
    exchange = Exchange(Gossip(who, lambda: fleet.pools))
    registry.register(exchange)
    link: Link
    if config.shares_state:
        link = RedisLink(config.shared_state.get_secret_value())
    elif seat is not None:
        link = LocalLink(seat.folder, seat.name)
    else:
        yield
        return
    async with exchange.running(link):
        yield
