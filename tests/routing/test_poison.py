from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from routing.poison import CHURN_S, KNOWN_S, MOST_KEPT, SAME_POINT_TOKENS, Poison

NOBODY: frozenset[object] = frozenset()


def crashed(poison: Poison, call: str, worker: object, tokens: int, now_s: float) -> frozenset[object]:
    """A crash, judged at once."""
    poison.crashed(call, worker, tokens, now_s)
    return poison.guilty(call, now_s) if poison.suspects(call) else NOBODY


def test_two_workers_that_crash_under_a_call_at_the_same_point_stop_it():
    poison = Poison()
    assert crashed(poison, "call", "a", 0, 0.0) == NOBODY
    assert crashed(poison, "call", "b", 0, 1.0) == {"a", "b"}


def test_crashes_under_different_calls_stop_none():
    poison = Poison()
    assert crashed(poison, "one", "a", 0, 0.0) == NOBODY
    assert crashed(poison, "two", "a", 0, 0.0) == NOBODY
    assert crashed(poison, "three", "a", 0, 0.0) == NOBODY


def test_a_worker_that_crashes_twice_is_one_worker():
    poison = Poison()
    assert crashed(poison, "call", "a", 0, 0.0) == NOBODY
    assert crashed(poison, "call", "a", 0, 9.0) == NOBODY


def test_a_call_that_got_further_in_between_is_not_to_blame():
    poison = Poison()
    assert crashed(poison, "call", "a", 100, 0.0) == NOBODY
    assert crashed(poison, "call", "b", 101 + SAME_POINT_TOKENS, 1.0) == NOBODY
    assert crashed(poison, "call", "c", 102 + SAME_POINT_TOKENS, 2.0) == {"b", "c"}


def test_where_workers_come_and_go_it_takes_a_third():
    poison = Poison()
    crashed(poison, "another", "x", 50, 0.0)
    assert crashed(poison, "call", "a", 0, 1.0) == NOBODY
    assert crashed(poison, "call", "b", 0, 2.0) == NOBODY
    assert crashed(poison, "call", "c", 0, 3.0) == {"a", "b", "c"}


def test_what_goes_down_in_the_same_moment_is_seen_before_a_call_is_judged():
    poison = Poison()
    poison.crashed("call", "a", 0, 0.0)
    poison.crashed("call", "b", 0, 0.1)
    assert poison.suspects("call")
    poison.crashed("another", "c", 50, 0.2)
    assert poison.guilty("call", 1.1) == NOBODY


def test_churn_of_a_while_ago_hides_nothing():
    poison = Poison()
    crashed(poison, "another", "x", 50, 0.0)
    assert crashed(poison, "call", "a", 0, CHURN_S + 1) == NOBODY
    assert crashed(poison, "call", "b", 0, CHURN_S + 2) == {"a", "b"}


def test_what_one_such_call_has_brought_down_does_not_hide_the_next():
    poison = Poison()
    crashed(poison, "first", "a", 0, 0.0)
    assert crashed(poison, "first", "b", 0, 1.0) == {"a", "b"}
    crashed(poison, "second", "c", 0, 2.0)
    assert crashed(poison, "second", "d", 0, 3.0) == {"c", "d"}


def test_a_call_that_was_stopped_is_known_for_a_while_or_until_its_like_is_answered():
    poison = Poison()
    assert not poison.any_known
    poison.remember(b"x", 0.0)
    poison.remember(b"y", 1.0)
    assert poison.any_known
    assert poison.knows(b"x", 1.0)
    assert not poison.knows(b"z", 1.0)
    assert not poison.knows(b"x", KNOWN_S)
    assert poison.knows(b"y", KNOWN_S)
    poison.acquit(b"y")
    assert not poison.any_known
    poison.acquit(b"y")


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdef"), st.integers(0, 99)), max_size=60))
def test_nobody_is_stopped_for_fewer_than_two_workers_which_crashed_under_it(
    crashes: list[tuple[int, str, int]],
):
    poison, under = Poison(), {}
    for number, (call, worker, tokens) in enumerate(crashes):
        under.setdefault(call, set()).add(worker)
        victims = crashed(poison, str(call), worker, tokens, float(number))
        if victims:
            assert len(victims) >= 2
            assert victims <= under[call]


def test_what_is_kept_is_bounded():
    poison = Poison()
    for number in range(3 * MOST_KEPT):
        poison.crashed(str(number), number, 0, 0.0)
        poison.remember(str(number).encode(), 0.0)
    assert len(poison._trails) == len(poison._crashes) == len(poison._known) == MOST_KEPT
    assert poison.knows(str(3 * MOST_KEPT - 1).encode(), 1.0)
