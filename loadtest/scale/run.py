"""All that is measured of how a gateway grows, and what the model makes of it."""

from __future__ import annotations

import asyncio
import tempfile
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from loadtest import bench, redis_server
from loadtest.proxies import Tidegate, TidegateOfTwo
from loadtest.scale.model import Costs, Row, full_at, row
from loadtest.scale.routed import Routed, routed
from loadtest.scale.served import Served, served
from loadtest.scale.shared import ACCOUNTS, LISTENERS, Exchanged, PassedOn, exchanged, passed_on
from loadtest.scale.told import Told, told
from loadtest.scale.written import Written, written

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.comparison import Comparison

PROCESSES = (2, 4, 16)
WRITERS = (1, 2, 4)
CALLS_PER_S = (1_000.0, 10_000.0, 100_000.0)


class Asked(Struct, frozen=True):
    """How much to measure."""

    endpoints: tuple[int, ...] = (10, 100, 1000)
    calls_per_s: float = 1000.0
    """Of all gateways together, while they tell each other of them."""
    rows: int = 40_000
    seconds: float = 3.0
    """Of each measurement on sockets."""
    tenants: int = 1000
    """Of the model: with limits of requests, tokens and money each."""


class Grown(Struct, frozen=True):
    """All of it."""

    asked: Asked
    processes: Comparison
    served: list[Served]
    routed: list[Routed]
    told: list[Told]
    written: list[Written]
    exchanged: list[Exchanged]
    passed_on: list[PassedOn]
    costs: Costs
    model: list[Row]
    full_at: dict[int, dict[str, float]]
    """By endpoints: the calls a second at which each part is full, the first bottleneck first."""
    left_out: list[str]


def run_scale(asked: Asked, say: Callable[[str], None]) -> Grown:
    """Measure everything, one after the other. `say` is told of each step."""
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tidegate-scale-") as name:
        folder = Path(name)
        plan = bench.Plan(duration_s=asked.seconds, rounds=1, server_core=None, load_core=None)
        with bench.site(plan, folder) as place:
            processes = bench.run_bench(place, [Tidegate(), TidegateOfTwo()], direct=False, say=say)
        gateways = []
        for count in asked.endpoints:
            say(f"a gateway with {count} endpoints")
            gateways.append(served(count, plan, folder / f"served-{count}"))
        rows = _ledgers(asked, folder, say, left_out)
    plans = []
    for count in asked.endpoints:
        say(f"plans over {count} endpoints")
        plans.append(routed(count))
    talk = []
    for count in PROCESSES:
        for endpoints in asked.endpoints:
            say(f"gossip of {count} processes over {endpoints} endpoints")
            talk.append(told(count, endpoints, asked.calls_per_s))
    limits, batches = _redis(asked, talk, say, left_out)
    costs = costs_of(processes, plans, talk, rows, (limits, batches))
    return Grown(
        asked=asked,
        processes=processes,
        served=gateways,
        routed=plans,
        told=talk,
        written=rows,
        exchanged=limits,
        passed_on=batches,
        costs=costs,
        model=[row(costs, calls, count, asked.tenants) for count in asked.endpoints for calls in CALLS_PER_S],
        full_at={count: full_at(costs, count, asked.tenants) for count in asked.endpoints},
        left_out=left_out,
    )


def _ledgers(asked: Asked, folder: Path, say: Callable[[str], None], left_out: list[str]) -> list[Written]:
    found = []
    for writers in WRITERS:
        say(f"rows into SQLite from {writers}")
        found.append(written(f"sqlite:///{folder}/ledger-{writers}.db", writers, asked.rows))
    programs = None
    if find_spec("psycopg") is not None:
        from loadtest import postgresql  # noqa: PLC0415 - its driver is an extra

        programs = postgresql.programs()
    if programs is None:
        left_out.append(
            "PostgreSQL or its driver (the extra postgres) is not installed: the model takes the ledger's rows from SQLite"
        )
        return found
    with postgresql.running(programs, durable=True) as server:
        for writers in WRITERS:
            say(f"rows into PostgreSQL from {writers}")
            found.append(written(server.new_database(), writers, asked.rows, server.pid))
    return found


def _redis(
    asked: Asked, talk: list[Told], say: Callable[[str], None], left_out: list[str]
) -> tuple[list[Exchanged], list[PassedOn]]:
    program = redis_server.program()
    if program is None:
        left_out.append("Redis is not installed: the model takes it to cost nothing")
        return [], []
    size = round(max(each.batch_bytes for each in talk))
    with redis_server.running(program) as server:
        say("limits in Redis")
        limits = [asyncio.run(exchanged(server, accounts, asked.seconds)) for accounts in ACCOUNTS]
        say("gossip through Redis")
        batches = [asyncio.run(passed_on(server, listeners, size, asked.seconds)) for listeners in LISTENERS]
    return limits, batches


def costs_of(
    processes: Comparison,
    plans: list[Routed],
    talk: list[Told],
    rows: list[Written],
    redis: tuple[list[Exchanged], list[PassedOn]],
) -> Costs:
    """What the model multiplies. Of gossip, what was measured among the most processes over the most endpoints."""
    limits, batches = redis
    most = max(talk, key=lambda each: (each.processes, each.endpoints))
    account_us, exchange_us = _line([(each.accounts, each.redis_us) for each in limits])
    listener_us, batch_us = _line([(each.listeners, each.redis_us) for each in batches])
    reading = processes.medians["tidegate"]
    ledger = [each for each in rows if each.database == "postgresql"] or rows
    several = [each.rows_per_s for each in ledger if each.writers > 1]
    return Costs(
        call_us=((reading.json_cpu_us or 0.0) + (reading.stream_cpu_us or 0.0)) / 2,
        plan_us={each.endpoints: each.plan_us for each in plans},
        said_us=most.saying_us / max(1.0, most.standings_per_batch),
        standing_us=most.standing_us,
        prompt_us=most.prompt_us,
        rows_per_s=max(several, default=inf),
        exchange_us=exchange_us,
        account_us=account_us,
        batch_us=batch_us,
        listener_us=listener_us,
    )


def _line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Slope and height at 0 of the line through two points; nothing where there are none."""
    if len(points) < 2:
        return 0.0, 0.0
    (first, low), (last, high) = points[0], points[-1]
    slope = max(0.0, (high - low) / (last - first))
    return slope, max(0.0, low - slope * first)


def quick(asked: Asked) -> Asked:
    """A look, not a result."""
    return structs.replace(asked, endpoints=asked.endpoints[:2], rows=4000, seconds=1.0)
