"""What is left of the limits that bound a key's calls: of its own, its project's and its tenant's, as its holder may know.

What has been spent of a budget is what the ledger says and this gateway is about to tell it; the rest is as the store of
limits knows it just now.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from gateway.billing import balance_nano_usd
from gateway.output import iso
from gateway.windows import Window

if TYPE_CHECKING:
    from gateway.allowance import Slice
    from gateway.auth import Key
    from gateway.limits import Limits
    from gateway.policy import Policies
    from gateway.store import Store

_NAMES = {"requests": "requests_per_min", "tokens": "tokens_per_min", "calls": "concurrency"}


class LimitShown(BaseModel):
    """Requests or tokens per minute, or calls at once."""

    subject: str = Field(description="Whose it is, such as `key:ID`, `project:TENANT/NAME`, `tenant:NAME`.")
    name: str = Field(
        description="`requests_per_min`, `tokens_per_min` or `concurrency`, as policies have it."
    )
    limit: int
    used: int | None = Field(description="Null: it cannot be looked up now.")
    left: int | None
    resets_in_s: float | None = Field(description="Until all of it is left; of calls at once, null.")


class BudgetShown(BaseModel):
    """What is used, held and left is the limit, unless more has been used than a limit that was lowered."""

    subject: str
    period: str = Field(description="`day`, `week`, `month` or `total`.")
    limit_nano_usd: int
    used_nano_usd: int = Field(description="Charged.")
    held_nano_usd: int = Field(description="By calls under way, at the most that they can cost.")
    left_nano_usd: int
    resets: str | None = Field(description="When the next window begins; of `total`, null.")


class OwnLimits(BaseModel):
    limits: list[LimitShown]
    budgets: list[BudgetShown]
    balance_nano_usd: int | None = Field(
        description="Of a tenant that pays in advance, what is left of it; of others, null."
    )


class OwnLimiter:
    """Who tells keys what is left."""

    def __init__(self, limits: Limits, store: Store, policies: Policies) -> None:
        self._limits = limits
        self._store = store
        self._policies = policies

    async def of(self, key: Key) -> OwnLimits:
        """Raises StoreAway."""
        now_s = time.time()
        slices = self._limits.slices_of(key, now_s)
        known = await self._limits.accounts.look(slices)
        balance = None
        if key.tenant in self._policies.prepaid:
            balance = await asyncio.to_thread(balance_nano_usd, self._store, key.tenant)
        now_ns = time.monotonic_ns()
        return OwnLimits(
            limits=[_limit(each, now_ns, known=known) for each in slices if each.kind != "usd"],
            budgets=[_budget(each) for each in slices if each.kind == "usd"],
            balance_nano_usd=balance,
        )


def _limit(each: Slice, now_ns: int, *, known: bool) -> LimitShown:
    subject, _, what = each.account.rpartition("/")
    left = each.left(now_ns)
    rate = each.kind == "rate"
    return LimitShown(
        subject=subject,
        name=_NAMES[what],
        limit=each.limit,
        used=each.limit - left if known else None,
        left=left if known else None,
        resets_in_s=round(each.until_ns(each.limit, now_ns) / 1e9, 3) if known and rate else None,
    )


def _budget(each: Slice) -> BudgetShown:
    window = Window.named(each.account)
    used_nano_usd, held_nano_usd = each.spent + each.owed, each.held + each.others
    return BudgetShown(
        subject=window.subject,
        period=window.period,
        limit_nano_usd=each.limit,
        used_nano_usd=used_nano_usd,
        held_nano_usd=held_nano_usd,
        left_nano_usd=max(0, each.limit - used_nano_usd - held_nano_usd),
        resets=None if window.period == "total" else iso(round(window.until_s * 1000)),
    )
