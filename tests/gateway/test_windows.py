from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.policy import Period
from gateway.windows import Window

SUBJECTS = ("tenant:acme", "project:acme/web", "key:key_1")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_a_day_a_week_from_monday_and_a_month_are_those_of_utc():
    sunday = at("2026-11-29T23:59:59")
    assert Window.at("tenant:acme", "day", sunday).account == "tenant:acme/usd/day/2026-11-29"
    assert Window.at("tenant:acme", "week", sunday).account == "tenant:acme/usd/week/2026-11-23"
    assert Window.at("tenant:acme", "month", sunday).account == "tenant:acme/usd/month/2026-11-01"
    assert Window.at("tenant:acme", "total", sunday).account == "tenant:acme/usd/total/ever"
    monday = sunday + 1
    assert Window.at("tenant:acme", "day", monday).account == "tenant:acme/usd/day/2026-11-30"
    assert Window.at("tenant:acme", "week", monday).account == "tenant:acme/usd/week/2026-11-30"
    assert Window.at("tenant:acme", "month", monday + 86_400).account == "tenant:acme/usd/month/2026-12-01"


def test_a_month_ends_where_the_next_begins_in_december_as_well():
    december = Window.at("tenant:acme", "month", at("2026-12-15T00:00:00"))
    assert (december.since_s, december.until_s) == (at("2026-12-01T00:00:00"), at("2027-01-01T00:00:00"))


@example("tenant:acme", "day", 1893455999.9999995)
@given(
    st.sampled_from(SUBJECTS),
    st.sampled_from(get_args(Period)),
    st.floats(at("2020-01-01T00:00:00"), at("2090-01-01T00:00:00")),
)
def test_a_window_holds_its_moment_and_is_found_again_by_its_account(
    subject: str, period: Period, now_s: float
):
    window = Window.at(subject, period, now_s)
    assert window.since_s <= now_s < window.until_s
    assert Window.named(window.account) == window
    assert window.since_s % 3600 == window.until_s % 3600 == 0
