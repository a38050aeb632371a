"""Limits as the gateway has them: what they stand on is opened at its start, and closed when the last row has been moved."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.drift import drift
from gateway.errors import ApiError
from gateway.journal import owners_in
from gateway.limit_accounts import Accounts
from gateway.limit_store import MemoryStore, NoStore
from gateway.limits import Hold, Limits, Served
from gateway.open_calls import OpenCalls
from gateway.spending import Spending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.fleet import Fleet
    from gateway.auth import Key
    from gateway.catalog import Catalog, Offer
    from gateway.config import Config
    from gateway.drift import Drift
    from gateway.journal import Journal
    from gateway.limit_store import LimitStore
    from gateway.openai import Request
    from gateway.store import Store


def not_shared() -> ApiError:
    return ApiError(
        "invalid_value", "shared_state is memory://: each process has its limits from the ledger alone"
    )


class Limiter:
    """What the edge asks for a call whose key has limits."""

    def __init__(self, limits: Limits, fleet: Fleet) -> None:
        self._limits = limits
        self._fleet = fleet

    async def hold(self, caller: Key, request: Request, offer: Offer, call_id: str) -> Hold:
        """What the call needs. Raises ApiError."""
        first = offer.models[0]
        pool = self._fleet.pool(first.name)
        contexts = pool.contexts
        for model in offer.models[1:]:
            contexts += self._fleet.pool(model.name).contexts
        served = Served(
            first.name,
            tuple([model.price_for(request.tier, caller.tenant) for model in offer.models]),
            contexts,
            pool.output_tokens(caller.tenant),
        )
        return await self._limits.hold(caller, request, served, call_id)


class Limiting(Struct):
    """What stands behind limits."""

    accounts: Accounts
    limits: Limits
    open_calls: OpenCalls

    async def drift(self, repair: bool) -> list[Drift]:  # noqa: FBT001 - it has no other argument
        """Raises ApiError where the limits are this process' own."""
        if not self.accounts.store.shared:
            raise not_shared()
        return await self.accounts.drift(repair=repair)


@asynccontextmanager
async def limiting(
    config: Config, catalog: Catalog, journal: Journal, store: Store, *, alone: bool = True
) -> AsyncIterator[Limiting]:
    """`alone` where there is no other process. To be left after the mover: only then is all that calls have spent in the ledger, and can the rest be given back."""
    page = OpenCalls.open(journal.folder, journal.owner)
    async with AsyncExitStack() as stack:
        shared = await _store(config, stack, alone=alone)
        accounts = Accounts(shared, Spending(store), journal.owner, partial(owners_in, journal.folder))
        keeping = [asyncio.create_task(accounts.run(), name="limits")]
        keeping.append(asyncio.create_task(shared.listen(journal.owner, accounts.told), name="limits' news"))
        try:
            yield Limiting(accounts, Limits(accounts, lambda: catalog.limits), page)
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)
            page.close(discard=await accounts.give_back())


async def drift_of(config: Config, store: Store, repair: bool) -> list[Drift]:  # noqa: FBT001 - as above
    """The same without a gateway that runs."""
    async with AsyncExitStack() as stack:
        shared = await _store(config, stack, alone=True)
        if not shared.shared:
            raise not_shared()
        return await drift(shared, Spending(store), repair=repair)


async def _store(config: Config, stack: AsyncExitStack, *, alone: bool) -> LimitStore:
    if not config.shares_state:
        return MemoryStore(time.monotonic_ns) if alone else NoStore()
    url = config.shared_state.get_secret_value()
    # Imported here: where limits are this process' own, there is no Redis to speak to.
    from gateway.redis_store import RedisStore  # noqa: PLC0415  as above

    shared = RedisStore(url)
    stack.push_async_callback(shared.close)
    return shared
