from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from routing.estimate import Ask
from routing.objective import PROMPT_TOKENS_PER_S, rank
from routing.types import Endpoint, Estimate, Load, Tier

USD_PER_HOUR = 1e9 / 3600
PRIORITY = Tier(name="priority", max_ttft_s=1.0, waiting_nano_usd_per_s=100 * USD_PER_HOUR)
DEFAULT = Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=4 * USD_PER_HOUR)
FLEX = Tier(name="flex", max_ttft_s=600.0, waiting_nano_usd_per_s=0.0)


def ranked_by(tier: Tier, options, roll: float = 0.0):
    """The ranking of options, each an endpoint and its estimate, for a hundred tokens of output."""
    members = [(endpoint, Load()) for endpoint, _ in options]
    return rank(tier, members, [structs.astuple(e) for _, e in options], Ask(0, 100, 16.0), roll)


def option(name: str, ttft_s: float = 0.5, cost: int = 1000, itl_s: float = 0.01, imposed_s: float = 0.0):
    return Endpoint(name=name, model="m", served_model="m"), Estimate(ttft_s, itl_s, imposed_s, cost)


def order(tier: Tier, *options: tuple, roll: float = 0.0):
    return [candidate.endpoint.name for candidate in ranked_by(tier, options, roll)]


CHEAP_SLOW = option("cheap", ttft_s=0.9, cost=100_000)
DEAR_FAST = option("dear", ttft_s=0.1, cost=3_000_000)


@pytest.mark.parametrize(
    ("tier", "best"),
    # The dear one saves 2.4 s, which are worth 67 milli-USD to priority, 2.7 to default and nothing to flex.
    [(PRIORITY, "dear"), (DEFAULT, "cheap"), (FLEX, "cheap")],
)
def test_tiers_differ_in_what_they_pay_for_time(tier: Tier, best: str):
    assert order(tier, CHEAP_SLOW, DEAR_FAST)[0] == best


def test_the_score_is_price_plus_the_value_of_waiting():
    (only,) = ranked_by(DEFAULT, [option("a", ttft_s=0.5, cost=700, itl_s=0.01, imposed_s=0.2)])
    seconds = 2 * 0.5 + (0.5 + 100 * 0.01) + 0.2
    assert only.score_nano_usd == pytest.approx(700 + 4 * USD_PER_HOUR * seconds)


def test_flex_goes_by_price_and_between_equal_prices_by_seconds():
    assert order(FLEX, option("slow", ttft_s=9.0), option("fast"), option("dear", cost=1001)) == [
        "fast",
        "slow",
        "dear",
    ]


def test_those_late_for_the_tier_come_after_those_on_time_fastest_first():
    ranked = ranked_by(
        PRIORITY,
        [option("late", 3.0, cost=0), option("later", 9.0, cost=0), option("on time", 1.0, cost=10**9)],
    )
    assert [candidate.endpoint.name for candidate in ranked] == ["on time", "late", "later"]
    assert [candidate.on_time for candidate in ranked] == [True, False, False]


def test_reading_a_prompt_anew_elsewhere_is_no_remedy_for_being_late_where_it_is_cached():
    """The queue at `cached` is longer than the target, but all in all it is the better place: nothing is read twice."""
    cached, anew = option("cached", 1.2), option("anew", 0.9, imposed_s=5.0)
    ranked = ranked_by(PRIORITY, [cached, anew])
    assert [(each.endpoint.name, each.on_time) for each in ranked] == [("cached", False), ("anew", True)]


def test_a_dearer_one_without_a_queue_is_a_remedy_for_being_late():
    assert order(PRIORITY, option("late", 3.0, cost=0), option("dear", 0.5, cost=10**9))[0] == "dear"
    flex_in_a_hurry = structs.replace(FLEX, max_ttft_s=2.0)
    assert order(flex_in_a_hurry, option("late", 3.0, cost=0), option("dear", 0.5))[0] == "dear"
    assert order(flex_in_a_hurry, option("in time", 1.9, cost=0), option("dear", 0.5))[0] == "in time"


def test_of_those_equally_late_the_cheaper_comes_first():
    assert order(PRIORITY, option("dear", 3.0, cost=2), option("cheap", 3.0, cost=1)) == ["cheap", "dear"]


def test_delay_imposed_on_others_counts():
    assert order(DEFAULT, option("busy", imposed_s=0.5), option("idle")) == ["idle", "busy"]


def test_equals_share_the_load_evenly_wherever_they_stand():
    options = [option("a"), option("x", 2.0), option("y", 3.0), option("b"), option("z", 4.0), option("c")]
    firsts = Counter(order(DEFAULT, *options, roll=k / 300)[0] for k in range(300))
    assert firsts == {"a": 100, "b": 100, "c": 100}


def test_the_second_choice_among_equals_is_shared_too():
    options = [option("best", 0.1), option("a"), option("b")]
    assert Counter(order(DEFAULT, *options, roll=k / 10)[1] for k in range(10)) == {"a": 5, "b": 5}


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 1.0, 6.0, 9.0]), st.sampled_from([0, 10**6, 10**8])), min_size=1
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_the_first_is_the_same_whether_or_not_the_others_are_looked_at(kinds, roll):
    options = [option(str(place), ttft_s, cost) for place, (ttft_s, cost) in enumerate(kinds)]
    alone, last_first = ranked_by(DEFAULT, options, roll), ranked_by(DEFAULT, options, roll)
    first = alone[0]
    assert sorted(c.endpoint.name for c in reversed(last_first)) == sorted(e.name for e, _ in options)
    assert last_first[0] == first


def test_nothing_to_rank_is_ranked_as_nothing():
    nothing = ranked_by(DEFAULT, [])
    assert list(nothing) == []
    with pytest.raises(IndexError):
        nothing[0]


def test_a_ranking_is_a_sequence_like_any_other():
    ranking = ranked_by(PRIORITY, [option("late", 3.0), option("a"), option("b", cost=2000)])
    names = [candidate.endpoint.name for candidate in ranking]
    assert names == ["a", "b", "late"]
    assert [ranking[place].endpoint.name for place in (0, 1, 2, -1, -3)] == ["a", "b", "late", "late", "a"]
    assert [candidate.endpoint.name for candidate in ranking[1:]] == ["b", "late"]
    assert len(ranking) == 3
    for outside in (3, -4):
        with pytest.raises(IndexError):
            ranking[outside]


def test_a_longer_prompt_may_take_longer():
    options = [option("slow", 6.0, cost=0), option("fast", 0.1, cost=10**8)]
    members = [(endpoint, Load()) for endpoint, _ in options]
    figures = [structs.astuple(e) for _, e in options]
    short, long = (
        rank(DEFAULT, members, figures, Ask(tokens, 100, 16.0), 0.0)
        for tokens in (100, int(1.5 * PROMPT_TOKENS_PER_S))
    )
    assert short[0].endpoint.name == "fast"
    assert long[0].endpoint.name == "slow"
