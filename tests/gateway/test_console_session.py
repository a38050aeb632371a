"""Sessions of the console: sealed, bound to a key, and of no use to another origin's pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.console.session import COOKIE, FAILURES, LASTS_S, Guard, Sessions, expect_same_origin
from gateway.errors import ApiError

SECRET = b"a database's secret"
DIGEST = bytes(range(32))


def headers(cookie: str, **more: bytes) -> dict[bytes, bytes]:
    named = {name.replace("_", "-").encode(): value for name, value in more.items()}
    return {b"cookie": f"{COOKIE}={cookie}".encode(), b"host": b"gateway:8000", **named}


def test_a_session_is_read_by_whoever_has_the_same_secret_and_by_nobody_else():
    cookie = Sessions(SECRET).open(DIGEST)
    assert Sessions(SECRET).read(cookie).digest == DIGEST
    assert Sessions(b"another database's").read(cookie) is None


@given(st.integers(0, 10_000), st.integers(0, 63))
def test_a_cookie_that_was_changed_anywhere_is_none(place: int, by: int):
    cookie = Sessions(SECRET).open(DIGEST)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    place %= len(cookie) - 1  # the bits at the very end of base64 mean nothing
    other = letters[(letters.index(cookie[place]) + 1 + by % 62) % 64]
    assert Sessions(SECRET).read(cookie[:place] + other + cookie[place + 1 :]) is None


@given(st.text(max_size=200))
def test_anything_else_is_none_as_well(cookie: str):
    assert Sessions(SECRET).read(cookie) is None


def test_a_session_ends():
    cookie = Sessions(SECRET, lambda: 1000.0).open(DIGEST)
    assert Sessions(SECRET, lambda: 1000.0 + LASTS_S - 1).read(cookie) is not None
    assert Sessions(SECRET, lambda: 1000.0 + LASTS_S).read(cookie) is None


def test_looking_takes_the_cookie_alone_and_a_change_the_token_as_well():
    sessions = Sessions(SECRET)
    cookie = sessions.open(DIGEST)
    token = sessions.read(cookie).token.encode()
    assert sessions.admit("GET", headers(cookie)).digest == DIGEST
    assert sessions.admit("POST", headers(cookie, x_console_token=token)).digest == DIGEST
    for wrong in (
        {},
        {"x_console_token": b"no"},
        {"x_console_token": token, "origin": b"https://evil.example"},
    ):
        with pytest.raises(ApiError, match=r"token|another origin") as refused:
            sessions.admit("DELETE", headers(cookie, **wrong))
        assert refused.value.code == "cross_site"


@pytest.mark.parametrize("site", [b"same-site", b"cross-site"])
def test_what_the_browser_says_of_the_sender_decides(site: bytes):
    sessions = Sessions(SECRET)
    cookie = sessions.open(DIGEST)
    token = sessions.read(cookie).token.encode()
    sent = headers(cookie, x_console_token=token, origin=b"http://gateway:8000")
    assert sessions.admit("POST", sent | {b"sec-fetch-site": b"same-origin"}) is not None
    with pytest.raises(ApiError):
        sessions.admit("POST", sent | {b"sec-fetch-site": site})


def test_a_key_in_the_request_wins_over_a_cookie():
    sessions = Sessions(SECRET)
    assert sessions.admit("POST", headers(sessions.open(DIGEST), authorization=b"Bearer x")) is None


def test_too_many_failed_logins_have_to_wait_and_others_do_not():
    guard = Guard()
    for _ in range(FAILURES):
        guard.expect_room("10.0.0.1")
        guard.failed("10.0.0.1")
    with pytest.raises(ApiError) as refused:
        guard.expect_room("10.0.0.1")
    assert refused.value.code == "too_many_logins"
    assert refused.value.retry_after_s > 0
    guard.expect_room("10.0.0.2")


@pytest.mark.parametrize("origin", [b"http://[", b"http://elsewhere", b"null", b"\xff"])
def test_an_origin_that_is_not_ours_is_refused_whatever_it_is(origin: bytes):
    with pytest.raises(ApiError) as refused:
        expect_same_origin({b"origin": origin, b"host": b"ours"})
    assert refused.value.code == "cross_site"
