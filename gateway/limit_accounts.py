"""The slices that this process has of its subjects' accounts, kept in step with the store and with the ledger.

Calls take from slices without asking anybody. Where one is short, it asks the store for all that calls wait for just then;
twice a second what has changed is said, what was taken of late is kept ready, and the rest given back, at once where
another process is short. One question is under way at a time.

What has been spent of a budget is what the ledger says, and nothing else is. A charge is owed until its row is committed:
until then the lease covers it. What a dead process had on lease covers what it may have spent, until its journal is read.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from gateway.allowance import Slice
from gateway.database import StoreAway
from gateway.doubt import AGAIN_MS, Doubt
from gateway.drift import drift
from gateway.limit_store import LimitStoreAway
from gateway.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from gateway.allowance import Ask, Kind
    from gateway.drift import Drift, Ledger
    from gateway.ledger import UsageRow
    from gateway.limit_store import LimitStore
    from gateway.open_calls import Abandoned

log = logging.getLogger(__name__)

TICK_S = 0.5
_ASKED_AT_ONCE = 200
_READY_S = 5.0
_ROUND_TICKS = 1200
"""Every ten minutes, and at the start, there is a round."""


class _Committed(NamedTuple):
    """Of rows that the ledger has."""

    call_ids: list[str]
    """Of charges that are owed."""
    subjects: set[str]
    """Those with budgets, whoever made their calls."""


class Accounts:
    """All that this process has."""

    def __init__(
        self, store: LimitStore, ledger: Ledger, process: str, owners: Callable[[], Collection[str]] = tuple
    ) -> None:
        self.store = store
        self.process = process
        self.away = False
        """Whether the store could not be reached the last time."""
        self.failures = 0
        self.holds = 0
        """Calls under way that hold something."""
        self.charges_cut = 0
        self.drift_nano_usd = 0
        """By so much the store was ahead of the ledger, when they were last compared."""
        self.slices: dict[str, Slice] = {}
        self.orphans: deque[Abandoned] = deque()
        """Pages of dead processes whose rows are all in the ledger."""
        self._ledger = ledger
        self._ready = asyncio.Event()
        """Set once what dead processes have left in their journals is in the ledger."""
        self._since = 0
        self._doubt = Doubt(store, process, owners)
        self._unread: set[Slice] = set()
        """Budgets of which nobody knows what is spent."""
        self._waiting: dict[Slice, list[int]] = defaultdict(list)
        self._urgent: set[Slice] = set()
        self._owed: dict[str, tuple[int, tuple[Slice, ...]]] = {}
        """Charges that the ledger does not have, by call."""
        self._budgeted: dict[str, set[Slice]] = {}
        """Budgets by subject."""
        self._committed: deque[_Committed] = deque()
        """Filled by the mover's thread."""
        self._begun = self._ended = 0
        self._asking: asyncio.Task[None] | None = None
        self._recalls: set[asyncio.Task[None]] = set()
        self._news: asyncio.Future[None] | None = None
        self._dropped = 0

    # Slices

    def slice(self, account: str, kind: Kind, limit: int) -> Slice:
        """The one there is of an account, or a new one; from now on with this limit."""
        found = self.slices.get(account)
        if found is None:
            found = self.slices[account] = Slice(account, kind, limit)
            if kind == "usd":
                self._unread.add(found)
                self._budgeted.setdefault(Window.named(account).subject, set()).add(found)
        elif found.limit != limit:
            found.limited(limit)
        return found

    @property
    def owed_nano_usd(self) -> int:
        """Charges that the ledger does not have, as far as is known here."""
        return sum(nano_usd for nano_usd, _ in self._owed.values())

    @property
    def generation(self) -> int:
        """Goes up when slices have been dropped, which are not to be used any more."""
        return self._dropped

    def charged(self, call_id: str, nano_usd: int, budgets: tuple[Slice, ...]) -> None:
        """A call is going to be in the journal with this charge."""
        self._owed[call_id] = (nano_usd, budgets)
        self.wake()

    # Waiting

    async def ask(self, wanted: Sequence[tuple[Slice, int]]) -> None:
        """Ask the store for so much more of each, together with what others wait for."""
        for each, amount in wanted:
            self._waiting[each].append(amount)
        try:
            await self._asked()
        finally:
            for each, amount in wanted:
                self._waiting[each].remove(amount)
                if not self._waiting[each]:
                    del self._waiting[each]

    async def look(self, slices: Sequence[Slice]) -> bool:
        """Ask how these stand by now; False where what others use is not known, the store being away. Raises StoreAway."""
        budgets = {each for each in slices if each.kind == "usd"}
        read_before = budgets - self._unread
        for _ in range(2):  # a store that is new to us is asked twice
            self._unread |= read_before
            self._urgent.update(slices)
            await self._asked()
            if not budgets & self._unread:
                return not self.away
        self._unread -= read_before
        raise StoreAway("it cannot be read what has been spent")

    async def news(self, within_s: float) -> None:
        """Wait until something has come back, here or elsewhere."""
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._news], timeout=within_s)

    def wake(self) -> None:
        """Something has come back."""
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def told(self, what: str, account: str) -> None:
        """By another process: it is short of something, or has given something back."""
        if what == "back":
            self.wake()
        elif (found := self.slices.get(account)) is not None and found.lease > 0:
            found.recalled_ns = time.monotonic_ns()
            self._urgent.add(found)
            recall = asyncio.get_running_loop().create_task(self._asked())
            self._recalls.add(recall)
            recall.add_done_callback(self._recalls.discard)

    # The ledger

    def recorded(self, rows: Sequence[UsageRow]) -> None:
        """The database has these rows. Called by the mover, in its thread."""
        budgeted, owed = self._budgeted, self._owed
        if not budgeted:
            return
        subjects = {
            subject
            for tenant, project, key_id in {(row.tenant, row.project, row.key_id) for row in rows}
            for subject in (f"tenant:{tenant}", f"project:{tenant}/{project}", f"key:{key_id}")
            if subject in budgeted
        }
        call_ids = [row.call_id for row in rows if row.call_id in owed]
        if call_ids or subjects:
            self._committed.append(_Committed(call_ids, subjects))

    def accounted(self, page: Abandoned) -> None:
        """So it has all that a dead process has left. Called as above."""
        self.orphans.append(page)

    def caught_up(self) -> None:
        """What there was to be moved has been."""
        self._ready.set()

    async def _read_ledger(self) -> None:
        """Take over what it has by now. Not while the store is being asked."""
        committed = [self._committed.popleft() for _ in range(len(self._committed))]
        call_ids = dict.fromkeys(call_id for each in committed for call_id in each.call_ids)
        by_budgets: dict[tuple[Slice, ...], int] = {}
        for call_id in call_ids:  # thousands, of few keys
            nano_usd, budgets = self._owed.get(call_id, (0, ()))
            by_budgets[budgets] = by_budgets.get(budgets, 0) + nano_usd
        charged: dict[Slice, int] = dict.fromkeys(self._unread, 0)
        for subject in set[str]().union(*(each.subjects for each in committed)):
            charged |= dict.fromkeys(self._budgeted.get(subject, ()), 0)
        for budgets, nano_usd in by_budgets.items():
            for each in budgets:
                charged[each] = charged.get(each, 0) + nano_usd
        if not charged:
            return
        try:
            await self._until_ready()
            spent = await asyncio.to_thread(self._ledger.nano_usd, [each.account for each in charged])
        except StoreAway:
            self._committed.extend(committed)  # owed, until it is known what is spent
            raise
        for call_id in call_ids:
            self._owed.pop(call_id, None)
        for each, nano_usd in charged.items():
            each.in_ledger(nano_usd, spent[each.account])
        self._unread.difference_update(charged)

    async def _until_ready(self) -> None:
        if not self._ready.is_set():
            try:
                await asyncio.wait_for(self._ready.wait(), _READY_S)
            except TimeoutError:
                raise StoreAway("the journals of earlier processes are not in the database yet") from None

    # The store

    def _start(self) -> asyncio.Task[None]:
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._exchange())
        return self._asking

    async def _asked(self) -> None:
        """Return when a question that is put from now on has been answered, or has found the store away."""
        target = self._begun + 1
        while self._ended < target:
            await asyncio.shield(self._start())

    async def _exchange(self) -> None:
        self._begun += 1
        try:
            await self._read_ledger()
            if await self._doubt.settled():
                self._unread.update(each for each in self.slices.values() if each.kind == "usd")
                await self._read_ledger()
            asked = list({**self._waiting, **dict.fromkeys(self._urgent)})
            self._urgent.clear()
            for start in range(0, max(1, len(asked)), _ASKED_AT_ONCE):
                if not await self._exchange_some(asked[start : start + _ASKED_AT_ONCE]):
                    break
            self._found_away(None)
        except (LimitStoreAway, StoreAway) as failure:
            self._found_away(failure)
        finally:
            self._ended, self._asking = self._begun, None

    async def _exchange_some(self, slices: list[Slice]) -> bool:
        """False where the store is another one than before."""
        now_ns = time.monotonic_ns()
        asks = [self._ask_of(each, now_ns) for each in slices]
        try:
            since, grants = await self.store.exchange(self.process, self._since, asks)
        except LimitStoreAway:
            for each in slices:
                each.unanswered()
            raise
        known = since == self._since
        if not known:
            # It knows nothing, or not what we knew. What is spent is to be read before it is asked again.
            self._since = since
            self._doubt.begin()
            self._unread.update(each for each in self.slices.values() if each.kind == "usd")
            self._urgent.update(each for each in self.slices.values() if each.lease > 0)
        now_ns = time.monotonic_ns()
        for each, grant in zip(slices, grants, strict=True):
            each.granted(grant, now_ns)
            if each.kind == "usd" and self._doubt.stands:
                each.settling_ms = max(each.settling_ms, AGAIN_MS)
        return known

    def _ask_of(self, each: Slice, now_ns: int) -> Ask:
        if each.kind == "usd" and self._doubt.stands:
            return each.ask(0, now_ns, max(0, each.free))
        # Where there is nobody else, all of it is at hand.
        spare = None if self.store.shared else each.limit
        waiting = self._waiting.get(each)
        if not waiting:
            return each.ask(0, now_ns, spare)
        return each.ask(sum(waiting), now_ns, spare, least=min(waiting))

    def _found_away(self, failure: Exception | None) -> None:
        if failure is None:
            if self.away:
                log.info("limits are held again")
            self.away = False
            return
        self.failures += 1
        if not self.away:
            log.warning("limits cannot be looked up: %s", failure)
        self.away = True

    # In the background

    async def run(self) -> None:
        """Keep in step until cancelled."""
        for ticks in count():
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
                if ticks % _ROUND_TICKS == 0:
                    await self.round()
            except (LimitStoreAway, StoreAway) as failure:
                self._found_away(failure)
            except Exception:  # a loop that must outlive anything: what is on lease has to go back
                log.exception("limits could not be kept in step")

    async def tick(self) -> None:
        for each in self.slices.values():
            if each.touched or (self.store.shared and each.due):
                self._urgent.add(each)
            each.tick()
        if self.store.shared or self._urgent or self._committed or self._unread:
            await self._asked()
        await self.bury()

    async def bury(self) -> None:
        """Release what dead processes had on lease, now that all they spent is in the ledger."""
        while self.orphans:
            page = self.orphans[0]
            await self.ended(page.owner)
            self.orphans.popleft()
            page.discard()

    async def ended(self, process: str) -> None:
        """All that this dead process has spent is in the ledger, or never will be."""
        accounts = await self.store.accounts_of(process)
        spent = await asyncio.to_thread(self._ledger.nano_usd, accounts)
        await self.store.ended(process, {account: spent[account] for account in accounts})

    async def round(self) -> None:
        """Look after what nobody else does: slices that are not used, processes that nobody adopts, and drift."""
        self.forget()
        for process in await self.store.forgotten():
            accounts = await self.store.accounts_of(process)
            if accounts:
                log.error(
                    "process %s has not been heard of for a day, nor has anybody adopted its journal: what it had on lease of %s is "
                    "free again, and what it has spent of that is not in the ledger",
                    process,
                    ", ".join(accounts),
                )
            await self.ended(process)
        found = [each for each in await self.drift(repair=True) if each.ahead_nano_usd]
        self.drift_nano_usd = sum(each.ahead_nano_usd for each in found)
        if found:
            log.error(
                "the store of limits took %d nano-USD more to be spent than the ledger, of %s: put right",
                self.drift_nano_usd,
                ", ".join(each.account for each in found),
            )

    async def drift(self, *, repair: bool) -> list[Drift]:
        """What the store takes to be spent of each budget, beside the ledger."""
        return await drift(self.store, self._ledger, repair=repair)

    def forget(self) -> None:
        """Drop slices that nobody has used for a while."""
        # What others could have of it is to be given back first; where there are none, it is all on lease and never back.
        gone = [each for each in self.slices.values() if each.idle and not (each.lease and self.store.shared)]
        for each in gone:
            del self.slices[each.account]
            self._unread.discard(each)
            if each.kind == "usd":
                subject = Window.named(each.account).subject
                self._budgeted[subject].discard(each)
                if not self._budgeted[subject]:
                    del self._budgeted[subject]
        self._dropped += bool(gone)

    async def give_back(self) -> bool:
        """The process ends, no call is left, and the mover is done. False where something stays on lease."""
        await self._asked()  # for the rows that have been committed since
        try:
            await self.bury()
        except (LimitStoreAway, StoreAway) as failure:
            self._found_away(failure)  # whoever is next adopts those pages again
        for each in self.slices.values():
            each.recalled_ns = time.monotonic_ns()
        self._urgent.update(self.slices.values())
        await self._asked()
        return not self.away and all(each.lease <= 0 for each in self.slices.values() if each.kind == "usd")
