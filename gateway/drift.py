"""Whether the store of limits and the ledger agree on what has been spent of budgets, and putting it right where they do not.

What the store has comes from the ledger, so it can only be behind. It is read first, and the ledger after it: where it is
ahead even so, as after a database has been restored from a copy, calls would be refused while money is free. It is put
right without a hold-up for those who have something on lease: their leases stay, and nobody is given more of a budget
before he has read the ledger anew. So this may be done at any time, by several at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.limit_store import LimitStore


class Ledger(Protocol):
    """What has been spent, by account. Blocks; raises StoreAway."""

    def nano_usd(self, accounts: Iterable[str]) -> Mapping[str, int]: ...


class Drift(Struct, frozen=True):
    """What there is in both of one account."""

    account: str
    kept_nano_usd: int
    """In the store. It may be behind by what has just been committed."""
    ledger_nano_usd: int
    repaired: bool = False

    @property
    def ahead_nano_usd(self) -> int:
        return max(0, self.kept_nano_usd - self.ledger_nano_usd)


async def drift(store: LimitStore, ledger: Ledger, *, repair: bool) -> list[Drift]:
    """By account. Raises LimitStoreAway, StoreAway."""
    kept = await store.spent()
    spent = await asyncio.to_thread(ledger.nano_usd, list(kept))
    ahead = {account: (kept[account], spent[account]) for account in kept if kept[account] > spent[account]}
    repaired = await store.repair(ahead) if repair and ahead else []
    return [
        Drift(account, kept[account], spent[account], repaired=account in repaired)
        for account in sorted(kept)
    ]
