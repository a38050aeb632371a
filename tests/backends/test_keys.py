import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import KeyRefused, RateLimited, Refused
from backends.keys import DOUBTFUL_S, LONGEST_PAUSE_S, LONGEST_SET_ASIDE_S, SET_ASIDE_S, Keys

SECRETS = ("sk-harbour-0000000001", "sk-harbour-0000000002", "sk-harbour-0000000003")


def limited(retry_after_s: float | None = 10.0) -> RateLimited:
    return RateLimited("slow down", 429, retry_after_s)


def refused(status: int = 401) -> KeyRefused:
    return KeyRefused("no", status)


def taken(keys: Keys, now_s: float = 0.0) -> str | None:
    key = keys.take(now_s)
    return None if key is None else key.line.decode().removeprefix("authorization: Bearer ").strip()


def test_keys_are_used_in_turn():
    keys = Keys(SECRETS, "e")
    assert [taken(keys) for _ in range(7)] == [*SECRETS, *SECRETS, SECRETS[0]]


def test_a_key_whose_rate_is_used_up_pauses_alone_and_comes_back():
    keys = Keys(SECRETS, "e")
    keys.refused(keys.take(0.0), limited(10.0), 0.0)
    assert keys.state(0.0) == (None, None)
    assert {taken(keys, 9.9) for _ in range(6)} == set(SECRETS[1:])
    assert {taken(keys, 10.0) for _ in range(6)} == set(SECRETS)


def test_where_all_keys_pause_the_endpoint_says_when_the_first_is_back():
    keys = Keys(SECRETS, "e")
    for pause_s in (30.0, 10.0, 20.0):
        keys.refused(keys.take(0.0), limited(pause_s), 0.0)
    assert keys.take(0.0) is None
    reason, retry_after_s = keys.state(4.0)
    assert reason == "limits the rate of our keys"
    assert retry_after_s == 6.0
    failure = keys.failure(4.0)
    assert (type(failure), failure.status, failure.retry_after_s, failure.of_key) == (
        RateLimited,
        429,
        6.0,
        True,
    )
    assert keys.state(10.0) == (None, None)


def test_a_key_that_is_not_accepted_is_set_aside_longer_each_time():
    keys = Keys(SECRETS[:1], "e")
    now_s, waits = 0.0, []
    for _ in range(6):
        keys.refused(keys.take(now_s), refused(), now_s)
        waits.append(keys.state(now_s)[1])
        now_s += waits[-1]
    assert waits == [SET_ASIDE_S, 600.0, 1200.0, 2400.0, LONGEST_SET_ASIDE_S, LONGEST_SET_ASIDE_S]
    keys.answered(keys.take(now_s))
    keys.refused(keys.take(now_s), refused(), now_s)
    assert keys.state(now_s)[1] == SET_ASIDE_S


def test_calls_that_were_under_way_do_not_set_a_key_aside_for_longer():
    keys = Keys(SECRETS[:1], "e")
    key = keys.take(0.0)
    for _ in range(20):
        keys.refused(key, refused(), 1.0)
    assert keys.state(1.0)[1] == SET_ASIDE_S


def test_one_403_may_be_about_the_call_and_sets_nothing_aside():
    keys = Keys(SECRETS[:1], "e")
    key = keys.take(0.0)
    keys.refused(key, refused(403), 0.0)
    assert keys.state(0.0) == (None, None)
    keys.answered(key)
    keys.refused(key, refused(403), 0.0)
    assert keys.state(0.0) == (None, None)
    keys.refused(key, refused(403), 0.0)
    assert keys.state(0.0)[1] == DOUBTFUL_S


def test_no_pause_is_longer_than_ten_minutes():
    keys = Keys(SECRETS[:1], "e")
    keys.refused(keys.take(0.0), limited(86_400.0), 0.0)
    assert keys.state(0.0)[1] == LONGEST_PAUSE_S


def test_the_failure_speaks_of_accounts_only_where_no_key_is_accepted():
    keys = Keys(SECRETS[:2], "e")
    keys.refused(keys.take(0.0), refused(), 0.0)
    keys.refused(keys.take(0.0), limited(), 0.0)
    assert type(keys.failure(0.0)) is RateLimited
    keys.refused(keys.take(10.0), refused(), 10.0)
    failure = keys.failure(10.0)
    assert type(failure) is KeyRefused
    assert str(failure) == "the endpoint takes none of our keys"


def test_an_endpoint_without_keys_is_never_held_up_by_them():
    keys = Keys((), "e")
    assert keys.state(0.0) == (None, None)
    assert keys.take(0.0) is None
    assert keys.first_line == b""
    assert not keys


def test_the_log_shows_the_last_four_characters_of_a_key_and_nothing_more(caplog: pytest.LogCaptureFixture):
    keys = Keys((*SECRETS[:2], "short-key-1"), "harbour")
    with caplog.at_level(logging.INFO):
        keys.refused(keys.take(0.0), KeyRefused(f"Incorrect API key provided: {SECRETS[0]}", 401), 0.0)
        keys.refused(keys.take(0.0), limited(), 0.0)
        keys.refused(keys.take(0.0), refused(), 0.0)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == "harbour: key 1 (...0001) is set aside for 300 s: Incorrect API key provided: ***"
    assert second == "harbour: key 2 (...0002) pauses for 10 s: slow down"
    assert third == "harbour: key 3 is set aside for 300 s: no"


EVENTS = st.lists(
    st.tuples(st.floats(0, 100), st.sampled_from(["limited", "refused", "forbidden", "answered"]), st.floats(0, 1e6)),
    max_size=40,
)  # fmt: skip


@given(EVENTS, st.integers(1, 5))
def test_the_state_and_the_keys_that_can_be_taken_agree(events: list[tuple[float, str, float]], count: int):
    keys, now_s = Keys([f"key-{n}" for n in range(count)], "e"), 0.0
    for step_s, what, pause_s in events:
        now_s += step_s
        key = keys.take(now_s)
        reason, retry_after_s = keys.state(now_s)
        assert (key is None) == (reason is not None)
        assert sum(keys.counts(now_s).values()) == count
        assert (keys.counts(now_s)["usable"] == 0) == (key is None)
        if key is None:
            assert 0.0 < retry_after_s <= LONGEST_SET_ASIDE_S
            assert keys.take(now_s + retry_after_s + 1e-6) is not None
        elif what == "answered":
            keys.answered(key)
        else:
            failures: dict[str, Refused] = {
                "limited": limited(pause_s),
                "refused": refused(),
                "forbidden": refused(403),
            }
            keys.refused(key, failures[what], now_s)
