from __future__ import annotations

import pytest

from gateway.allowance import MINUTE_NS, Grant, Slice
from gateway.limit_refusals import budget_held, budget_spent, duration, limit_lines, rate_exceeded

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, b"0s"),
        (1, b"1ms"),
        (120_000_000, b"120ms"),
        (SECOND_NS, b"1s"),
        (8_640_000_000, b"8.64s"),
        (360 * SECOND_NS, b"6m0s"),
        (3_723 * SECOND_NS, b"1h2m3s"),
    ],
)
def test_times_are_written_as_openai_does(nanoseconds: int, text: bytes):
    assert duration(nanoseconds) == text


def rate(spent: int, limit: int = 60) -> Slice:
    each = Slice("key:k/requests", "rate", limit)
    each.ask(0, 0, limit)
    each.granted(Grant(limit - spent, spent, 0), 0)
    return each


def test_headers_say_what_is_left_and_when_all_of_it_will_be():
    assert limit_lines(rate(15), None, 0) == (
        b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 45\r\nx-ratelimit-reset-requests: 15s\r\n"
    )
    assert b"remaining-requests: 50" in limit_lines(rate(15), None, 5 * SECOND_NS)
    assert b"remaining-requests: 60" in limit_lines(rate(15), None, MINUTE_NS)
    assert limit_lines(None, None, 0) == b""


def test_a_rate_says_when_to_come_back_in_seconds_and_in_milliseconds():
    error = rate_exceeded(rate(60), 3, 500_000_000)
    headers = dict(error.headers())
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"3", b"2500")
    assert b'"type":"requests"' in error.body()
    assert b'"code":"rate_limit_exceeded"' in error.body()


def test_what_can_never_be_is_not_to_be_tried_again():
    assert (b"x-should-retry", b"false") in rate_exceeded(rate(0), 61, 0).headers()


def test_a_budget_that_is_spent_says_when_there_is_a_new_one():
    each = Slice("tenant:acme/usd/day/2026-11-23", "usd", 5_000_000_000, spent=4_999_999_999)
    headers = dict(
        budget_spent(each, 2, 1_795_478_400.0 - 90).headers()
    )  # a minute and a half before midnight
    assert headers[b"retry-after"] == b"90"
    assert headers[b"x-should-retry"] == b"false"
    message = budget_spent(each, 2, 0).message
    assert "tenant:acme has a budget of 5.00 USD a day, of which 0.000000001 are left" in message


def test_a_budget_for_ever_or_one_that_never_suffices_has_no_time_to_come_back():
    ever = Slice("tenant:acme/usd/total/ever", "usd", 5)
    assert b"retry-after" not in dict(budget_spent(ever, 6, 0).headers())
    day = Slice("tenant:acme/usd/day/2026-11-23", "usd", 5)
    assert b"retry-after" not in dict(budget_spent(day, 6, 0).headers())


def test_money_that_is_only_held_may_be_there_in_a_second():
    headers = dict(budget_held(Slice("tenant:acme/usd/total/ever", "usd", 5), 3).headers())
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"1", b"1000")
