from __future__ import annotations

import math

import pytest
from hypothesis import given
from msgspec import structs
from plan_inputs import CALLS, DEFAULT, DEMANDS, LOADS, ROLLS, SNAPSHOTS

from routing.decision import Decision
from routing.misses import BUSY_WAIT_S, UNKNOWN_WAIT_S, idle, shortfalls
from routing.speed import Speed
from routing.types import Call, Demands, Endpoint, Load, Price, Trust

A = Endpoint(name="a", model="m", served_model="m", trust=Trust.COMMUNITY)
CALL = Call("m", DEFAULT, 8000, 100)
FAST = Load(work_per_s=10_000.0, itl_s=0.02)


def named(name: str, **declared: object) -> Endpoint:
    return structs.replace(A, name=name, **declared)


def found(call: Call, *members: tuple[Endpoint, Load]):
    return shortfalls(Decision(call, members, 0.0))


def asking(**demands: object) -> Call:
    return structs.replace(CALL, demands=Demands(**demands))


@given(CALLS, SNAPSHOTS, ROLLS)
def test_waiting_helps_exactly_where_endpoints_with_nothing_to_do_could_take_the_call(
    call: Call, snapshot: tuple, roll: float
):
    decision = Decision(call, snapshot, roll)
    one_day = structs.replace(decision, snapshot=tuple((each, idle(load)) for each, load in snapshot)).plan()
    told = shortfalls(decision)
    assert [each.endpoint.name for each in told if each.retry_after_s is not None] == [
        each.endpoint.name for each in told
    ][: len(one_day.ranked)]
    assert {each.endpoint.name for each in told if each.retry_after_s is not None} == {
        candidate.endpoint.name for candidate in one_day.ranked
    }


@given(CALLS, SNAPSHOTS, ROLLS)
def test_every_endpoint_that_is_not_ranked_has_its_reasons(call: Call, snapshot: tuple, roll: float):
    decision = Decision(call, snapshot, roll)
    ranked = {candidate.endpoint.name for candidate in decision.plan().ranked}
    told = shortfalls(decision)
    assert sorted(each.endpoint.name for each in told) == sorted(endpoint.name for endpoint, _ in snapshot)
    assert {each.endpoint.name for each in told if not each.reasons} == ranked
    assert all(not math.isnan(each.excess) for each in told)


@given(CALLS, SNAPSHOTS, DEMANDS)
def test_a_call_that_waiting_does_not_help_is_not_helped_by_asking_for_more(
    call: Call, snapshot: tuple, more: Demands
):
    free = structs.replace(call, demands=Demands(max_ttft_s=call.demands.max_ttft_s))
    bound = structs.replace(call, demands=structs.replace(more, max_ttft_s=call.demands.max_ttft_s))
    able = [
        {each.endpoint.name for each in found(asked, *snapshot) if each.retry_after_s}
        for asked in (free, bound)
    ]
    assert able[1] <= able[0]


@given(LOADS)
def test_nothing_is_faster_with_work_to_do_than_without(load: Load):
    rest = idle(load)
    assert (rest.inflight, rest.pending_work, rest.unavailable) == (0, 0, None)
    assert rest.itl_s <= load.itl_s


def test_the_pace_of_an_endpoint_with_nothing_to_do_is_that_of_one_call_alone():
    speed = Speed("l4")
    assert idle(speed.load(0.0, 30)).itl_s == pytest.approx(speed.load(0.0, 0).itl_s)


def test_a_first_token_that_is_late_because_of_others_is_worth_waiting_for():
    busy = structs.replace(FAST, inflight=3, pending_work=60_000.0)
    (late,) = found(asking(max_ttft_s=2.0), (A, busy))
    assert late.reasons == ("expected first token in 6.88 s, asked for at most 2 s",)
    assert late.retry_after_s == pytest.approx(4.88)
    (never,) = found(asking(max_ttft_s=0.5), (A, busy))
    assert never.reasons == ("expected first token in 0.88 s, asked for at most 0.5 s",)
    assert (never.excess, never.retry_after_s) == (pytest.approx(0.76), None)


def test_output_that_is_slow_because_of_others_is_worth_waiting_for():
    busy = structs.replace(FAST, inflight=10, crowding=0.05)
    (slow,) = found(asking(min_tokens_per_s=80.0), (A, busy))
    assert slow.reasons == ("expected 50 tokens per second, asked for at least 80",)
    assert slow.retry_after_s == BUSY_WAIT_S
    (never,) = found(asking(min_tokens_per_s=150.0), (A, busy))
    assert never.reasons == ("expected 100 tokens per second, asked for at least 150",)
    assert (never.excess, never.retry_after_s) == (pytest.approx(0.5), None)


def test_who_is_away_is_waited_for_unless_he_would_not_do_anyway():
    away = structs.replace(FAST, unavailable="asked for a pause", retry_after_s=7.0)
    gone = structs.replace(FAST, unavailable="draining")
    told = found(asking(least_trust=Trust.VERIFIED), (A, away), (named("b", trust=Trust.VERIFIED), gone))
    assert [(each.endpoint.name, each.reasons, each.retry_after_s) for each in told] == [
        ("b", ("draining",), UNKNOWN_WAIT_S),
        ("a", ("its trust is community, asked for at least verified",), None),
    ]
    assert [each.retry_after_s for each in found(CALL, (named("b"), gone), (A, away))] == [5.0, 7.0]


def test_the_nearest_miss_comes_first_and_all_that_an_endpoint_misses_is_told():
    cheap, dear, dearest = (Price(usd * 10**6, usd * 10**6) for usd in (1, 3, 9))
    members = [
        (named("elsewhere", region="us", cost=cheap), FAST),
        (named("both", region="us", cost=dear), FAST),
        (named("dearest", region="eu", cost=dearest), FAST),
        (named("dear", region="eu", cost=dear), FAST),
        (named("slow", region="eu", cost=cheap), structs.replace(FAST, base_ttft_s=1.5)),
    ]
    call = asking(
        regions=frozenset({"eu"}), max_input_pico_usd=10**6, max_output_pico_usd=10**7, max_ttft_s=2.0
    )
    told = found(call, *members)
    assert [each.endpoint.name for each in told] == ["slow", "dear", "dearest", "elsewhere", "both"]
    assert told[1].reasons == ("input costs 3 USD per million tokens, asked for at most 1",)
    assert [round(each.excess, 2) for each in told[:3]] == [0.19, 2.0, 8.0]
    assert told[-1].reasons == (
        "is in us, asked for eu",
        "input costs 3 USD per million tokens, asked for at most 1",
    )


def test_trust_counts_by_levels_and_context_by_what_does_not_fit():
    small = named("small", trust=Trust.PROVIDER, context_tokens=2000)
    large = named("large", trust=Trust.PROVIDER, context_tokens=3000)
    told = found(
        asking(least_trust=Trust.PROVIDER),
        (small, FAST),
        (A, FAST),
        (named("v", trust=Trust.VERIFIED), FAST),
        (large, FAST),
    )
    assert [each.endpoint.name for each in told] == ["v", "large", "a", "small"]


def test_what_is_free_or_nothing_is_asked_for_breaks_no_arithmetic():
    (told,) = found(asking(max_input_pico_usd=0, max_output_pico_usd=0), (named("b", cost=Price(1, 0)), FAST))
    assert told.excess == math.inf
    assert found(CALL) == []


def test_one_that_leaves_too_soon_may_have_others_in_its_place():
    decision = Decision(CALL, ((A, FAST),), 0.0, departures={"a": 2.0})
    (told,) = shortfalls(decision)
    assert told.reasons == ("leaves in 2 s, and the call is expected to take 2.88 s",)
    assert told.retry_after_s == UNKNOWN_WAIT_S
    assert decision.plan().rejected[0].filter == "departure"
    (told,) = shortfalls(structs.replace(decision, departures={"a": 60.0}))
    assert told.reasons == ()
