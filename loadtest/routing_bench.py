"""Routing on real sockets: Tidegate beside other routers, each in front of the same unequal simulated workers.

The simulated worker answers as vLLM does, with a prefix cache and a speed, but only sleeps: what is measured is where
calls are sent. Every router meets the same conversations at the same times, with workers started afresh, one router
after another in each round. Calls are few enough that neither the router nor the load is busy; the table says how busy.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from statistics import median
from typing import TYPE_CHECKING

import httpx2
from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.table import Table

from loadtest import procfs
from loadtest.conversations import WorkloadName, conversations, hold
from loadtest.process import worker_process
from loadtest.proxies import (
    DidNotStartError,
    Nginx,
    RustRouter,
    Setting,
    Tidegate,
    free_port,
    pinned,
    running,
)
from loadtest.report import markdown_table, percentile
from loadtest.sample import OK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadtest.conversations import Call, Conversation
    from loadtest.proxies import Proxy

MODEL = "sim"


class Speed(Struct, frozen=True):
    """A class of workers."""

    workers: int
    prefill_tokens_per_s: float
    decode_s_per_token: float
    kv_blocks: int


SPEEDS = (
    Speed(3, 3000.0, 0.012, 6144),
    Speed(3, 1500.0, 0.020, 3072),
    Speed(2, 625.0, 0.033, 2048),
)
"""Those of the simulated fleet, a quarter as fast at prefill, so that few calls make a load."""


class Plan(Struct, frozen=True):
    """How much to measure, and on what."""

    speeds: tuple[Speed, ...] = SPEEDS
    load: float = 0.65
    """New tokens, as a share of what the workers can read; every prefix that is not found again comes on top."""
    seconds: float = 60.0
    """For how long conversations begin; then they are held to their end."""
    rounds: int = 3
    seed: int = 1
    workloads: tuple[WorkloadName, ...] = ("chat", "little")
    timeout_s: float = 30.0
    server_core: int | None = 0
    load_core: int | None = 1

    @property
    def new_tokens_per_s(self) -> float:
        return self.load * sum(each.workers * each.prefill_tokens_per_s for each in self.speeds)


class Reading(Struct, frozen=True):
    """One router under one workload. Times in seconds; a call without a first token counts as one that waited for it
    until the client gave up.
    """

    calls: float
    errors: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    e2e_p50_s: float
    cached_share: float
    """Of the prompt tokens that workers were sent, those found in their caches."""
    late_p99_s: float
    """By how much the load itself began calls too late."""
    router_busy: float
    """Share of a core."""
    load_busy: float
    """Of load and workers together, share of a core."""


COLUMNS = {
    "calls": "calls",
    "errors": "errors",
    "ttft_p50_s": "TTFT p50",
    "ttft_p95_s": "p95",
    "ttft_p99_s": "p99",
    "ttft_mean_s": "mean",
    "e2e_p50_s": "E2E p50",
    "cached_share": "cached",
}
"""Of the tables."""


class Outcome(Struct, frozen=True):
    """All of a bench's outcome: by workload, then by router."""

    plan: Plan
    medians: dict[str, dict[str, Reading]]
    rounds: dict[str, dict[str, list[Reading]]]
    problems: tuple[str, ...]
    """Routers left out or not started, and why."""


def routers(folders: Sequence[Path]) -> list[Proxy]:
    """All that can be compared: Tidegate, its peers by cached prefix, and what knows nothing of prefixes."""
    launch = ("launch",)
    return [
        Tidegate(),
        RustRouter("sglang-router", launch, folders),
        RustRouter("vllm-router", (), folders),
        RustRouter("sglang-router", launch, folders, policy="power_of_two", name="power of two"),
        RustRouter("sglang-router", launch, folders, policy="round_robin", name="round robin"),
        Nginx(folders, name="least in flight", balance="least_conn;"),
    ]


async def run_bench(
    plan: Plan, proxies: Sequence[Proxy], folder: Path, say: Callable[[str], None]
) -> Outcome:
    """Every round of every workload and router."""
    problems = {f"{each.name}: {reason}": None for each in proxies if (reason := each.missing()) is not None}
    present = [each for each in proxies if each.missing() is None]
    rounds: dict[str, dict[str, list[Reading]]] = {name: {} for name in plan.workloads}
    for number in range(plan.rounds):
        for workload in plan.workloads:
            script = conversations(workload, plan.seed + number, plan.seconds, plan.new_tokens_per_s)
            for proxy in present:
                say(f"round {number + 1} of {plan.rounds}, {workload}: {proxy.name}")
                place = folder / f"{number}-{workload}-{proxy.name.replace(' ', '-')}"
                place.mkdir()
                try:
                    with pinned(plan.load_core):
                        reading = await _measure(plan, proxy, script, place)
                except DidNotStartError as error:
                    problems[f"{proxy.name} did not start: {error}"] = None
                else:
                    rounds[workload].setdefault(proxy.name, []).append(reading)
    medians = {
        workload: {name: middle(readings) for name, readings in by_router.items()}
        for workload, by_router in rounds.items()
    }
    return Outcome(plan, medians, rounds, tuple(problems))


async def _measure(plan: Plan, proxy: Proxy, script: Sequence[Conversation], folder: Path) -> Reading:
    """One router in front of fresh workers, from its first call on."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                worker_process(
                    model=MODEL,
                    prefill_tokens_per_s=speed.prefill_tokens_per_s,
                    decode_s_per_token=speed.decode_s_per_token,
                    kv_blocks=speed.kv_blocks,
                )
            )
            for speed in plan.speeds
            for _ in range(speed.workers)
        ]
        urls = tuple(worker.url for worker in workers)
        setting = Setting(urls, MODEL, MODEL, free_port(), folder)
        with running(proxy, setting, core=plan.server_core) as target:  # nothing else runs here meanwhile
            used_s, router_used_s = procfs.cpu_s(os.getpid()), procfs.cpu_s(target.pid)
            begun_s = time.perf_counter()
            calls = await hold(script, target, MODEL, plan.timeout_s)
            elapsed_s = time.perf_counter() - begun_s
            router_s = procfs.cpu_s(target.pid) - router_used_s
            load_s = procfs.cpu_s(os.getpid()) - used_s - router_s
        cached = [await _cached(url) for url in urls]
    queried, hits = (sum(counts) for counts in zip(*cached, strict=True))
    return reading_of(
        calls, plan.timeout_s, hits / max(1.0, queried), router_s / elapsed_s, load_s / elapsed_s
    )


async def _cached(url: str) -> tuple[float, float]:
    """A worker's prompt tokens, and those of them found in its cache."""
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        text = (await client.get(f"{url}/metrics")).text
    counts = {
        line.partition("{")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("vllm:prefix_cache_")
    }
    return counts["vllm:prefix_cache_queries_total"], counts["vllm:prefix_cache_hits_total"]


def reading_of(
    calls: Sequence[Call], timeout_s: float, cached_share: float, router_busy: float, load_busy: float
) -> Reading:
    """What the calls of one run amount to."""
    ttfts_s = sorted(timeout_s if call.ttft_s is None else call.ttft_s for call in calls)
    e2es_s = sorted(call.e2e_s if call.outcome == OK else timeout_s for call in calls)
    return Reading(
        calls=len(calls),
        errors=sum(call.outcome != OK for call in calls),
        ttft_p50_s=percentile(ttfts_s, 0.5),
        ttft_p95_s=percentile(ttfts_s, 0.95),
        ttft_p99_s=percentile(ttfts_s, 0.99),
        ttft_mean_s=sum(ttfts_s) / len(ttfts_s),
        e2e_p50_s=percentile(e2es_s, 0.5),
        cached_share=cached_share,
        late_p99_s=percentile(sorted(call.late_s for call in calls), 0.99),
        router_busy=router_busy,
        load_busy=load_busy,
    )


def middle(readings: Sequence[Reading]) -> Reading:
    """The median of each figure over the rounds."""
    return Reading(
        **{name: median(getattr(each, name) for each in readings) for name in Reading.__struct_fields__}
    )


def notes(outcome: Outcome) -> list[str]:
    """Everything a reader of the tables must know: conditions, how busy the machine was, what was left out."""
    readings = [reading for by_router in outcome.medians.values() for reading in by_router.values()]
    if not readings:
        return [_conditions(outcome.plan), *outcome.problems]
    busy = (
        f"processor time, at most: router {max(each.router_busy for each in readings):.0%} of a core, load and workers "
        f"{max(each.load_busy for each in readings):.0%} of another; the load was late by "
        f"{max(each.late_p99_s for each in readings) * 1000:.0f} ms at most (p99), which counts as waiting"
    )
    return [_conditions(outcome.plan), busy, *outcome.problems]


def _conditions(plan: Plan) -> str:
    speeds = ", ".join(
        f"{each.workers} x {each.prefill_tokens_per_s:g} tokens/s prefill, {each.decode_s_per_token * 1000:g} ms/token"
        for each in plan.speeds
    )
    return (
        f"simulated workers: {speeds}; {plan.load:.0%} load; conversations begin for {plan.seconds:g} s; "
        f"{_rounds(plan.rounds)}; caches and routers start empty; seconds; "
        f"a call without a first token counts as {plan.timeout_s:g} s"
    )


def _rounds(number: int) -> str:
    return "one round" if number == 1 else f"{number} interleaved rounds, medians"


def tables(outcome: Outcome) -> list[Table]:
    """One for each workload."""
    drawn = []
    for workload in outcome.medians:
        table = Table(title=workload, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for number, column in enumerate(("router", *COLUMNS.values())):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in _rows(outcome, workload):
            table.add_row(*row)
        drawn.append(table)
    return drawn


def markdown(outcome: Outcome) -> str:
    """The tables and their conditions as a README wants them."""
    parts = [
        markdown_table([workload, *COLUMNS.values()], _rows(outcome, workload))
        for workload in outcome.medians
    ]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes(outcome))]) + "\n"


def _rows(outcome: Outcome, workload: str) -> list[list[str]]:
    return [
        [name, *(_cell(figure, getattr(reading, figure)) for figure in COLUMNS)]
        for name, reading in outcome.medians[workload].items()
    ]


def _cell(figure: str, value: float) -> str:
    if figure == "cached_share":
        return f"{value:.0%}"
    return f"{value:.2f}" if figure.endswith("_s") else f"{value:g}"
