"""A long run that shows whether the gateway keeps what it should have let go: memory, descriptors.

Calls of every kind, some of them left by their clients half-way, while the process's memory and open descriptors are
read every second. The verdict compares the second quarter of the run with the last: the first is warm-up (pools fill,
caches reach their bounds, the allocator finds its size), and after it nothing may grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from statistics import linear_regression, median
from typing import TYPE_CHECKING

import uvloop
from msgspec import Struct

from loadtest import procfs
from loadtest.bench import MODEL
from loadtest.client import Load
from loadtest.mock import PACED_PROMPT
from loadtest.sample import ABORTED, OK
from loadtest.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.proxies import Running

_PACED_TOKENS = 10
_MIXTURE = {"json": (0.45, 16), "burst": (0.45, 16), "paced": (0.10, 32)}
"""Of the calls, the part that is of this kind, and how many clients send them: all kinds take about as long."""
_GROWTH = 0.05
_GROWTH_BYTES = 5_000_000
_MORE_DESCRIPTORS = 16


class Vitals(Struct, frozen=True):
    """The process at one moment."""

    at_s: float
    calls: int
    """Ended so far."""
    resident_bytes: int
    descriptors: int


class Verdict(Struct, frozen=True):
    """What a soak showed."""

    calls: int
    outcomes: dict[str, int]
    elapsed_s: float
    first: Vitals
    last: Vitals
    early_mb: float
    """Median of the second quarter."""
    late_mb: float
    """Median of the last quarter."""
    slope_bytes_per_call: float
    """After the first quarter, by least squares."""
    early_descriptors: float
    late_descriptors: float
    faults: tuple[str, ...]
    """Empty: the process lets go of everything."""


def judge(vitals: Sequence[Vitals], outcomes: dict[str, int]) -> Verdict:
    """What `vitals`, in order of time, say about the process."""
    if len(vitals) < 8:
        raise ValueError(f"{len(vitals)} readings are too few to judge by; let it run longer")
    quarter = len(vitals) // 4
    steady, second, fourth = vitals[quarter:], vitals[quarter : 2 * quarter], vitals[-quarter:]
    early, late = (median(each.resident_bytes for each in part) for part in (second, fourth))
    early_open, late_open = (median(each.descriptors for each in part) for part in (second, fourth))
    faults = [
        f"{number} calls ended with {kind}" for kind, number in outcomes.items() if kind not in {OK, ABORTED}
    ]
    if late > early * (1 + _GROWTH) and late - early > _GROWTH_BYTES:
        faults.append(f"memory grew from {early / 1e6:.1f} to {late / 1e6:.1f} MB")
    if late_open > early_open * (1 + _GROWTH) + _MORE_DESCRIPTORS:
        faults.append(f"open descriptors grew from {early_open:.0f} to {late_open:.0f}")
    return Verdict(
        calls=sum(outcomes.values()),
        outcomes=outcomes,
        elapsed_s=vitals[-1].at_s - vitals[0].at_s,
        first=vitals[0],
        last=vitals[-1],
        early_mb=early / 1e6,
        late_mb=late / 1e6,
        slope_bytes_per_call=_slope(steady),
        early_descriptors=early_open,
        late_descriptors=late_open,
        faults=tuple(faults),
    )


def _slope(vitals: Sequence[Vitals]) -> float:
    calls = [each.calls for each in vitals]
    if len(set(calls)) < 2:
        return 0.0
    return linear_regression(calls, [each.resident_bytes for each in vitals]).slope


def run_soak(target: Running, calls: int, abort_fraction: float, say: Callable[[str], None]) -> Verdict:
    """Send `calls` calls at `target` and watch its process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_soak(target, calls, abort_fraction, say))


async def _soak(target: Running, calls: int, abort_fraction: float, say: Callable[[str], None]) -> Verdict:
    async with contextlib.AsyncExitStack() as stack:
        loads = [
            (
                await stack.enter_async_context(Load(_workload(target, kind, abort_fraction))),
                round(calls * part),
                clients,
            )
            for kind, (part, clients) in _MIXTURE.items()
        ]
        runs = [
            asyncio.ensure_future(load.closed_loop(clients, calls=number)) for load, number, clients in loads
        ]
        outcomes: Counter[str] = Counter()
        vitals: list[Vitals] = []
        begun_s = time.perf_counter()
        while not all(run.done() for run in runs):
            await asyncio.wait(runs, timeout=1.0, return_when=asyncio.ALL_COMPLETED)
            for load, _, _ in loads:  # counted and forgotten, or the instrument itself would grow
                outcomes.update(sample.outcome for sample in load.samples)
                load.samples.clear()
            vitals.append(_read(target.pid, time.perf_counter() - begun_s, outcomes.total()))
            say(_line(vitals[-1], calls, outcomes))
        await asyncio.gather(*runs)
    return judge(vitals, dict(outcomes))


def _read(pid: int, at_s: float, calls: int) -> Vitals:
    return Vitals(at_s, calls, procfs.resident_bytes(pid), procfs.descriptors(pid))


def _line(now: Vitals, calls: int, outcomes: Counter[str]) -> str:
    bad = sum(number for kind, number in outcomes.items() if kind not in {OK, ABORTED})
    return (
        f"{now.at_s:5.0f} s  {now.calls} of {calls} calls, {outcomes[ABORTED]} aborted, {bad} errors  "
        f"{now.resident_bytes / 1e6:.1f} MB  {now.descriptors} descriptors"
    )


def _workload(target: Running, kind: str, abort_fraction: float) -> Workload:
    return Workload(
        url=target.url,
        key=target.key,
        model=MODEL,
        stream=kind != "json",
        include_usage=kind == "paced",
        prompt_tokens=260,
        max_tokens=_PACED_TOKENS,
        abort_fraction=abort_fraction,
        prompt_start=PACED_PROMPT if kind == "paced" else "",
    )


def lines(verdict: Verdict) -> list[str]:
    """The verdict for people."""
    outcomes = ", ".join(f"{kind} {number}" for kind, number in verdict.outcomes.items())
    return [
        f"{verdict.calls} calls in {verdict.elapsed_s:.0f} s: {outcomes}",
        f"memory: {verdict.first.resident_bytes / 1e6:.1f} MB first, {verdict.last.resident_bytes / 1e6:.1f} MB last",
        f"memory: second quarter {verdict.early_mb:.1f} MB, last quarter {verdict.late_mb:.1f} MB",
        f"memory: {verdict.slope_bytes_per_call:.2f} bytes a call after the first quarter",
        f"open descriptors: second quarter {verdict.early_descriptors:.0f}, last quarter {verdict.late_descriptors:.0f}",
        *(f"FAULT: {fault}" for fault in verdict.faults),
    ]
