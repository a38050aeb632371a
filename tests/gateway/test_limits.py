"""Limits of several processes, each with what it has of the accounts, over a store in memory or in Redis."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import Struct
from usage_rows import a_row

from gateway.auth import Key
from gateway.database import StoreAway
from gateway.errors import ApiError
from gateway.limit_accounts import Accounts
from gateway.limit_store import MemoryStore
from gateway.limits import NO_HOLD, Hold, Limits, Served
from gateway.openai import parse
from gateway.policy import Policy
from gateway.redis_store import RedisStore
from routing.types import Price, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from loadtest.redis_server import Server

PRICE = Price(0, 1_000_000)
"""A thousand nano-USD for each token of an answer, and nothing for the prompt."""
SERVED = Served("m", (PRICE,), (None,), 100.0)


class Settings(Struct):
    when_store_is_away: str = "closed"
    wait_for_budget_s: float = 0.0
    default_max_tokens: int = 50


class Ledger:
    def __init__(self) -> None:
        self.spent: dict[str, int] = {}
        self.away = False

    def nano_usd(self, accounts: Iterable[str]) -> dict[str, int]:
        if self.away:
            raise StoreAway("the database is away")
        return {account: self.spent.get(account, 0) for account in accounts}


class Process:
    """One gateway's side."""

    def __init__(self, store: Any, ledger: Ledger, name: str, settings: Settings) -> None:
        self.accounts = Accounts(store, ledger, name)
        self.accounts.caught_up()
        self.limits = Limits(self.accounts, lambda: settings)
        self.ledger = ledger
        self.calls = 0

    async def hold(self, key: Key, tokens: int | None = 10) -> Hold:
        said = b"" if tokens is None else b', "max_tokens": %d' % tokens
        request = parse("chat", b'{"model": "m", "messages": []%b}' % said, {})
        self.calls += 1
        return await self.limits.hold(key, request, SERVED, f"{self.accounts.process}-{self.calls}")

    async def refused(self, key: Key, tokens: int | None = 10) -> ApiError:
        with pytest.raises(ApiError) as caught:
            await self.hold(key, tokens)
        return caught.value

    def committed(self, account: str, hold: Hold, tokens: int) -> None:
        """It has ended with so many tokens, and its row is in the database."""
        hold.settle(Usage(0, 0, tokens), tokens * 1000)
        self.ledger.spent[account] = self.ledger.spent.get(account, 0) + tokens * 1000
        self.accounts.recorded([a_row(hold._call_id, tenant="acme", key_id="k")])


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    if request.param == "memory":
        yield MemoryStore(time.monotonic_ns)
        return
    redis: Server = request.getfixturevalue("redis")
    store = RedisStore(redis.url, settling_s=0)
    yield store
    await store.close()


@pytest.fixture
def process(store: Any) -> Process:
    return Process(store, Ledger(), "1-a", Settings())


TOTAL = "key:k/usd/total/ever"


def key(**limits: Any) -> Key:
    return Key("k", "acme", bounds=(("key:k", Policy(**limits)),))


async def test_what_a_call_takes_comes_back_once_and_its_charge_stays(process: Process):
    bounded = key(budgets={"total": 100_000}, concurrency=1)
    hold = await process.hold(bounded, 60)
    assert (await process.refused(bounded)).code == "rate_limit_exceeded"
    process.committed(TOTAL, hold, 30)
    hold.settle(Usage(0, 0, 60), 60_000)
    await process.accounts.tick()
    assert process.accounts.owed_nano_usd == process.accounts.holds == 0
    with_rest = await process.hold(bounded, 70)
    with_rest.settle()
    assert (await process.refused(bounded, 71)).code == "insufficient_quota"


async def test_money_that_is_held_is_waited_for_as_long_as_the_configuration_says(process: Process):
    bounded = key(budgets={"total": 100_000})
    first = await process.hold(bounded, 60)
    assert (await process.refused(bounded, 60)).code == "budget_held"
    process.limits._settings = lambda: Settings(wait_for_budget_s=30)
    second = asyncio.create_task(process.hold(bounded, 60))
    await asyncio.sleep(0.05)
    assert not second.done()
    first.settle(Usage(0, 0, 40), 40_000)
    async with asyncio.timeout(20):
        assert (await second).most_nano_usd == 60_000


async def test_all_limits_of_all_subjects_hold_and_a_refused_call_takes_nothing(process: Process):
    both = Key(
        "k",
        "acme",
        bounds=(
            ("tenant:acme", Policy(requests_per_min=100, budgets={"day": 10_000})),
            ("key:k", Policy(requests_per_min=2, tokens_per_min=1000)),
        ),
    )
    hold = await process.hold(both)
    assert b"x-ratelimit-remaining-requests: 1\r\n" in hold.lines
    assert (await process.refused(both, 11)).code in ("budget_held", "insufficient_quota")
    hold.settle()
    second = await process.hold(both)
    assert b"x-ratelimit-remaining-requests: 0\r\n" in second.lines
    assert (await process.refused(both)).kind == "requests"


async def test_a_charge_is_never_more_than_what_was_held_for_it(process: Process):
    hold = await process.hold(key(budgets={"total": 100_000}), 60)
    assert hold.bounded(59_999) == 59_999
    assert hold.bounded(60_001) == 60_000
    assert process.accounts.charges_cut == 1
    assert NO_HOLD.bounded(10**12) == 10**12


async def test_a_call_that_says_nothing_is_held_at_the_default_or_at_what_such_calls_write(process: Process):
    hold = await process.hold(key(budgets={"total": 10**9}), None)
    assert hold.most_nano_usd == 100_000  # of a hundred tokens, which is more than the default of fifty


async def test_a_limit_that_is_raised_is_there_at_once(process: Process):
    hold = await process.hold(key(budgets={"total": 10_000}))
    assert await process.refused(key(budgets={"total": 10_000}))
    await process.hold(key(budgets={"total": 20_000}))
    hold.settle()


async def test_what_others_do_not_need_they_give_back_at_once(redis: Server):
    async with two(redis) as (one, other):
        bounded = key(budgets={"total": 100_000})
        for _ in range(5):  # so that it keeps something ready
            (await one.hold(bounded)).settle()
        held = [await one.hold(bounded) for _ in range(2)]
        await one.accounts.tick()
        assert one.accounts.slices[TOTAL].free > 0
        # All but what is held by calls under way, to the last nano-USD.
        (await other.hold(bounded, 80)).settle()
        assert (await other.refused(bounded, 81)).code == "budget_held"
        for hold in held:
            hold.settle()


async def test_two_that_are_both_short_do_not_keep_each_other_from_what_is_there(redis: Server):
    async with two(redis) as (one, other):
        bounded = key(budgets={"total": 100_000})
        for process in (one, other):
            (await process.hold(bounded, 40)).settle()
            await process.accounts.tick()
        asked = [process.hold(bounded, 90) for process in (one, other)]
        got = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, Hold) for each in got) == 1


async def test_a_redis_that_has_forgotten_everything_is_told_what_everybody_has(redis: Server):
    async with two(redis) as (one, other):
        bounded = key(budgets={"total": 100_000})
        hold = await one.hold(bounded, 70)
        one.ledger.spent[TOTAL] = 20_000
        with redis.client() as client:
            client.flushall()
        await one.accounts.tick()
        await one.accounts.tick()
        assert (await other.refused(bounded, 11)).code == "budget_held"
        (await other.hold(bounded, 10)).settle()
        hold.settle()


@pytest.mark.parametrize("policy", ["open", "closed"])
async def test_while_redis_is_away_calls_are_let_go_or_refused_and_then_it_is_as_before(
    redis: Server, policy: str
):
    bounded = key(requests_per_min=1000, budgets={"total": 10**9})
    async with two(redis, Settings(when_store_is_away=policy)) as (one, _):
        (await one.hold(bounded)).settle()
        redis.stop()
        for each in one.accounts.slices.values():
            each.lease = each.held + each.owed if each.kind == "usd" else 0
        if policy == "open":
            (await one.hold(bounded)).settle()
            assert one.limits.let_go == 1
        else:
            assert (await one.refused(bounded)).code == "limits_unavailable"
            assert one.limits.refused["away"] == 1
        assert one.accounts.away
        redis.start()
        async with asyncio.timeout(60):
            while one.accounts.away:
                await one.accounts.tick()
        (await one.hold(bounded)).settle()


async def test_while_the_database_is_away_nothing_is_charged_that_is_not_known_to_be_there(process: Process):
    bounded = key(budgets={"total": 100_000})
    hold = await process.hold(bounded, 60)
    process.committed(TOTAL, hold, 60)
    process.ledger.away = True
    await process.accounts.tick()
    assert process.accounts.away
    assert process.accounts.owed_nano_usd == 60_000
    process.ledger.away = False
    await process.accounts.tick()
    assert not process.accounts.away
    assert process.accounts.owed_nano_usd == 0
    assert (await process.refused(bounded, 41)).code == "insufficient_quota"


async def test_what_a_process_gives_back_at_its_end_is_all_it_has(redis: Server):
    async with two(redis) as (one, other):
        bounded = key(budgets={"total": 100_000}, concurrency=5)
        hold = await one.hold(bounded, 60)
        assert not await one.accounts.give_back()
        one.committed(TOTAL, hold, 60)
        assert await one.accounts.give_back()
        assert await one.accounts.store.accounts_of("1-a") == []
        (await other.hold(bounded, 40)).settle()


async def test_slices_that_nobody_uses_are_dropped_and_made_anew(process: Process):
    bounded = key(budgets={"total": 100_000}, requests_per_min=5)
    hold = await process.hold(bounded)
    process.committed(TOTAL, hold, 10)
    for _ in range(40):
        await process.accounts.tick()
    await process.accounts.give_back()
    for each in process.accounts.slices.values():
        each.lease = 0
    process.accounts.forget()
    assert process.accounts.slices == {}
    assert (await process.refused(bounded, 91)).code == "insufficient_quota"
    (await process.hold(bounded, 90)).settle()


async def test_a_store_that_is_ahead_of_the_ledger_is_put_right_at_the_start_while_others_have_calls_under_way(
    redis: Server,
):
    async with two(redis) as (one, other):
        bounded = key(budgets={"total": 100_000})
        hold = await one.hold(bounded, 30)
        account = f"{{tidegate}}:{TOTAL}"
        with redis.client() as client:
            client.hset(account, "spent", 90_000)
        await one.accounts.tick()
        assert (await other.refused(bounded, 30)).code == "insufficient_quota"
        await other.accounts.round()
        assert other.accounts.drift_nano_usd == 90_000
        # All that is left, and not what is held by the call under way.
        (await other.hold(bounded, 70)).settle()
        assert (await other.refused(bounded, 71)).code == "budget_held"
        one.committed(TOTAL, hold, 30)
        await one.accounts.tick()
        await other.accounts.round()
        assert other.accounts.drift_nano_usd == 0
        (await one.hold(bounded, 70)).settle()
        assert (await other.refused(bounded, 71)).code == "insufficient_quota"
        with redis.client() as client:
            assert client.hget(account, "spent") in (b"30000", "30000")


async def test_keys_that_call_no_more_are_not_kept(process: Process):
    for number in range(50):
        own = (f"key:k{number}", Policy(requests_per_min=5, budgets={"day": 10**9}))
        hold = await process.hold(Key(f"k{number}", "acme", bounds=(own,)))
        hold.settle()
    for _ in range(40):
        await process.accounts.tick()
    process.accounts.forget()
    assert process.accounts.slices == {}
    (await process.hold(key(requests_per_min=5))).settle()
    assert list(process.limits._bounds) == ["k"]


async def test_a_call_that_waits_while_its_slices_are_dropped_holds_what_others_see(process: Process):
    bounded = key(concurrency=1, budgets={"total": 100_000})
    process.limits._settings = lambda: Settings(wait_for_budget_s=30)
    first = await process.hold(key(budgets={"total": 100_000}), 90)
    waiting = asyncio.create_task(process.hold(bounded, 60))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    for _ in range(10):
        await process.accounts.tick()
    process.accounts.forget()
    first.settle()
    async with asyncio.timeout(20):
        second = await waiting
    assert sum(each.held for each in process.accounts.slices.values()) == 60_000 + 1
    assert (await process.refused(bounded, 10)).code == "rate_limit_exceeded"
    second.settle()
    (await process.hold(bounded, 100)).settle()


@asynccontextmanager
async def two(redis: Server, settings: Settings | None = None) -> AsyncIterator[tuple[Process, Process]]:
    """Processes with one ledger and one Redis, who hear each other."""
    stores = [RedisStore(redis.url, settling_s=0) for _ in range(2)]
    ledger, settings = Ledger(), settings or Settings()
    pair = [
        Process(store, ledger, name, settings) for store, name in zip(stores, ("1-a", "2-b"), strict=True)
    ]
    hearing = [
        asyncio.create_task(each.accounts.store.listen(each.accounts.process, each.accounts.told))
        for each in pair
    ]
    with redis.client() as client:
        async with asyncio.timeout(60):
            while client.pubsub_numsub("{tidegate}:news")[0][1] < 2:  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.01)
    try:
        yield pair[0], pair[1]
    finally:
        for task in hearing:
            task.cancel()
        await asyncio.gather(*hearing, return_exceptions=True)
        for store in stores:
            await store.close()


@pytest.mark.parametrize(
    "limits", [{"requests_per_min": 1000}, {"concurrency": 100}, {"budgets": {"total": 10**9}}]
)
async def test_a_call_that_others_are_ahead_of_is_not_refused_what_is_there(
    redis: Server, limits: dict[str, Any]
):
    """What it has asked for is taken, before it comes to its turn, by calls that came later and find it there."""
    bounded, later = key(**limits), []

    class Redis(RedisStore):
        async def exchange(self, *asked: Any) -> Any:
            answer = await super().exchange(*asked)
            if len(later) < 5:
                later.append(asyncio.create_task(process.hold(bounded)))
            return answer

    store = Redis(redis.url, settling_s=0)
    process = Process(store, Ledger(), "1-a", Settings())
    (await process.hold(bounded)).settle()
    for each in await asyncio.gather(*later):
        each.settle()
    await store.close()
