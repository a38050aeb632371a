"""Chaos: many clients at once, half of them streaming, while workers are killed, stalled, slowed down and taken away.

Every answer is compared with what an undisturbed worker says. Beside answers that failed or differ it is looked for what
was left behind: calls that the gateway believes to be under way, descriptors, rows that are missing or charge another
amount than the clients were told.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections import Counter
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Self

import httpx2
from msgspec import Struct, structs

from gateway.ledger import amount_nano_usd
from loadtest import procfs
from loadtest.mishaps import KINDS, Hand, Kind, Mishap, Workers, schedule
from loadtest.process import worker_process
from loadtest.proxies import MASTER_KEY, DidNotStartError, Setting, Tidegate, free_port, pinned, running
from loadtest.report import markdown_table, percentile
from loadtest.sample import OK
from loadtest.witness import Question, ask, compared, question
from routing.types import Price, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadtest.proxies import Proxy, Running
    from loadtest.witness import Reply, Seen

MODEL = "sim"
_SETTLES_S = 15.0
_WATCH_S = 0.05
_HELD_UP_S = 1.0
_MORE = 16
"""Descriptors and tasks: connections to workers are kept for a while."""
_PRICE = Price(50_000, 100_000, 25_000)
"""What `loadtest.proxies.Tidegate` charges."""


class Plan(Struct, frozen=True):
    seconds: float = 120.0
    """For how long calls begin, and mishaps: longer where workers are slow to be back, so that all of them come."""
    clients: int = 300
    """Calls under way at once."""
    workers: int = 8
    questions: int = 64
    """Different ones, half of them streamed."""
    tokens: tuple[int, int] = (20, 80)
    """Of an answer, at least and at most."""
    every_s: float = 4.0
    """Between two mishaps, on average."""
    kinds: tuple[Kind, ...] = KINDS
    decode_s_per_token: float = 0.08
    silence_limit_s: float = 7.0
    """A stream may be silent for so long: `timeouts.silence_s` and two seconds."""
    timeout_s: float = 120.0
    seed: int = 1
    server_core: int | None = None
    load_core: int | None = None

    @property
    def gateway_timeouts(self) -> dict[str, float]:
        return {"connect_s": 2, "silence_s": self.silence_limit_s - 2, "first_byte_s": 20}


class Result(Struct, frozen=True):
    """What came of one router."""

    router: str
    outcomes: dict[str, int]
    """How many calls ended how; `ok` is the right answer."""
    failed_by_kind: dict[str, int]
    """Of streams and of whole replies, those that were not ok."""
    silence_s: float
    """The longest that a stream was silent, of those that ended well."""
    e2e_p50_s: float | None
    e2e_p95_s: float | None
    e2e_p99_s: float | None
    """Of all calls. One that failed has never come to its end: None where so many have."""
    answered_p99_s: float | None
    """Of those alone that were answered rightly."""
    hedged: int
    tried_again: int
    """Calls whose headers tell of more than one attempt."""
    metrics: dict[str, float]
    """Of Tidegate: hedges, resumes, waste."""
    left_behind: tuple[str, ...]
    mishaps: dict[str, int]
    waited_s: float = 0.0
    """For workers to be back, beyond the schedule."""
    held_up_s: float = 0.0
    """For so long at the most the clients themselves had no turn: no shorter silence can be seen for sure."""
    doubts: tuple[str, ...] = ()
    """What the run did not do that it should have."""

    @property
    def calls(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failures(self) -> int:
        return self.calls - self.outcomes.get(OK, 0)


class Outcome(Struct, frozen=True):
    plan: Plan
    results: tuple[Result, ...]
    problems: tuple[str, ...]


class Open(Struct, frozen=True):
    """What a router has that has to be let go of."""

    descriptors: int
    tasks: float = 0.0

    @classmethod
    def now(cls, target: Running, metrics: dict[str, float]) -> Self:
        return cls(procfs.descriptors(target.pid), metrics.get("tidegate_tasks", 0.0))


async def run_chaos(
    plan: Plan, proxies: Sequence[Proxy], folder: Path, say: Callable[[str], None]
) -> Outcome:
    """The same calls and the same schedule in front of each."""
    dice = Random(plan.seed)
    questions = [question(dice, plan.tokens, stream=number % 2 == 0) for number in range(plan.questions)]
    expected = await _undisturbed(questions, plan)
    results, problems = [], []
    for proxy in proxies:
        if (missing := proxy.missing()) is not None:
            problems.append(f"{proxy.name}: {missing}")
            continue
        place = folder / proxy.name
        place.mkdir()
        say(f"{proxy.name}: {plan.clients} clients for {plan.seconds:g} s")
        try:
            with pinned(plan.load_core):
                results.append(await _one(plan, proxy, questions, expected, place))
        except DidNotStartError as error:
            problems.append(f"{proxy.name} did not start: {error}")
    return Outcome(plan, tuple(results), tuple(problems))


async def _undisturbed(questions: Sequence[Question], plan: Plan) -> dict[Question, Reply]:
    async with worker_process(model=MODEL, decode_s_per_token=0, max_num_seqs=64) as worker:
        url = f"{worker.url}/v1"
        seen = [await ask(url, "none", MODEL, each, plan.timeout_s) for each in questions]
    wrong = [each.outcome for each in seen if each.outcome != OK]
    if wrong:
        raise RuntimeError(f"an undisturbed worker gave {wrong[0]}")
    return {each.question: each.reply for each in seen}


async def _one(
    plan: Plan,
    proxy: Proxy,
    questions: Sequence[Question],
    expected: dict[Question, Reply],
    folder: Path,
) -> Result:
    mishaps = schedule(plan.seed, plan.seconds, plan.workers, plan.every_s, plan.kinds)
    options = {
        "model": MODEL,
        "decode_s_per_token": plan.decode_s_per_token,
        "batch_slowdown": 0.0,
        "max_num_seqs": 256,
    }
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(Workers(plan.workers, options))
        setting = Setting(workers.urls, MODEL, MODEL, free_port(), folder)
        with running(proxy, setting, core=plan.server_core) as target:  # nothing else runs here meanwhile
            ours = isinstance(proxy, Tidegate)
            origin = target.url.removesuffix("/v1")
            hand = await stack.enter_async_context(Hand(workers, origin if ours else None, MASTER_KEY))
            before = Open.now(target, await _metrics(origin) if ours else {})
            held_up_s, calls = await _calls(plan, target, questions, hand, mishaps)
            left = await _left_running(target, origin, before) if ours else []
            metrics = await _metrics(origin) if ours else {}
        if ours:
            left += _books(folder, calls)
    result = _result(plan, proxy.name, calls, expected, hand.carried_out, metrics, left)
    return structs.replace(
        result, waited_s=hand.waited_s, held_up_s=held_up_s, doubts=tuple(_doubts(plan, hand, held_up_s))
    )


def _doubts(plan: Plan, hand: Hand, held_up_s: float) -> list[str]:
    """Why the figures may be the bench's own."""
    found = [
        f"no {kind} came up" for kind in plan.kinds if kind not in {each.kind for each in hand.carried_out}
    ]
    if hand.left_out:
        found.append(f"{len(hand.left_out)} mishaps were left out: too few workers were back")
    if held_up_s > _HELD_UP_S:
        found.append(f"the clients themselves had no turn for {held_up_s:.1f} s")
    return found


async def _calls(
    plan: Plan, target: Running, questions: Sequence[Question], hand: Hand, mishaps: Sequence[Mishap]
) -> tuple[float, list[Seen]]:
    """For how long the clients had no turn at the most, and all that was seen, when the last call and mishap are over."""
    until_s = time.monotonic() + plan.seconds
    seen: list[Seen] = []
    held_up_s = 0.0

    async def watch() -> None:
        nonlocal held_up_s
        while True:
            begun_s = time.monotonic()
            await asyncio.sleep(_WATCH_S)
            held_up_s = max(held_up_s, time.monotonic() - begun_s - _WATCH_S)

    async def client(number: int) -> None:
        dice = Random(plan.seed * 1_000_003 + number)
        await asyncio.sleep(dice.random() * plan.decode_s_per_token * plan.tokens[1])  # not all in step
        while time.monotonic() < until_s or not hand.is_done:
            asked = dice.choice(questions)
            seen.append(await ask(target.url, target.key, MODEL, asked, plan.timeout_s))
            if seen[-1].outcome != OK:
                await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(hand.carry_out(mishaps))
            for number in range(plan.clients):
                group.create_task(client(number))
    finally:
        watching.cancel()
    return held_up_s, seen


async def _metrics(origin: str) -> dict[str, float]:
    """Those that tell of churn."""
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as http:
        text = (await http.get(f"{origin}/metrics")).text
    told = (
        "tidegate_hedge",
        "tidegate_resume",
        "tidegate_waste",
        "tidegate_moves",
        "tidegate_limits_holds",
        "tidegate_endpoint_inflight",
        "tidegate_calls_running",
        "tidegate_tasks",
    )
    lines = [line for line in text.splitlines() if line.startswith(told) and "_created" not in line]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


async def _left_running(target: Running, origin: str, before: Open) -> list[str]:
    """What the gateway has not let go of a while after the last call."""
    until_s = time.monotonic() + _SETTLES_S
    while True:
        shown = await _metrics(origin)
        at_work = ("tidegate_calls_running", "tidegate_endpoint_inflight", "tidegate_limits_holds")
        left = [f"{name} is {value:g}" for name, value in shown.items() if value and name.startswith(at_work)]
        after = Open.now(target, shown)
        if after.descriptors > before.descriptors + _MORE:
            left.append(f"{after.descriptors} descriptors after {before.descriptors}")
        if after.tasks > before.tasks + _MORE:
            left.append(f"{after.tasks:g} tasks after {before.tasks:g}")
        if not left or time.monotonic() > until_s:
            return left
        await asyncio.sleep(0.2)


def _books(folder: Path, calls: Sequence[Seen]) -> list[str]:
    """What the database says that clients would not, once the gateway has ended."""
    with sqlite3.connect(folder / "tidegate.db") as connection:
        rows = connection.execute(
            "SELECT request_id, outcome, charge_nano_usd FROM usage WHERE tenant = 'bench'"
        ).fetchall()
    connection.close()
    booked = {request_id: (outcome, charge) for request_id, outcome, charge in rows}
    wrong: Counter[str] = Counter()
    for each in calls:
        if each.outcome != OK or each.reply.usage is None:
            continue
        prompt, cached, completion = each.reply.usage
        charge = amount_nano_usd(_PRICE, Usage(prompt, cached, completion))
        found = booked.get(each.headers.get("x-request-id", ""))
        if found is None:
            wrong["answered calls without a row"] += 1
        elif found != ("ok", charge):
            wrong[
                f"answered calls booked as {found[0]}" if found[0] != "ok" else "calls charged wrongly"
            ] += 1
    if len(booked) != len(rows):
        wrong["calls with more than one row"] = len(rows) - len(booked)
    return [f"{number} {what}" for what, number in wrong.items()]


def _result(
    plan: Plan,
    router: str,
    calls: Sequence[Seen],
    expected: dict[Question, Reply],
    mishaps: Sequence[Mishap],
    metrics: dict[str, float],
    left: Sequence[str],
) -> Result:
    judged = []
    for each in calls:
        outcome = compared(each, expected[each.question])
        if outcome == OK and each.silence_s > plan.silence_limit_s:
            outcome = "silent too long"
        judged.append(structs.replace(each, outcome=outcome))
    well = [each for each in judged if each.outcome == OK]
    answered_s = sorted(each.ended_s - each.begun_s for each in well)
    e2es_s = answered_s + [math.inf] * (len(judged) - len(well))
    failed = Counter("stream" if each.question.stream else "whole" for each in judged if each.outcome != OK)
    return Result(
        router=router,
        outcomes=dict(Counter(each.outcome for each in judged).most_common()),
        failed_by_kind=dict(failed),
        silence_s=max((each.silence_s for each in well), default=0.0),
        e2e_p50_s=_finite(percentile(e2es_s, 0.5)),
        e2e_p95_s=_finite(percentile(e2es_s, 0.95)),
        e2e_p99_s=_finite(percentile(e2es_s, 0.99)),
        answered_p99_s=_finite(percentile(answered_s or [math.inf], 0.99)),
        hedged=sum(each.headers.get("x-tidegate-hedged") == "true" for each in judged),
        tried_again=sum(int(each.headers.get("x-tidegate-attempts", 1)) > 1 for each in judged),
        metrics=metrics,
        left_behind=tuple(left),
        mishaps=dict(Counter(each.kind for each in mishaps)),
    )


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def table(outcome: Outcome) -> str:
    """As a README wants it."""
    rows = [
        [
            each.router,
            f"{each.calls}",
            f"{each.failures} ({each.failures / max(1, each.calls):.2%})",
            f"{each.failed_by_kind.get('stream', 0)} / {each.failed_by_kind.get('whole', 0)}",
            f"{each.silence_s:.1f}",
            *(
                "never" if seconds is None else f"{seconds:.1f}"
                for seconds in (each.e2e_p50_s, each.e2e_p95_s, each.e2e_p99_s, each.answered_p99_s)
            ),
        ]
        for each in outcome.results
    ]
    heads = [
        "router",
        "calls",
        "failed",
        "streams / whole",
        "longest silence s",
        "E2E p50 s",
        "p95 s",
        "p99 s",
    ]
    return markdown_table([*heads, "p99 of the answered s"], rows)


def notes(outcome: Outcome) -> list[str]:
    """What else is to be said."""
    lines = []
    for each in outcome.results:
        outcomes = ", ".join(f"{number} {what}" for what, number in each.outcomes.items())
        lines.append(f"{each.router}: {outcomes}")
        lines += [f"{each.router}, LEFT BEHIND: {what}" for what in each.left_behind]
        struck = ", ".join(f"{number} {kind}" for kind, number in each.mishaps.items())
        lines.append(
            f"{each.router}: mishaps: {struck}; waited {each.waited_s:.0f} s for workers; "
            f"clients held up for {each.held_up_s:.2f} s at the most"
        )
        lines += [f"{each.router}, IN DOUBT: {what}" for what in each.doubts]
    return [*lines, *outcome.problems]
