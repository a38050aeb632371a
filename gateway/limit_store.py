"""Where accounts are kept, and on lease from where processes use them: in memory, where there is one process, or in Redis.

The rules are the same in both, and one suite of tests holds them to it:

- What is spent of an account and what is on lease never exceed its limit by what a store has given.
- Who asks for more gets all that he wants, or what there is if that is what he needs, or nothing more.
- What somebody has is not taken from him. He gives it back when he asks for less; where somebody else is short he is told.
- A process that is not heard of for a while is taken for dead: its calls and rates are free again. What it has of budgets
  is not, for it may have spent it: that is free when its journal has been read, by whoever reads it, or after a day.
- A store that has just begun gives nothing of budgets for a moment, so that those who had something can say so first; nor
  does it to a process that does not know that it has begun anew, and may know less of what is spent than the ledger.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

from gateway.allowance import MINUTE_NS, Ask, Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DEAD_AFTER_S = 10.0
FORGOTTEN_AFTER_S = 86_400.0
SETTLING_S = 2.0


class LimitStoreAway(Exception):
    """It cannot be reached."""


class LimitStore(Protocol):
    """Where accounts are kept. One question at a time."""

    shared: bool
    """Whether other processes have their leases from it as well."""

    async def exchange(self, process: str, since: int, asks: Sequence[Ask]) -> tuple[int, list[Grant]]:
        """Since when there is this store, and what comes of each, all in one round trip. Raises LimitStoreAway.

        `since` is what it has said last. Where it now says something else, the ledger is to be asked what is spent.
        """
        ...

    async def listen(self, process: str, told: Callable[[str, str], None]) -> None:
        """For ever: `told(what, account)`, what being `short` where another process is short of it, or `back`."""
        ...

    async def accounts_of(self, process: str) -> list[str]:
        """The budgets of which a process has something on lease."""
        ...

    async def ended(self, process: str, spent: Mapping[str, int]) -> None:
        """A process is dead and all that it has spent is in the ledger, which says so much of each of its accounts."""
        ...

    async def heard(self) -> tuple[int, set[str]]:
        """For how many ms it still gives nothing of budgets, having just begun; and of which processes it knows."""
        ...

    async def forgotten(self) -> list[str]:
        """Processes that have not been heard of for a day."""
        ...

    async def spent(self) -> dict[str, int]:
        """What it takes to have been spent of each budget."""
        ...

    async def repair(self, accounts: Mapping[str, tuple[int, int]]) -> list[str]:
        """Of each of these it takes so much to be spent that cannot be, and is to take the second figure instead.

        Those of which it now takes something else stay, and are not among those returned. From then on it is as one that
        has begun anew, but for what is on lease.
        """
        ...


class _Account:
    def __init__(self) -> None:
        self.spent = 0
        """Of a rate, times MINUTE_NS: so much of it drains in a nanosecond as the limit is."""
        self.at_ns = 0
        """When it was last asked for."""
        self.leases: dict[str, int] = {}
        self.kind = ""


class MemoryStore:
    """Accounts of this process alone. Others have their own, so that limits hold for each of them by itself."""

    shared = False

    def __init__(self, now_ns: Callable[[], int], settling_s: float = 0.0) -> None:
        self._now_ns = now_ns
        self._settling_ns = int(settling_s * 1e9)
        self._since_ns = now_ns()
        self._accounts: dict[str, _Account] = defaultdict(_Account)
        self._heard_ns: dict[str, int] = {}

    async def exchange(self, process: str, since: int, asks: Sequence[Ask]) -> tuple[int, list[Grant]]:
        now_ns = self._now_ns()
        self._heard_ns[process] = now_ns
        settling_ns = max(0, self._since_ns + self._settling_ns - now_ns, since != self._since_ns)
        return self._since_ns, [self._grant(process, ask, now_ns, settling_ns) for ask in asks]

    async def listen(self, process: str, told: Callable[[str, str], None]) -> None:
        """There is nobody else."""

    async def accounts_of(self, process: str) -> list[str]:
        return [
            name
            for name, account in self._accounts.items()
            if account.kind == "usd" and account.leases.get(process)
        ]

    async def ended(self, process: str, spent: Mapping[str, int]) -> None:
        for name, nano_usd in spent.items():
            account = self._accounts[name]
            account.spent = max(account.spent, nano_usd)
        for account in self._accounts.values():
            account.leases.pop(process, None)
        self._heard_ns.pop(process, None)

    async def heard(self) -> tuple[int, set[str]]:
        settling_ns = self._since_ns + self._settling_ns - self._now_ns()
        return max(0, math.ceil(settling_ns / 1e6)), set(self._heard_ns)

    async def forgotten(self) -> list[str]:
        oldest_ns = self._now_ns() - int(FORGOTTEN_AFTER_S * 1e9)
        for name in [name for name, account in self._accounts.items() if account.at_ns < oldest_ns]:
            del self._accounts[name]
        return [process for process, heard_ns in self._heard_ns.items() if heard_ns < oldest_ns]

    async def repair(self, accounts: Mapping[str, tuple[int, int]]) -> list[str]:
        repaired = []
        for name, (wrong, right) in accounts.items():
            if self._accounts[name].spent == wrong:
                self._accounts[name].spent = right
                repaired.append(name)
        if repaired:
            self._since_ns = self._now_ns()
        return repaired

    async def spent(self) -> dict[str, int]:
        return {name: account.spent for name, account in self._accounts.items() if account.kind == "usd"}

    def _grant(self, process: str, ask: Ask, now_ns: int, settling_ns: int) -> Grant:
        account = self._accounts[ask.account]
        account.kind = ask.kind
        if ask.kind == "rate":
            drained = ask.limit * max(0, now_ns - account.at_ns) if account.at_ns else account.spent
            account.spent = max(0, max(0, account.spent - drained) + ask.spent * MINUTE_NS)
            spent = -(-account.spent // MINUTE_NS)
        else:
            spent = account.spent = max(account.spent, ask.spent)
        others = {
            name: lease
            for name, lease in account.leases.items()
            if name != process and (ask.kind == "usd" or self._alive(name, now_ns))
        }
        on_lease = sum(others.values())
        settling_ns = settling_ns if ask.kind == "usd" else 0
        room = 0 if settling_ns else ask.limit - spent - on_lease
        lease = leased(ask, room)
        account.at_ns = now_ns
        account.leases[process] = lease
        return Grant(lease, spent, on_lease, math.ceil(settling_ns / 1e6))

    def _alive(self, process: str, now_ns: int) -> bool:
        return now_ns - self._heard_ns.get(process, 0) < DEAD_AFTER_S * 1e9


class NoStore:
    """That of processes which have none in common: nobody can say how much of a limit is left."""

    shared = False

    async def exchange(self, process: str, since: int, asks: Sequence[Ask]) -> tuple[int, list[Grant]]:
        del process, since
        if not asks:
            return 1, []
        raise LimitStoreAway("several processes share limits only in Redis: set shared_state")

    async def listen(self, process: str, told: Callable[[str, str], None]) -> None:
        """There is nobody to listen to."""

    async def ended(self, process: str, spent: Mapping[str, int]) -> None:
        """It had nothing."""

    async def accounts_of(self, process: str) -> list[str]:
        del process
        return []

    async def heard(self) -> tuple[int, set[str]]:
        return 0, set()

    async def forgotten(self) -> list[str]:
        return []

    async def spent(self) -> dict[str, int]:
        return {}

    async def repair(self, accounts: Mapping[str, tuple[int, int]]) -> list[str]:
        del accounts
        return []


def leased(ask: Ask, room: int) -> int:
    """What comes of it where so much is neither spent nor on lease to others."""
    if ask.wanted <= ask.had or room >= ask.wanted:
        return ask.wanted
    return max(ask.had, room) if room >= ask.need else ask.had
