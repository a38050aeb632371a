"""Stores of limits for tests, of every kind that there is, and what they are asked there."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.allowance import Ask, Grant
from gateway.limit_store import LimitStore, MemoryStore
from gateway.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

REDIS = {"redis": "redis", "sentinel": "sentinels", "cluster": "redis_cluster"}
"""Fixtures, by the kind of Redis."""
BUDGET = "tenant:acme/usd/total"
ONE, OTHER = "1-aaaa", "2-bbbb"
LIMIT = 10**15 + 1
"""A million USD, and a nano-USD that a float of 32 bits, or a number printed short, would lose."""


@asynccontextmanager
async def opened(kind: str, request: pytest.FixtureRequest, **options: float) -> AsyncIterator[Any]:
    options = {"settling_s": 0, **options}
    if kind == "memory":
        yield MemoryStore(time.monotonic_ns, settling_s=options["settling_s"])
        return
    store = RedisStore(request.getfixturevalue(REDIS[kind]).url, **options)
    try:
        yield store
    finally:
        await store.close()


def budget(had: int = 0, need: int = 0, wanted: int | None = None, spent: int = 0, limit: int = LIMIT) -> Ask:
    return Ask(BUDGET, "usd", limit, spent, had, need, need if wanted is None else wanted)


def rate(spent: int = 0, had: int = 0, need: int = 0, limit: int = 600_000) -> Ask:
    return Ask("key:k/tokens", "rate", limit, spent, had, need, need)


async def granted(store: LimitStore, process: str, ask: Ask) -> Grant:
    """To a process that knows since when there is this store."""
    since, _ = await store.exchange(process, 0, [])
    _, (grant,) = await store.exchange(process, since, [ask])
    return grant
