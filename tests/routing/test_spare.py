from __future__ import annotations

import pytest

from routing.pipeline import plan
from routing.spare import SPARE_CALLS, SPARE_WAIT_S, hosted, is_spare, spare, wait_s
from routing.types import Call, Endpoint, Load, Price, Tier

FLEX = Tier("flex", 600.0, 0.0)
IDLE = Load(work_per_s=1000.0)
READING = Load(inflight=1, pending_work=2000.0, work_per_s=1000.0)
WORKER, OTHER = (Endpoint(name, "llama", "llama", cost=Price(1, 1)) for name in ("worker", "other"))
DEAR = Endpoint("dear", "llama", "llama", kind="openai", cost=Price(9, 9))
CHEAP = Endpoint("cheap", "llama", "llama", kind="openai", cost=Price(0, 0))


def names(members, busy=(), tier=FLEX):
    made = plan(Call("llama", tier, 100), members, 0.0)
    found = spare(made, {endpoint.name: load for endpoint, load in members}, busy)
    return None if found is None else [each.endpoint.name for each in found.ranked]


def test_the_wait_is_the_work_before_one_at_the_rate_of_the_worker():
    assert wait_s(READING) == 2.0


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (IDLE, True),
        (READING, False),
        (Load(inflight=1, pending_work=SPARE_WAIT_S * 1000.0, work_per_s=1000.0), True),
        (Load(inflight=SPARE_CALLS - 1, decoding=SPARE_CALLS - 1, work_per_s=1000.0), True),
        (Load(inflight=SPARE_CALLS, decoding=SPARE_CALLS, work_per_s=1000.0), False),
    ],
)
def test_a_worker_has_capacity_to_spare_where_one_call_more_delays_nobody(load, expected):
    assert is_spare(WORKER, load) is expected


def test_a_worker_whose_first_tokens_are_overdue_has_none():
    assert not is_spare(WORKER, Load(inflight=3, decoding=2, pending_work=0.0, work_per_s=1000.0))


def test_a_provider_always_has_capacity_to_spare():
    assert is_spare(DEAR, READING)


def test_of_a_plan_those_are_left_that_have_capacity_to_spare():
    assert names([(WORKER, READING), (OTHER, IDLE)]) == ["other"]
    assert names([(WORKER, READING), (OTHER, READING)]) is None
    assert names([]) is None


def test_it_does_not_go_to_a_dearer_provider_as_long_as_a_worker_is_only_busy():
    assert names([(WORKER, READING), (DEAR, IDLE)]) is None
    assert names([(DEAR, IDLE)], busy=[WORKER]) is None
    assert names([(WORKER, IDLE), (DEAR, IDLE)]) == ["worker", "dear"]


def test_it_goes_to_a_provider_that_is_cheaper_or_where_there_is_no_worker():
    assert names([(WORKER, READING), (CHEAP, IDLE)]) == ["cheap"]
    assert names([(CHEAP, IDLE)], busy=[WORKER]) == ["cheap"]
    assert names([(DEAR, IDLE)]) == ["dear"]
    assert names([(CHEAP, IDLE)], busy=[DEAR]) == ["cheap"]


def test_it_goes_to_a_provider_where_the_workers_would_be_too_late():
    assert names([(WORKER, READING), (DEAR, IDLE)], tier=Tier("flex", 1.0, 0.0)) == ["dear"]


def test_what_is_left_in_the_end_are_the_providers():
    made = plan(Call("llama", FLEX, 100), [(WORKER, READING), (DEAR, IDLE)], 0.0)
    assert [each.endpoint.name for each in hosted(made).ranked] == ["dear"]
    assert hosted(plan(Call("llama", FLEX, 100), [(WORKER, READING)], 0.0)) is None
