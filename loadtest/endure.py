"""The product as it is run in earnest, for a while: replicas of several processes behind a load balancer, Redis, PostgreSQL,
workers, tenants with limits; and all of them are restarted, stopped and killed meanwhile, except clients.

What no client may see of it is any failure, and no account of what was done may differ from another. What is a failure: any
outcome but the right answer, compared with that of an undisturbed worker to the letter; a call that its client has left; and a 429 of
a tenant at its budget or its rate. No call is tried again by its client, but for one on a kept connection that was closed as it was sent.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Any

import httpx2
from msgspec import Struct

from gateway.store import Store
from gateway.subjects import Subjects
from loadtest import postgresql, procfs, redis_server
from loadtest.balancer import Balancer
from loadtest.endurance import MEANINGS, Outcome
from loadtest.mishaps import Hand, Workers, schedule
from loadtest.process import worker_process
from loadtest.proxies import MASTER_KEY, free_port
from loadtest.reckoning import books_of, reckoned
from loadtest.replica import Replica
from loadtest.sample import OK
from loadtest.simworker.account import accounts_in
from loadtest.tenants import LEFT, MODEL, Clients, chats, tenants
from routing.types import Price

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadtest.endurance import Plan, Step
    from loadtest.reckoning import Called, Reckoning
    from loadtest.tenants import Tenant

PRICE = Price(50_000, 100_000, 25_000)
_PRICES = {"input": 0.05, "output": 0.10, "cached_input": 0.025}
_COST = {"input": 0.02, "output": 0.04}
_REDIS_AWAY_S = 1.0
_UNTIL_KNOWN_S = 5.0
"""After a store is back, until everybody has found it, and said what he has of budgets."""
_SETTLES_S = 30.0
_READ_S = 2.0
_MORE_DESCRIPTORS = 24
_GROWTH = 1.25


class Reading(Struct, frozen=True):
    """A replica at one moment."""

    at_s: float
    replica: int
    start: int
    """Which of its starts it has run since."""
    resident_mb: float
    descriptors: int


class CannotRun(Exception):
    """Something that it takes is not installed."""


Show = Callable[[float, str, int, int], None]
"""How it stands: seconds since calls began, what is being done, calls and failures so far."""


async def run_endurance(plan: Plan, folder: Path, show: Show) -> Outcome:
    """Start all of it, let it run, and hold the accounts against each other. Raises CannotRun."""
    programs, redis_program = postgresql.programs(), redis_server.program()
    if programs is None or redis_program is None:
        raise CannotRun(
            "it takes PostgreSQL and redis-server, as Debian's packages postgresql and redis-server have them"
        )
    async with AsyncExitStack() as stack:
        database = stack.enter_context(postgresql.running(programs))
        (folder / "redis").mkdir()
        redis = stack.enter_context(redis_server.running(redis_program, folder / "redis"))
        run = _Run(plan, folder, database, redis, show)
        return await run.run(stack)


class _Run:
    def __init__(
        self,
        plan: Plan,
        folder: Path,
        database: postgresql.Server,
        redis: redis_server.Server,
        show: Show,
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._database = database
        self._redis = redis
        self._show = show
        self._doing = ""
        self._url = database.new_database()
        self._tenants = tenants(plan.budget_usd)
        self._replicas: list[Replica] = []
        self._balancer: Balancer
        self._starts = 0
        self._begun_s = 0.0
        self._readings: list[Reading] = []
        self._quiet_descriptors: dict[int, int] = {}
        self._away_ms: list[tuple[int, int]] = []
        """When a store was away: calls may have been let go."""
        self._carried_out: Counter[str] = Counter()
        self._left: list[str] = []

    async def run(self, stack: AsyncExitStack) -> Outcome:
        plan, accounts = self._plan, self._folder / "accounts"
        accounts.mkdir()
        dice = Random(plan.seed)
        async with worker_process(model=MODEL, decode_s_per_token=0, max_num_seqs=64, embeddings=True) as one:
            asked, expected = await chats(dice, plan.chats, plan.tokens, one.url)
        options = {
            "model": MODEL,
            "decode_s_per_token": plan.decode_s_per_token,
            "batch_slowdown": 0.0,
            "max_num_seqs": 256,
            "embeddings": True,
            "account": accounts,
        }
        workers = await stack.enter_async_context(Workers(plan.workers, options))
        self._replicas = [
            Replica(self._folder / f"replica-{number}", free_port(), self._config(workers.urls))
            for number in range(plan.replicas)
        ]
        keys = await asyncio.to_thread(self._keys)
        self._balancer = Balancer([each.port for each in self._replicas])
        url = await stack.enter_async_context(self._balancer.running())
        for replica in self._replicas:
            stack.callback(replica.kill)
        await asyncio.gather(*(each.start(self._balancer) for each in self._replicas))
        self._quiet_descriptors = {
            number: procfs.descriptors(each.pid or 0) for number, each in enumerate(self._replicas)
        }
        hand = await stack.enter_async_context(Hand(workers, None, MASTER_KEY))
        clients = Clients(f"{url}/v1", asked, expected, timeout_s=plan.timeout_s, seed=plan.seed)
        await self._under_load(clients, keys, hand)
        self._left += await self._left_running()
        await asyncio.gather(*(each.stop() for each in self._replicas))
        self._left += [fault for each in self._replicas for fault in each.faults]
        self._carried_out["workers killed"] = len(hand.carried_out)
        with Store.open(self._url) as store:
            books = books_of(store)
        work = list(accounts_in(accounts))
        reckoning = reckoned(clients.calls, books, work, PRICE)
        self._check_budget(books.rows)
        return self._outcome(clients, reckoning)

    def _config(self, workers: Sequence[str]) -> dict[str, Any]:
        timeouts = {"connect_s": 2, "silence_s": 10, "first_byte_s": 20, "unready_s": self._plan.unready_s}
        endpoints = [{"worker": url, "model": MODEL, "cost": _COST} for url in workers]
        return {
            "database": self._url,
            "shared_state": self._redis.url,
            "server": {"workers": self._plan.processes},
            "auth": {"mode": "keys", "master_key": MASTER_KEY},
            "timeouts": {**timeouts, "drain_s": 60},
            "health": {"interval_s": 1, "timeout_s": 10},
            # Who would rather have calls answered than limits held while Redis is away says so.
            "limits": {"when_store_is_away": "open"},
            "tenants": {each.name: {"policy": each.policy} for each in self._tenants if each.policy},
            "models": {MODEL: {"price": _PRICES, "endpoints": endpoints}},
        }

    def _keys(self) -> dict[str, str]:
        with Store.open(self._url) as store:
            subjects = Subjects(store)
            return {each.name: subjects.create_key(each.name).secret for each in self._tenants}

    # Under load

    async def _under_load(self, clients: Clients, keys: dict[str, str], hand: Hand) -> None:
        plan, done = self._plan, asyncio.Event()
        self._begun_s = time.monotonic()
        until_s = self._begun_s + plan.seconds

        def on() -> bool:
            return time.monotonic() < until_s or not done.is_set() or not hand.is_done

        async def steps() -> None:
            try:
                await self._steps()
            finally:
                done.set()

        watching = asyncio.create_task(self._watch(clients))
        kills = schedule(plan.seed, plan.seconds, plan.workers, plan.kill_every_s, ("kill",))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(steps())
                group.create_task(hand.carry_out(kills))
                for tenant in self._tenants:
                    for number in range(max(1, round(plan.clients * tenant.part))):
                        group.create_task(clients.run(tenant, keys[tenant.name], number, on))
        finally:
            watching.cancel()

    async def _steps(self) -> None:
        for at_s, step in self._plan.steps:
            await asyncio.sleep(self._begun_s + at_s - time.monotonic())
            self._doing = MEANINGS[step]
            if step == "replicas":
                for replica in self._replicas:
                    await replica.stop()
                    self._starts += 1
                    await replica.start(self._balancer)
            else:
                began_ms = int(time.time() * 1000)
                await (self._postgresql_away() if step == "postgresql" else self._redis_away(step))
                self._away_ms.append((began_ms, int((time.time() + _UNTIL_KNOWN_S) * 1000)))
            self._carried_out[step] += 1
            self._doing = ""

    async def _redis_away(self, step: Step) -> None:
        await asyncio.to_thread(self._redis.stop)
        await asyncio.sleep(_REDIS_AWAY_S)
        await asyncio.to_thread(self._redis.start if step == "redis" else self._redis.start_empty)

    async def _postgresql_away(self) -> None:
        await asyncio.to_thread(self._database.stop)
        await asyncio.sleep(self._plan.database_away_s)
        await asyncio.to_thread(self._database.start)

    async def _watch(self, clients: Clients) -> None:
        while True:
            await asyncio.sleep(_READ_S)
            at_s = time.monotonic() - self._begun_s
            for number, replica in enumerate(self._replicas):
                if replica.pid is not None:
                    size_mb, open_ = procfs.resident_bytes(replica.pid) / 1e6, procfs.descriptors(replica.pid)
                    self._readings.append(Reading(at_s, number, self._starts, size_mb, open_))
            self._show(at_s, self._doing, len(clients.calls), len(clients.failures))

    # Afterwards

    async def _left_running(self) -> list[str]:
        """What the replicas have not let go of a while after the last call."""
        until_s = time.monotonic() + _SETTLES_S
        async with httpx2.AsyncClient(
            trust_env=False, timeout=30, headers={"authorization": f"Bearer {MASTER_KEY}"}
        ) as http:
            while True:
                left = [
                    line
                    for number in range(len(self._replicas))
                    for line in await self._left_by(number, http)
                ]
                if not left or time.monotonic() > until_s:
                    return left
                await asyncio.sleep(0.2)

    async def _left_by(self, number: int, http: httpx2.AsyncClient) -> list[str]:
        replica = self._replicas[number]
        url = f"http://127.0.0.1:{replica.port}"
        page = (await http.get(f"{url}/metrics")).text
        zero = (
            "tidegate_calls_running",
            "tidegate_endpoint_inflight",
            "tidegate_limits_holds",
            "tidegate_limits_owed",
        )
        shown = (line.rpartition(" ") for line in page.splitlines() if line.startswith(zero))
        left = [f"replica {number}: {name} is {value}" for name, _, value in shown if float(value)]
        open_, before = procfs.descriptors(replica.pid or 0), self._quiet_descriptors[number]
        if open_ > before + _MORE_DESCRIPTORS:
            left.append(f"replica {number}: {open_} descriptors after {before}")
        limits = json.loads((await http.get(f"{url}/admin/limits")).text)
        left += [
            f"Redis is ahead of the ledger: {each['account']} by {each['ahead_nano_usd']} nano-USD"
            for each in limits["data"]
            if each["ahead_nano_usd"]
        ]
        return left

    def _check_budget(self, rows: Sequence[Any]) -> None:
        """The tenant with the budget that is reached has not had more than that, but for calls that were let go."""
        charged = let_go = 0
        for row in rows:
            if row.tenant == self._tenants[-1].name:
                charged += row.charge_nano_usd
                if any(began <= row.time_ms <= ended for began, ended in self._away_ms):
                    let_go += row.charge_nano_usd
        over = charged - round(self._plan.budget_usd * 1e9) - let_go
        if over > 0:
            self._left.append(f"the budget was exceeded by {over} nano-USD, beside calls let go")

    def _outcome(self, clients: Clients, reckoning: Reckoning) -> Outcome:
        answered = [each.seen for each in clients.calls if each.seen.outcome == OK]
        peaks = [
            max((each.resident_mb for each in self._readings if each.start == start), default=0.0)
            for start in (0, self._starts)
        ]
        if peaks[1] > peaks[0] * _GROWTH and peaks[0]:
            self._left.append(f"a replica takes {peaks[1]:.0f} MB at last, {peaks[0]:.0f} MB at first")
        refused = _refused(clients.calls, self._tenants)
        return Outcome(
            plan=self._plan,
            seconds=time.monotonic() - self._begun_s,
            calls=len(clients.calls),
            answered=len(answered),
            streams=sum(each.question.stream for each in answered),
            embeddings=sum(not each.question.max_tokens for each in answered),
            turns=sum(bool(each.question.before) for each in answered),
            left=sum(each.seen.outcome == LEFT for each in clients.calls),
            refused=refused,
            failures=tuple(clients.failures),
            sent_again=clients.again,
            carried_out=dict(self._carried_out),
            longest_silence_s=max((each.silence_s for each in answered), default=0.0),
            reckoning=reckoning,
            left_behind=tuple(self._left),
            first_peak_mb=peaks[0],
            last_peak_mb=peaks[1],
            doubts=tuple(_doubts(refused, reckoning)),
        )


def _refused(calls: Sequence[Called], known: Sequence[Tenant]) -> dict[str, int]:
    right = {each.name: each.right for each in known}
    return dict(
        Counter(
            f"{each.tenant}: {each.seen.reply.error}"
            for each in calls
            if each.seen.outcome.startswith("status 429") and each.seen.reply.error in right[each.tenant]
        )
    )


def _doubts(refused: dict[str, int], reckoning: Reckoning) -> list[str]:
    """What the run did not show that it should have."""
    found = []
    if "spent: insufficient_quota" not in refused:
        found.append("the budget that is to be reached was not")
    if not reckoning.shared:
        found.append("no call was worked for by more than one worker")
    return found
