from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.node_history import DAY_MS, HOUR_MS, history
from gateway.node_store import Session

NOON_MS = 12 * HOUR_MS
"""On the first of January 1970."""


def test_of_a_node_that_comes_every_day_from_noon_to_three_it_shows():
    stays = [
        Session(day * DAY_MS + NOON_MS, day * DAY_MS + NOON_MS + 3 * HOUR_MS, "left") for day in range(5)
    ]
    found = history(stays, 5 * DAY_MS + NOON_MS)
    assert (found.stays, found.mean_stay_s, found.median_stay_s) == (5, 10_800.0, 10_800.0)
    assert found.endings == {"left": 5}
    assert [hour for hour, share in enumerate(found.hours) if share == 1.0] == [12, 13, 14]
    assert sum(found.hours) == 3.0


def test_a_stay_that_lasts_counts_up_to_now():
    found = history([Session(NOON_MS, None, None)], NOON_MS + HOUR_MS // 2)
    assert (found.stays, found.mean_stay_s, found.endings) == (1, 1800.0, {})
    assert found.hours[12] == 1.0


def test_of_one_that_was_never_seen_nothing_is_said():
    found = history([], NOON_MS)
    assert (found.stays, found.mean_stay_s, found.median_stay_s, sum(found.hours)) == (0, None, None, 0.0)


@given(st.lists(st.tuples(st.integers(0, 40 * DAY_MS), st.integers(1, 2 * DAY_MS)), max_size=20))
def test_shares_of_hours_are_shares(starts: list[tuple[int, int]]):
    stays, at_ms = [], 0
    for gap, length in starts:
        stays.append(Session(at_ms + gap, at_ms + gap + length, "lease_lost"))
        at_ms += gap + length
    found = history(stays, at_ms + 1)
    assert len(found.hours) == 24
    assert all(0.0 <= share <= 1.0 for share in found.hours)
    assert sum(found.endings.values()) == len(stays)
