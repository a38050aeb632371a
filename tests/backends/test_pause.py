import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.pause import LEAST_RESET_S, asked_pause_s

DATE = b"Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"7"}, 7.0),
        ({b"retry-after": b" 1.5 "}, 1.5),
        ({b"retry-after-ms": b"250", b"retry-after": b"1"}, 0.25),
        ({b"retry-after-ms": b"soon", b"retry-after": b"1"}, 1.0),
        ({b"retry-after": b"Wed, 21 Oct 2015 07:28:30 GMT", b"date": DATE}, 30.0),
        ({b"retry-after": b"Wed, 21 Oct 2015 07:27:30 GMT", b"date": DATE}, 0.0),
        ({b"retry-after": DATE}, None),
        ({b"retry-after": b"\xff", b"date": DATE}, None),
        ({b"retry-after": b"-5"}, None),
        ({b"retry-after": b"inf"}, None),
        ({b"retry-after": b"9" * 400}, None),
    ],
)
def test_a_pause_is_read_from_the_headers_that_ask_for_one(
    headers: dict[bytes, bytes], seconds: float | None
):
    assert asked_pause_s(headers) == seconds


@pytest.mark.parametrize(
    ("span", "seconds"),
    # Groq's and OpenAI's own examples, and what Azure sends.
    [(b"2m59.56s", 179.56), (b"7.66s", 7.66), (b"6m0s", 360.0), (b"1h2m3s", 3723.0), (b"20", 20.0), (b"12ms", LEAST_RESET_S)],
)  # fmt: skip
def test_a_limit_says_when_it_is_whole_again(span: bytes, seconds: float):
    assert asked_pause_s({b"x-ratelimit-reset-tokens": span}) == pytest.approx(seconds)


@pytest.mark.parametrize("span", [b"0", b"-1", b"", b"soon", b"1", b"m", b"1x", b"1e9s"])
def test_a_limit_that_says_nothing_asks_for_no_long_pause(span: bytes):
    assert asked_pause_s({b"x-ratelimit-reset-requests": span}) in (None, LEAST_RESET_S)


def test_the_limit_that_is_used_up_is_the_one_to_wait_for():
    both = {b"x-ratelimit-reset-requests": b"5s", b"x-ratelimit-reset-tokens": b"6m0s"}
    assert asked_pause_s(both) == 5.0
    assert asked_pause_s({**both, b"x-ratelimit-remaining-tokens": b"0"}) == 360.0
    assert asked_pause_s({**both, b"x-ratelimit-remaining-requests": b"0"}) == 5.0
    assert asked_pause_s({**both, b"retry-after": b"2"}) == 2.0


NAMES = [
    b"retry-after",
    b"retry-after-ms",
    b"x-ratelimit-reset-tokens",
    b"x-ratelimit-remaining-tokens",
    b"date",
]


@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=40)))
def test_no_header_whatever_makes_a_pause_that_is_none(headers: dict[bytes, bytes]):
    pause_s = asked_pause_s(headers)
    assert pause_s is None or 0.0 <= pause_s < 1e14
