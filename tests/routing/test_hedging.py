"""The arithmetic of second attempts: when one is late, whether another is worth it, how many there may be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from plan_inputs import DEFAULT, TIERS

from routing.hedging import (
    FAR_SLOWER,
    FIRST_SAVED,
    LEAST_RATIO,
    LEAST_WAIT_S,
    MOST_RATIO,
    MOST_SAVED,
    QUICKER,
    SHARE,
    SLOW_AFTER_S,
    Budget,
    Going,
    Lateness,
    better,
    left_tokens,
    quicker,
    still_needs_s,
    within_cap,
)
from routing.types import Candidate, Endpoint, Estimate, Price

SECONDS = st.floats(0, 600)
PREDICTED = st.floats(0.001, 60)


def candidate(
    ttft_s: float, cost_nano_usd: int = 0, input_pico_usd: int = 0, imposed_s: float = 0.0
) -> Candidate:
    endpoint = Endpoint(name="e", model="m", served_model="m", cost=Price(input_pico_usd))
    return Candidate(endpoint, Estimate(ttft_s, 0.02, imposed_s, cost_nano_usd), 0.0, on_time=True)


@pytest.mark.parametrize("spread", [0.2, 0.6, 1.2])
def test_one_call_in_ten_is_late_however_far_first_tokens_are_spread(spread: float):
    dice, lateness, late = random.Random(7), Lateness(), 0  # noqa: S311 - no secret
    for call in range(6000):
        observed_s = 0.5 * dice.lognormvariate(0.0, spread)
        if call >= 1000:
            late += observed_s > lateness.late_after_s(0.5)
        lateness.saw(observed_s, 0.5)
    assert 0.08 < late / 5000 < 0.125


def test_what_is_late_is_learned_anew_after_a_day_on_which_everybody_was():
    lateness = Lateness()
    for _ in range(10_000):
        lateness.saw(1000.0, 1.0)
    assert lateness.ratio == MOST_RATIO
    for _ in range(1000):
        lateness.saw(1.0, 1.0)
    assert lateness.ratio < 2.0


@given(st.lists(st.tuples(SECONDS, PREDICTED)), PREDICTED)
def test_nobody_is_late_before_its_predicted_time_nor_before_anybody_would_notice(seen, predicted_s):
    lateness = Lateness()
    for observed_s, expected_s in seen:
        lateness.saw(observed_s, expected_s)
    assert LEAST_RATIO <= lateness.ratio <= MOST_RATIO
    assert lateness.late_after_s(predicted_s) >= max(LEAST_WAIT_S, predicted_s)


@given(PREDICTED, st.floats(0, 1))
def test_up_to_its_predicted_time_an_attempt_needs_the_rest_of_it(predicted_s, share):
    waited_s = share * predicted_s
    if waited_s < predicted_s:
        assert still_needs_s(waited_s, predicted_s) == pytest.approx(predicted_s - waited_s)


@given(PREDICTED, SECONDS, SECONDS)
def test_once_overdue_it_needs_the_longer_the_longer_it_has_waited(predicted_s, earlier_s, later_s):
    earlier_s, later_s = sorted((predicted_s + earlier_s, predicted_s + later_s))
    assert still_needs_s(earlier_s, predicted_s) <= still_needs_s(later_s, predicted_s)


@given(
    SECONDS,
    PREDICTED,
    st.lists(st.builds(candidate, SECONDS, st.integers(0, 10**8), st.just(0), SECONDS)),
    st.sampled_from(TIERS),
)
def test_the_other_one_needs_at_most_half_and_is_worth_its_price(waited_s, predicted_s, others, tier):
    found = quicker(waited_s, predicted_s, others, tier)
    needs_s = still_needs_s(waited_s, predicted_s)

    def worth(other: Candidate) -> bool:
        takes_s = other.estimate.ttft_s + other.estimate.imposed_s
        worth_nano_usd = (needs_s - takes_s) * tier.waiting_nano_usd_per_s
        return takes_s <= QUICKER * needs_s and other.estimate.cost_nano_usd <= worth_nano_usd

    assert found is next((other for other in others if worth(other)), None)


def test_a_provider_whose_price_is_not_worth_the_seconds_is_passed_over_until_it_is():
    dear, cheap = candidate(0.2, 2_000_000), candidate(0.4, 1000)
    assert quicker(1.0, 0.5, [dear, cheap], DEFAULT) is cheap
    assert quicker(1.0, 0.5, [dear], DEFAULT) is None
    assert quicker(3.0, 0.5, [dear], DEFAULT) is dear


def test_when_all_are_as_slow_nobody_is_quicker_until_the_wait_is_twice_theirs():
    others = [candidate(5.0)]
    assert quicker(9.9, 5.0, others, DEFAULT) is None
    assert quicker(10.1, 5.0, others, DEFAULT) is others[0]


def test_an_endpoint_where_others_would_have_to_wait_for_it_is_not_worth_it():
    assert quicker(1.0, 0.5, [candidate(0.2, imposed_s=0.2)], DEFAULT) is not None
    assert quicker(1.0, 0.5, [candidate(0.2, imposed_s=2.0)], DEFAULT) is None


@given(st.lists(st.booleans(), max_size=2000))
def test_hedges_are_never_more_than_their_share_of_the_calls(steps):
    budget, calls, hedges = Budget(), 0, 0
    for is_call in steps:
        if is_call:
            calls += 1
            budget.call()
        else:
            hedges += budget.spend()
        assert hedges <= FIRST_SAVED + SHARE * calls + 1e-6


def test_a_quiet_day_saves_up_for_some_hedges_and_no_more():
    budget = Budget()
    for _ in range(100_000):
        budget.call()
    assert sum(budget.spend() for _ in range(1000)) == MOST_SAVED


@given(st.integers(0, 1000), st.integers(0, 1000), st.none() | st.integers(0, 2000))
def test_both_attempts_together_stay_within_the_cap_on_the_price_of_input(first, second, cap):
    within = within_cap(candidate(1, 0, first), candidate(1, 0, second), cap)
    assert within == (cap is None or first + second <= cap)


GOINGS = st.builds(Going, SECONDS, st.integers(0, 10_000), st.floats(0.001, 2), st.floats(0, 10_000))


@given(GOINGS, st.lists(st.builds(candidate, SECONDS, imposed_s=SECONDS)), st.sampled_from(TIERS))
def test_a_stream_that_keeps_about_its_predicted_speed_is_never_moved(going, others, tier):
    at_speed = structs.replace(going, ran_s=min(going.ran_s, FAR_SLOWER * going.itl_s * going.tokens))
    assert better(at_speed, others, tier) is None


@given(GOINGS, st.lists(st.builds(candidate, SECONDS, imposed_s=SECONDS)), st.sampled_from(TIERS))
def test_a_slow_stream_is_moved_only_where_it_takes_at_most_half_of_what_it_saves(going, others, tier):
    found = better(going, others, tier)
    if found is None:
        return
    assert going.ran_s >= SLOW_AFTER_S
    begins_s = found.estimate.ttft_s + found.estimate.imposed_s
    there_s = begins_s + going.left_tokens * found.estimate.itl_s
    assert there_s <= going.still_needs_s
    assert begins_s <= 0.5 * (going.still_needs_s - going.left_tokens * found.estimate.itl_s)


@given(GOINGS, st.floats(0, 100))
def test_a_slow_stream_needs_the_longer_the_longer_it_has_been_slow(going, more_s):
    later = structs.replace(going, ran_s=going.ran_s + more_s)
    assert later.still_needs_s >= going.still_needs_s
    assert not going.slow or later.slow


def test_a_stream_at_a_tenth_of_its_speed_is_moved_soon_and_one_that_is_nearly_done_is_not():
    slow = Going(ran_s=2.4, tokens=3, itl_s=0.08, left_tokens=50)
    assert better(slow, [candidate(0.2)], DEFAULT) is not None
    assert better(structs.replace(slow, ran_s=1.9), [candidate(0.2)], DEFAULT) is None
    assert better(structs.replace(slow, left_tokens=0), [candidate(0.2)], DEFAULT) is None


def test_where_everybody_is_slow_a_stream_stays_where_it_is():
    going = Going(ran_s=20, tokens=20, itl_s=0.05, left_tokens=100)
    as_slow = structs.replace(candidate(0.1), estimate=Estimate(0.1, 1.0, 0.0, 0))
    assert better(going, [as_slow], DEFAULT) is None


@given(st.integers(0, 5000), st.floats(1, 5000), st.none() | st.integers(1, 5000))
def test_no_answer_is_expected_to_be_longer_than_it_may(written, expected, most):
    left = left_tokens(written, expected, most)
    assert left >= 0
    if most is not None:
        assert left <= max(0, most - written)
    else:
        assert left >= expected - written
