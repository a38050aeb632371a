"""In whatever order processes take, settle, die and are adopted, and stores forget: no more is spent than a budget has."""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from limit_stores import BUDGET, budget, granted
from redis import Redis

from gateway.allowance import Grant, Slice
from gateway.drift import drift
from gateway.limit_store import MemoryStore
from gateway.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadtest.redis_server import Server


class Process:
    """One process' side of a budget: its slice, its calls under way, and its journal."""

    def __init__(self, name: str, limit: int, spent: int) -> None:
        self.name = name
        self.slice = Slice(BUDGET, "usd", limit, spent)
        self.running: list[int] = []
        """What each holds."""
        self.journal: list[int] = []
        """Charges that the ledger does not have."""
        self.told = 0
        """What the store last took it to have on lease."""
        self.since = 0
        """Of the store, as it was when this one last read the ledger because of that."""

    @property
    def bound(self) -> int:
        return sum(self.running) + sum(self.journal)


class AnyInterleaving(RuleBasedStateMachine):
    """Hold, settle, move to the ledger, give back, die, be adopted: never is more spent or held than the limit."""

    store: Any

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.ledger = 0
        self.limit = 1000
        self.living: list[Process] = []
        self.dead: list[Process] = []
        self.adopted: list[str] = []
        self.born = 0
        self.most = 0
        """What may be spent or held: the limit, or what was when it was lowered."""

    @initialize(processes=st.integers(1, 3), limit=st.integers(1, 2000), spent=st.integers(0, 500))
    def begin(self, processes: int, limit: int, spent: int) -> None:
        self.store = self.new_store()
        self.limit, self.ledger = limit, min(spent, limit)
        for _ in range(processes):
            self.start()
        self.copy_store()

    def new_store(self) -> Any:
        return MemoryStore(time.monotonic_ns)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def exchange(self, process: Process, waiting: int = 0, spare: int | None = None) -> None:
        """Where the store is not the one that it was, the ledger is read and it is asked again, as a gateway does."""
        for _ in range(2):
            ask = process.slice.ask(waiting, time.monotonic_ns(), spare)
            since, (grant,) = self.run(self.store.exchange(process.name, process.since, [ask]))
            process.slice.granted(grant, time.monotonic_ns())
            process.told = grant.lease
            if since == process.since:
                return
            process.since = since
            process.slice.in_ledger(0, self.ledger)
        raise AssertionError("the store changes all the time")

    @precondition(lambda self: len(self.living) < 3)
    @rule()
    def start(self) -> None:
        self.born += 1
        self.living.append(Process(f"{self.born}-x", self.limit, self.ledger))

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 9), amount=st.integers(1, 900), spare=st.none() | st.integers(0, 300))
    def hold(self, which: int, amount: int, spare: int | None) -> None:
        process = self.living[which % len(self.living)]
        if process.slice.free < amount:
            self.exchange(process, amount, spare)
        if process.slice.free < amount:
            for other in self.living:
                if other is not process:  # each has heard that somebody is short
                    other.slice.recalled_ns = time.monotonic_ns()
                    self.exchange(other)
            self.exchange(process, amount, 0)
        admitted = process.slice.free >= amount
        # What a dead process had to spare, or in the ledger without having said so, is free once it is adopted.
        spare_of_dead = sum(dead.told - dead.bound for dead in self.dead)
        if not admitted:
            assert self.bound + spare_of_dead + amount > self.limit
        if admitted:
            assert self.bound + amount <= self.limit
        if admitted:
            process.slice.take(amount)
            process.running.append(amount)

    @precondition(lambda self: any(process.running for process in self.living))
    @rule(which=st.integers(0, 9), share=st.floats(0, 1))
    def settle(self, which: int, share: float) -> None:
        busy = [process for process in self.living if process.running]
        process = busy[which % len(busy)]
        held = process.running.pop(which % len(process.running))
        charge = int(held * share)
        process.slice.settle(held, charge)
        process.journal.append(charge)

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 9), part=st.integers(0, 5))
    def move(self, which: int, part: int) -> None:
        process = self.living[which % len(self.living)]
        rows, process.journal = process.journal[:part], process.journal[part:]
        self.ledger += sum(rows)
        process.slice.in_ledger(sum(rows), self.ledger)

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 9))
    def pause(self, which: int) -> None:
        process = self.living[which % len(self.living)]
        process.slice.tick()
        self.exchange(process)

    @precondition(lambda self: self.living)
    @rule(which=st.integers(0, 9), amount=st.integers(0, 900))
    def ask_in_vain(self, which: int, amount: int) -> None:
        """The store hears it, and what it says does not come."""
        process = self.living[which % len(self.living)]
        grant = self.run(granted(self.store, process.name, process.slice.ask(amount, time.monotonic_ns())))
        process.slice.unanswered()
        process.told = grant.lease

    @rule(limit=st.integers(1, 2000))
    def change_limit(self, limit: int) -> None:
        """It may be less than what is spent."""
        self.most = max(limit, min(self.most, self.bound))
        self.limit = limit
        for process in self.living:
            process.slice.limited(limit)

    @precondition(lambda self: len(self.living) > 1)
    @rule(which=st.integers(0, 9))
    def die(self, which: int) -> None:
        self.dead.append(self.living.pop(which % len(self.living)))

    @precondition(lambda self: self.dead and self.living)
    @rule(counted=st.floats(0, 1))
    def adopt(self, counted: float) -> None:
        """What it had in its journal, and on its page of open calls, goes to the ledger."""
        dead = self.dead.pop()
        self.ledger += sum(dead.journal) + sum(int(held * counted) for held in dead.running)
        accounts = self.run(self.store.accounts_of(dead.name))
        assert accounts in ([BUDGET], [])
        self.run(self.store.ended(dead.name, dict.fromkeys(accounts, self.ledger)))
        self.adopted.append(dead.name)

    @rule()
    def forget(self) -> None:
        """The store loses all that it knows."""
        if not self.dead:
            self.lose()
            self.begin_anew()

    @rule()
    def remember(self) -> None:
        """What a replica knows of the store, from now on ever less."""
        self.copy_store()

    @rule()
    def fail_over(self) -> None:
        """The store's last writes are lost."""
        if not self.dead:
            self.restore_store()
            self.begin_anew()
            for name in self.adopted:  # who is dead comes back with it, until a day has passed
                self.run(self.store.ended(name, {BUDGET: self.ledger}))

    def begin_anew(self) -> None:
        """Before the store gives anything, the living say what they have and read the ledger."""
        for process in self.living:
            process.slice.in_ledger(0, self.ledger)
            self.exchange(process, 0, max(0, process.slice.free))

    @rule(ahead=st.integers(1, 500), heard=st.integers(0, 3), moved=st.integers(0, 3))
    def drift(self, ahead: int, heard: int, moved: int) -> None:
        """The store takes too much to be spent, which some have heard, and is put right by what the ledger had said before
        some more was charged.
        """
        wrong = self.ledger + ahead
        self.run(granted(self.store, "liar", budget(spent=wrong, limit=self.limit)))
        for process in self.living[:heard]:
            self.exchange(process)
        (found,) = self.run(drift(self.store, self, repair=False))
        assert found.ahead_nano_usd == ahead
        for process in self.living[:moved]:
            self.move(self.living.index(process), 5)
            self.exchange(process)
        repaired = self.run(self.store.repair({BUDGET: (found.kept_nano_usd, found.ledger_nano_usd)}))
        assert bool(repaired) == (self.run(self.store.spent()) == {BUDGET: found.ledger_nano_usd})

    def nano_usd(self, accounts: Iterable[str]) -> dict[str, int]:
        """As the ledger tells it."""
        return dict.fromkeys(accounts, self.ledger)

    def lose(self) -> None:
        self.store = self.new_store()

    def copy_store(self) -> None:
        self.copy = deepcopy(self.store)

    def restore_store(self) -> None:
        self.store = deepcopy(self.copy)

    @property
    def bound(self) -> int:
        """Spent, charged or held."""
        return self.ledger + sum(process.bound for process in (*self.living, *self.dead))

    @invariant()
    def no_more_is_spent_and_on_lease_than_the_limit(self) -> None:
        self.most = max(self.limit, min(self.most, self.bound))
        assert self.bound <= self.most
        # What is free to each of them is his alone.
        assert self.bound + sum(max(0, process.slice.free) for process in self.living) <= self.most

    def teardown(self) -> None:
        if self.living:
            while self.dead:
                self.adopt(0.5)
            while any(process.running for process in self.living):
                self.settle(0, 0.3)
            for process in self.living:
                self.move(self.living.index(process), 10_000)
                self.exchange(process, spare=0)
                assert (process.slice.held, process.slice.owed, process.slice.lease) == (0, 0, 0)
            left = max(0, self.limit - self.ledger)
            everything = budget(need=left, spent=self.ledger, limit=self.limit)
            assert self.run(granted(self.store, "last", everything)) == Grant(left, self.ledger, 0)
        self.close()
        self.loop.close()

    def close(self) -> None:
        pass


class TestInMemory(AnyInterleaving.TestCase):
    settings = settings(max_examples=100, stateful_step_count=30)


def test_any_interleaving_in_redis(redis: Server):
    class InRedis(AnyInterleaving):
        def new_store(self) -> RedisStore:
            with redis.client() as client:
                client.flushall()
            return RedisStore(redis.url, settling_s=0)

        def lose(self) -> None:
            with redis.client() as client:
                client.flushall()

        def copy_store(self) -> None:
            with Redis.from_url(redis.url) as client:
                self.copy = {key: client.dump(key) for key in client.scan_iter()}

        def restore_store(self) -> None:
            """As another server, which everybody arrives at."""
            with Redis.from_url(redis.url) as client:
                client.flushall()
                for key, value in self.copy.items():
                    client.restore(key, 0, value)
                client.hdel("{tidegate}:meta", "since")

        def close(self) -> None:
            if self.living:
                self.run(self.store.close())

    case = InRedis.TestCase
    case.settings = settings(max_examples=30, stateful_step_count=30, phases=set(Phase) - {Phase.shrink})
    case().runTest()
