import asyncio
import os
from pathlib import Path

import pytest

from loadtest import bench, redis_server
from loadtest.comparison import Reading, compare
from loadtest.scale.model import FULL, Costs, full_at, row, use
from loadtest.scale.report import markdown, notes, sheets, table
from loadtest.scale.routed import routed
from loadtest.scale.run import Asked, Grown, costs_of
from loadtest.scale.served import served
from loadtest.scale.shared import Exchanged, PassedOn, exchanged, passed_on
from loadtest.scale.told import told
from loadtest.scale.written import written

COSTS = Costs(
    call_us=200.0,
    plan_us={10: 20.0, 1000: 120.0},
    said_us=3.0,
    standing_us=8.0,
    prompt_us=10.0,
    rows_per_s=8000.0,
    exchange_us=50.0,
    account_us=15.0,
    batch_us=20.0,
    listener_us=8.0,
)


def test_one_process_has_nobody_to_tell_anything():
    alone = use(COSTS, 1000.0, 10, 1, 100)
    assert (alone.gossip, alone.gateway, alone.routing) == (0.0, pytest.approx(0.2), 0.0)
    assert use(COSTS, 1000.0, 1000, 1, 100).routing == pytest.approx(0.1)


def test_more_processes_have_less_to_serve_and_all_the_more_to_hear():
    few, many = (use(COSTS, 10_000.0, 10, processes, 100) for processes in (4, 16))
    assert many.gateway == pytest.approx(few.gateway / 4)
    assert many.gossip > few.gossip
    assert many.redis > few.redis
    assert many.ledger == few.ledger == pytest.approx(1.25)


def test_a_row_has_as_few_processes_as_can_serve_the_calls():
    found = row(COSTS, 5000.0, 10, 100)
    assert found.use.core <= FULL
    assert use(COSTS, 5000.0, 10, found.use.processes - 1, 100).core > FULL - 0.05
    assert next(iter(found.parts)) == max(found.parts, key=lambda part: found.parts[part])


def test_calls_that_no_number_of_processes_can_serve_are_said_to_be_so():
    found = row(COSTS, 1e6, 1000, 100)
    assert {"gossip CPU", "ledger rows"} <= set(found.too_small)


def test_what_is_full_first_is_named_first():
    found = full_at(COSTS, 10, 100)
    assert next(iter(found)) == "ledger rows"
    assert found["ledger rows"] == pytest.approx(8000 * FULL, rel=0.03)
    assert list(found.values()) == sorted(found.values())


def test_what_processes_tell_each_other_is_counted():
    found = told(3, 5, 300.0, seconds=0.5)
    assert found.batches_per_s == pytest.approx(20)
    assert found.in_per_s == pytest.approx(40)
    assert found.prompts_per_s == pytest.approx(100, rel=0.2)
    assert found.in_bytes_per_s == pytest.approx(2 * found.out_bytes_per_s, rel=0.2)
    assert min(found.saying_us, found.standing_us, found.prompt_us) > 0
    assert 0 < found.standings_per_batch <= 5


def test_plans_are_timed_in_a_process_of_their_own():
    found = routed(70, pieces=2000)
    assert (found.endpoints, found.plan_us > 0, found.round_us > 0) == (70, True, True)


def test_a_gateway_is_started_with_so_many_endpoints_and_asked_for_its_pages(tmp_path: Path):
    plan = bench.Plan(
        duration_s=0.3, endpoints=2, server_core=None, load_core=None, warm_up_s=0.1, with_wrk=False
    )
    found = served(5, plan, tmp_path / "served")
    # Of a busy machine it may say that the core was not all the gateway's; that calls failed, it may not.
    assert all("of its core used" in problem for problem in found.problems)
    assert (found.endpoints, found.json_per_s > 0, found.json_cpu_us > 0) == (5, True, True)
    assert min(found.metrics_ms, found.fleet_ms, found.resident_mb, found.start_s) > 0
    # More than four hundred bytes of an endpoint: with those of the plan alone it would be half as much.
    assert found.metrics_kb > found.fleet_kb > 5 * 0.4
    assert 0 <= found.idle_core_share < os.cpu_count()


def test_rows_are_counted_in_each_kind_of_database(tmp_path: Path, postgresql_url: str):
    files, server = (
        written(url, 1, 400, pid)
        for url, pid in ((f"sqlite:///{tmp_path}/ledger.db", None), (postgresql_url, os.getpid()))
    )
    assert (files.database, files.writers, files.database_us) == ("sqlite", 1, None)
    assert (server.database, server.database_us is not None) == ("postgresql", True)
    assert min(files.rows_per_s, server.rows_per_s) > 0


def test_redis_is_asked_for_limits_and_passes_gossip_on(redis: redis_server.Server):
    limits = asyncio.run(exchanged(redis, 3, 0.1))
    gossip = asyncio.run(passed_on(redis, 2, 1000, 0.1))
    assert (limits.accounts, limits.per_s > 0) == (3, True)
    assert (gossip.listeners, gossip.redis_us >= 0) == (2, True)


def test_the_tables_say_what_was_measured_and_what_is_full_first():
    asked = Asked(endpoints=(10,))
    reading = Reading(json_per_s=1000.0, json_cpu_us=200.0, streams_per_s=500.0, stream_cpu_us=400.0)
    processes = compare({"tidegate": [reading], "tidegate-2": [reading]}, {}, "as it was")
    plans, talk = [routed(2, pieces=100)], [told(2, 2, 100.0, seconds=0.1)]
    redis = ([Exchanged(1, 5000.0, 60.0), Exchanged(50, 500.0, 550.0)], [PassedOn(1, 900, 30.0)])
    costs = costs_of(processes, plans, talk, [], redis)
    assert (costs.call_us, costs.account_us, costs.exchange_us) == (300.0, 10.0, 50.0)
    grown = Grown(
        asked=asked,
        processes=processes,
        served=[],
        routed=plans,
        told=talk,
        written=[],
        exchanged=redis[0],
        passed_on=redis[1],
        costs=COSTS,
        model=[row(COSTS, 10_000.0, 10, 100)],
        full_at={10: full_at(COSTS, 10, 100)},
        left_out=["PostgreSQL is not installed"],
    )
    assert all(
        len(cells) == len(sheet.columns) for sheet in sheets(grown) for cells in (sheet.columns, *sheet.rows)
    )
    assert [table(sheet).row_count for sheet in sheets(grown)] == [2, 0, 1, 1, 0, 3, 1]
    assert notes(grown)[0].startswith("full with 10 endpoints, by calls/s: ledger rows at ")
    assert "| 10,000 | 10 |" in markdown(grown)
    assert "- PostgreSQL is not installed" in markdown(grown)
