"""What one Redis can do for many gateways: exchanges of limits, and gossip passed on, through the gateway's own clients."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.allowance import Ask
from gateway.gossip import RedisLink
from gateway.redis_store import RedisStore
from loadtest import procfs

if TYPE_CHECKING:
    from gateway.allowance import Kind
    from loadtest.redis_server import Server

ACCOUNTS = (1, 50)
LISTENERS = (1, 15)
_CLIENTS = 8
_LIMIT = 10**12
_KINDS: tuple[Kind, ...] = ("rate", "usd", "calls")


class Exchanged(Struct, frozen=True):
    """Limits of so many accounts asked for at once, by several processes at once."""

    accounts: int
    per_s: float
    """As fast as these clients could, beside which Redis may have had time to spare."""
    redis_us: float
    """Its processor time for one."""


class PassedOn(Struct, frozen=True):
    """Batches of gossip to so many others."""

    listeners: int
    batch_bytes: int
    redis_us: float
    """Its processor time for one batch, all listeners together."""


async def exchanged(server: Server, accounts: int, seconds: float) -> Exchanged:
    stores = [RedisStore(server.url, settling_s=0.0) for _ in range(_CLIENTS)]
    try:
        begun_s, used_s = time.perf_counter(), procfs.cpu_s(server.pid)
        counts = await asyncio.gather(
            *(
                _exchange(store, f"process-{accounts}-{number}", accounts, begun_s + seconds)
                for number, store in enumerate(stores)
            )
        )
        elapsed_s, used_s = time.perf_counter() - begun_s, procfs.cpu_s(server.pid) - used_s
    finally:
        for store in stores:
            await store.close()
    count = sum(counts)
    return Exchanged(accounts, count / elapsed_s, used_s / count * 1e6)


async def _exchange(store: RedisStore, process: str, accounts: int, until_s: float) -> int:
    """One after the other, as one process does; a third of the accounts are budgets."""
    since = count = 0
    while time.perf_counter() < until_s:
        wanted = 10_000 + count % 1000
        asks = [
            Ask(f"scale/{kind}/{number}", kind, _LIMIT, 0, wanted - 1, wanted, wanted)
            for number in range(accounts)
            for kind in _KINDS[number % 3 : number % 3 + 1]
        ]
        since, _ = await store.exchange(process, since, asks)
        count += 1
    return count


async def passed_on(server: Server, listeners: int, batch_bytes: int, seconds: float) -> PassedOn:
    """One says batches of that size as fast as it can."""
    async with AsyncExitStack() as stack:
        for _ in range(listeners):
            await stack.enter_async_context(RedisLink(server.url).receiving(lambda _: None))
        teller, message = RedisLink(server.url), bytes(batch_bytes)
        await stack.enter_async_context(teller.receiving(lambda _: None))
        while await teller.send(message) < listeners:  # noqa: ASYNC110 - those who listen arrive when they do
            await asyncio.sleep(0.02)
        begun_s, used_s, sent = time.perf_counter(), procfs.cpu_s(server.pid), 0
        while time.perf_counter() - begun_s < seconds:
            await teller.send(message)
            sent += 1
        return PassedOn(listeners, batch_bytes, (procfs.cpu_s(server.pid) - used_s) / sent * 1e6)
