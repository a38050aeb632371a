"""What a store of limits is to do, it does in memory and in Redis."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.allowance import MINUTE_NS, Ask, Grant, Slice
from gateway.drift import drift
from gateway.limit_store import LimitStore, LimitStoreAway, MemoryStore
from gateway.redis_store import RedisStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from loadtest.redis_server import Server

BUDGET = "tenant:acme/usd/total"
ONE, OTHER = "1-aaaa", "2-bbbb"
LIMIT = 10**15 + 1
"""A million USD, and a nano-USD that a float of 32 bits, or a number printed short, would lose."""


@asynccontextmanager
async def opened(kind: str, redis: Server | None, **options: float) -> AsyncIterator[Any]:
    if kind == "memory":
        yield MemoryStore(time.monotonic_ns, settling_s=options.get("settling_s", 0))
        return
    store = RedisStore(redis.url, **{"settling_s": 0, **options})
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[LimitStore]:
    redis = request.getfixturevalue("redis") if request.param == "redis" else None
    async with opened(request.param, redis) as store:
        yield store


def budget(had: int = 0, need: int = 0, wanted: int | None = None, spent: int = 0, limit: int = LIMIT) -> Ask:
    return Ask(BUDGET, "usd", limit, spent, had, need, need if wanted is None else wanted)


def rate(spent: int = 0, had: int = 0, need: int = 0, limit: int = 600_000) -> Ask:
    return Ask("key:k/tokens", "rate", limit, spent, had, need, need)


async def granted(store: LimitStore, process: str, ask: Ask) -> Grant:
    """To a process that knows since when there is this store."""
    since, _ = await store.exchange(process, 0, [])
    _, (grant,) = await store.exchange(process, since, [ask])
    return grant


async def test_who_does_not_know_that_a_store_has_begun_anew_is_given_no_budget_until_he_does(
    store: LimitStore,
):
    since, (grant,) = await store.exchange(ONE, 0, [budget(need=5)])
    assert grant.lease == 0
    assert grant.settling_ms > 0
    assert await store.exchange(ONE, since, [budget(need=5)]) == (since, [Grant(5, 0, 0)])


async def test_who_asks_for_what_is_left_gets_it_to_the_last_nano_usd(store: LimitStore):
    assert (await granted(store, ONE, budget(need=LIMIT - 1))).lease == LIMIT - 1
    assert await granted(store, OTHER, budget(need=1)) == Grant(1, 0, LIMIT - 1)


async def test_who_needs_more_than_is_left_gets_nothing_of_it(store: LimitStore):
    await granted(store, ONE, budget(need=LIMIT - 1))
    assert (await granted(store, OTHER, budget(need=2))).lease == 0


async def test_who_needs_less_than_he_wants_gets_what_is_left(store: LimitStore):
    await granted(store, ONE, budget(need=LIMIT - 10))
    assert (await granted(store, OTHER, budget(need=2, wanted=50))).lease == 10


async def test_what_one_gives_back_another_can_have(store: LimitStore):
    await granted(store, ONE, budget(need=LIMIT))
    assert (await granted(store, ONE, budget(had=LIMIT, wanted=LIMIT - 5))).lease == LIMIT - 5
    assert (await granted(store, OTHER, budget(need=5))).lease == 5


async def test_what_is_spent_is_no_longer_there_and_never_becomes_less(store: LimitStore):
    assert (await granted(store, ONE, budget(spent=LIMIT - 3, need=4))).lease == 0
    assert await granted(store, OTHER, budget(spent=LIMIT - 90, need=3)) == Grant(3, LIMIT - 3, 0)


async def test_what_somebody_has_stays_his_though_the_limit_is_lowered(store: LimitStore):
    await granted(store, ONE, budget(need=100))
    assert (await granted(store, ONE, budget(had=100, need=100, limit=10))).lease == 100
    assert (await granted(store, OTHER, budget(need=1, limit=10))).lease == 0


async def test_what_is_said_twice_counts_once(store: LimitStore):
    for _ in range(3):
        assert (await granted(store, ONE, budget(had=40, need=40, spent=7, limit=100))).lease == 40
    assert await granted(store, OTHER, budget(need=53, limit=100)) == Grant(53, 7, 40)


async def test_accounts_know_nothing_of_each_other(store: LimitStore):
    day = Ask("tenant:acme/usd/day/2026-11-23", "usd", 10, 0, 0, 10, 10)
    since, _ = await store.exchange(ONE, 0, [])
    _, grants = await store.exchange(ONE, since, [day, budget(need=20)])
    assert [grant.lease for grant in grants] == [10, 20]


async def test_a_rate_has_the_whole_minutes_limit_at_once_and_refills_at_its_own_pace(store: LimitStore):
    began_ns = time.monotonic_ns()
    assert (await granted(store, ONE, rate(need=600_000))).lease == 600_000
    assert (await granted(store, ONE, rate(spent=600_000, need=600_000))).lease == 0
    ends_s = time.monotonic() + 60
    while (await granted(store, ONE, rate(need=1000))).lease < 1000:  # a tenth of a second's
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.01)
    assert time.monotonic_ns() - began_ns >= 0.99 * MINUTE_NS / 600


async def test_what_a_call_did_not_use_of_a_rate_comes_back(store: LimitStore):
    limit = 60  # a second each
    await granted(store, ONE, rate(need=60, limit=limit))
    assert (await granted(store, ONE, rate(spent=60, limit=limit))).spent >= 59
    assert (await granted(store, ONE, rate(spent=-50, need=50, limit=limit))).lease == 50


async def test_a_rate_that_somebody_has_on_lease_does_not_refill_above_the_limit(store: LimitStore):
    await granted(store, ONE, rate(need=400_000))
    await asyncio.sleep(0.01)
    assert (await granted(store, OTHER, rate(need=200_001))).lease == 0
    assert (await granted(store, OTHER, rate(need=200_000))).lease == 200_000


async def test_of_a_process_that_has_ended_only_what_is_in_the_ledger_is_left(store: LimitStore):
    await granted(store, ONE, budget(need=80, limit=100))
    assert await store.accounts_of(ONE) == [BUDGET]
    await store.ended(ONE, {BUDGET: 33})
    assert await store.accounts_of(ONE) == []
    assert await granted(store, OTHER, budget(need=67, limit=100)) == Grant(67, 33, 0)


async def test_a_process_has_no_accounts_where_it_has_given_all_back(store: LimitStore):
    await granted(store, ONE, budget(need=80))
    await granted(store, ONE, budget(had=80))
    assert await store.accounts_of(ONE) == []


async def test_beyond_nine_million_usd_what_is_left_is_exact_to_the_nano_usd(store: LimitStore):
    limit, spent = 10**18, 10**18 - 5  # a billion USD, of which a double knows no unit below 128
    assert (await granted(store, ONE, budget(spent=spent, need=6, limit=limit))).lease == 0
    assert await granted(store, ONE, budget(spent=spent, need=2, limit=limit)) == Grant(2, spent, 0)
    assert (await granted(store, OTHER, budget(spent=spent - 1, need=4, limit=limit))).lease == 0
    assert await granted(store, OTHER, budget(spent=spent, need=3, limit=limit)) == Grant(3, spent, 2)
    await store.ended(ONE, {BUDGET: spent + 1})
    assert (await store.spent())[BUDGET] == spent + 1
    assert (await granted(store, OTHER, budget(spent=spent + 1, had=3, need=4, limit=limit))).lease == 4


async def test_of_very_much_that_is_left_each_gets_what_he_asks_for(store: LimitStore):
    limit = 10**18
    assert (await granted(store, ONE, budget(need=10**15 + 1, limit=limit))).lease == 10**15 + 1
    assert await granted(store, OTHER, budget(need=7, limit=limit)) == Grant(7, 0, 10**15 + 1)


async def test_what_is_taken_to_be_spent_wrongly_is_put_right_and_then_given_to_who_has_read_the_ledger(
    store: LimitStore,
):
    await granted(store, ONE, budget(need=30, limit=100))
    since, _ = await store.exchange(OTHER, 0, [])
    await store.exchange(OTHER, since, [budget(spent=90, limit=100)])
    assert await store.repair({BUDGET: (89, 20)}) == []  # it is not what it was when it was looked at
    assert await store.repair({BUDGET: (90, 20)}) == [BUDGET]
    assert await store.spent() == {BUDGET: 20}
    _, (grant,) = await store.exchange(OTHER, since, [budget(spent=20, need=1, limit=100)])
    assert grant.lease == 0
    assert grant.settling_ms > 0
    # What somebody has stays his.
    assert await granted(store, OTHER, budget(spent=20, need=50, limit=100)) == Grant(50, 20, 30)


@pytest.mark.parametrize("kind", ["memory", "redis"])
async def test_a_store_that_has_just_begun_gives_of_budgets_only_what_somebody_has_already(
    kind: str, request: pytest.FixtureRequest
):
    redis = request.getfixturevalue("redis") if kind == "redis" else None
    async with opened(kind, redis, settling_s=0.5) as store:
        grant = await granted(store, ONE, budget(need=1))
        assert grant.lease == 0
        assert 0 < grant.settling_ms <= 500
        assert (await granted(store, OTHER, budget(had=LIMIT - 1, need=LIMIT - 1))).lease == LIMIT - 1
        assert (await granted(store, ONE, rate(need=1))).lease == 1
        await asyncio.sleep(grant.settling_ms / 1000 + 0.01)
        assert (await granted(store, ONE, budget(need=2))).lease == 0
        assert (await granted(store, ONE, budget(need=1))).lease == 1


# Redis alone


@pytest.fixture
async def in_redis(redis: Server) -> AsyncIterator[RedisStore]:
    async with opened("redis", redis, dead_after_s=0.2, forgotten_after_s=0.4) as store:
        yield store


async def test_the_calls_of_a_process_that_is_not_heard_of_are_free_again_and_its_budgets_are_not(
    in_redis: RedisStore,
):
    calls = Ask("key:k/calls", "calls", 1, 0, 0, 1, 1)
    await granted(in_redis, ONE, calls)
    await granted(in_redis, ONE, budget(need=LIMIT))
    assert (await granted(in_redis, OTHER, calls)).lease == 0
    await asyncio.sleep(0.25)
    assert (await granted(in_redis, OTHER, calls)).lease == 1
    assert (await granted(in_redis, OTHER, budget(need=1))).lease == 0


async def test_a_process_that_is_not_heard_of_for_long_is_named(in_redis: RedisStore):
    await granted(in_redis, ONE, budget(need=5))
    await asyncio.sleep(0.45)
    await granted(in_redis, OTHER, budget(need=5))
    assert await in_redis.forgotten() == [ONE]
    await in_redis.ended(ONE, dict.fromkeys(await in_redis.accounts_of(ONE), 0))
    assert await in_redis.forgotten() == []


async def test_who_is_short_is_heard_by_the_others_and_so_is_what_comes_back(in_redis: RedisStore):
    heard: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    listening = [
        asyncio.create_task(in_redis.listen(who, lambda what, account: heard.put_nowait((what, account))))
        for who in (ONE, OTHER)
    ]
    with in_redis_client(in_redis) as client:
        await until(lambda: client.pubsub_numsub("{tidegate}:news")[0][1] == 2)
    await granted(in_redis, ONE, budget(need=LIMIT))
    await granted(in_redis, OTHER, budget(need=1))
    async with asyncio.timeout(60):
        assert await heard.get() == ("short", BUDGET)
    await granted(in_redis, ONE, budget(had=LIMIT, wanted=5))
    async with asyncio.timeout(60):
        assert await heard.get() == ("back", BUDGET)
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)


async def test_a_redis_that_is_started_anew_knows_nothing_and_gives_nothing_until_others_had_time_to_speak(
    redis: Server,
):
    async with opened("redis", redis, settling_s=0.3) as store:
        await granted(store, ONE, budget())
        await asyncio.sleep(0.35)
        assert (await granted(store, ONE, budget(need=LIMIT))).lease == LIMIT
        redis.stop()
        with pytest.raises(LimitStoreAway):
            await granted(store, OTHER, budget(need=1))
        redis.start()
        assert (await granted(store, OTHER, budget(need=1))).settling_ms > 0
        assert (await granted(store, ONE, budget(had=LIMIT, need=LIMIT))).lease == LIMIT
        await asyncio.sleep(0.35)
        assert (await granted(store, OTHER, budget(need=1))).lease == 0


def in_redis_client(store: RedisStore):
    from redis import Redis  # noqa: PLC0415  beside the asynchronous one

    return Redis(**{k: store._redis.connection_pool.connection_kwargs[k] for k in ("host", "port", "db")})


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.01)


async def test_a_question_that_comes_after_the_next_one_changes_nothing(redis: Server, in_redis: RedisStore):
    assert (await granted(in_redis, ONE, budget(need=10))).lease == 10
    late = RedisStore(redis.url, settling_s=0)  # it has asked less often
    _, leases = await late.exchange(ONE, 0, [budget(had=10)])
    assert leases == []
    await late.close()
    assert (await granted(in_redis, OTHER, budget(need=LIMIT - 9))).lease == 0


async def test_an_account_that_was_thrown_out_begins_the_store_anew(redis: Server, in_redis: RedisStore):
    """By a Redis that may throw out what it takes to be worth least."""
    await granted(in_redis, ONE, budget(need=10))
    since, _ = await in_redis.exchange(OTHER, 0, [])
    with redis.client() as client:
        assert client.delete("{tidegate}:" + BUDGET) == 1
    anew, (grant,) = await in_redis.exchange(OTHER, since, [budget(need=LIMIT)])
    assert (anew > since, grant.lease) == (True, 0)
    assert (await granted(in_redis, ONE, budget(had=10, need=10))).lease == 10
    assert (await granted(in_redis, OTHER, budget(need=LIMIT - 9))).lease == 0
    assert (await granted(in_redis, OTHER, budget(need=LIMIT - 10))).lease == LIMIT - 10


async def test_a_clock_that_is_set_back_takes_nothing_away(redis: Server, in_redis: RedisStore):
    await granted(in_redis, ONE, rate(need=100))
    await granted(in_redis, ONE, rate(spent=100))
    ahead_us = int((time.time() + 3600) * 1e6)
    with redis.client() as client:
        client.hset("{tidegate}:key:k/tokens", "at", ahead_us)
        client.hset("{tidegate}:meta", "since", ahead_us)
    assert (await granted(in_redis, ONE, rate(need=599_900))).lease == 599_900
    grant = await granted(in_redis, ONE, budget(need=5))
    assert (grant.lease, grant.settling_ms) == (5, 0)


async def test_a_clock_in_memory_that_is_set_back_takes_nothing_away():
    now_ns = [10**18]
    store = MemoryStore(lambda: now_ns[0])
    await granted(store, ONE, rate(need=100))
    await granted(store, ONE, rate(spent=100))
    now_ns[0] -= 3600 * 10**9
    assert (await granted(store, ONE, rate(need=599_900))).lease == 599_900


def binary(redis: Server) -> Any:
    from redis import Redis  # noqa: PLC0415  beside the asynchronous one

    return Redis.from_url(redis.url)


# Any interleaving


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
            with binary(redis) as client:
                self.copy = {key: client.dump(key) for key in client.scan_iter()}

        def restore_store(self) -> None:
            """As another server, which everybody arrives at."""
            with binary(redis) as client:
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
