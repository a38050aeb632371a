from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from gateway.top import Top
from gateway.top_screen import money, screen, short, span

NOW_MS = 1_700_000_000_000
NO_CALLS: dict[str, Any] = {"data": [], "before": None}


def node(name: str, **other: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": "llama",
        "kind": "worker",
        "gpu": "rtx-4090",
        "region": "eu-west",
        "state": "serving",
        "reason": None,
        "inflight": 1,
        "waiting": 0,
        "busy": 0.25,
        "kv_usage": 0.5,
        "cache_hits": None,
        "prefill_tokens_per_s": 9000.0,
        "decode_tokens_per_s": 60.0,
        "ejections": 0,
        "leaves_in_s": None,
        "attempts": {"ok": 7, "timeout": 2, "abandoned": 1},
        "done": None,
        **other,
    }


def attempt(endpoint: str, state: str, **other: Any) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "at_ms": 0.0,
        "state": state,
        "first_ms": None,
        "ended_ms": None,
        "cause": None,
        **other,
    }


def call(call_id: str, state: str, *attempts: dict[str, Any], **other: Any) -> dict[str, Any]:
    """As an event tells it."""
    return {
        "id": call_id,
        "time_ms": NOW_MS - 2000,
        "tenant": "acme",
        "model": "llama",
        "tier": "default",
        "api": "chat",
        "stream": True,
        "state": state,
        "endpoint": "a",
        "prompt_tokens": 100,
        "cached_tokens": 0,
        "completion_tokens": 0,
        "ttft_ms": None,
        "duration_ms": None,
        "outcome": None,
        "charge_nano_usd": 0,
        "cost_nano_usd": 0,
        "attempts": list(attempts),
        **other,
    }


def ended(call_id: str, tokens: int = 30, **other: Any) -> dict[str, Any]:
    said = {"outcome": "ok", "completion_tokens": tokens, "ttft_ms": 50.0, "duration_ms": 2000.0}
    return call(call_id, "ended", attempt("a", "over"), **(said | other))


def begun(*nodes: dict[str, Any], page: dict[str, Any] = NO_CALLS) -> Top:
    top = Top("http://gateway:8000")
    top.begin({"endpoints": list(nodes), "running": 3, "processes": 2}, page, NOW_MS)
    return top


def tick(top: Top, after_ms: int = 0, *, unseen: int = 0, **written: int) -> None:
    top.take_tick({"now_ms": NOW_MS + after_ms, "running": 5, "unseen": unseen, "written": written})


def test_tokens_count_when_they_are_written_and_once():
    top = begun(node("a"), node("b"))
    top.take_calls([call("x", "answering", attempt("a", "answering", first_ms=12.5))])
    tick(top, x=10)
    tick(top, 1000, x=25)
    under_way = top.picture(0)
    assert under_way.totals.tokens_per_s == round(25 / 30, 1)
    assert [each.tokens_per_s for each in under_way.endpoints] == [0.8, 0]
    assert [(each.state, each.completion_tokens, each.ttft_ms) for each in under_way.calls] == [
        ("answering", 25, 12.5)
    ]
    top.take_calls([ended("x", 30)])
    over = top.picture(0)
    assert over.totals.tokens_per_s == 1.0
    assert (over.calls[0].state, over.calls[0].completion_tokens) == ("ok", 30)


def test_what_is_long_over_counts_no_more():
    top = begun(node("a"))
    top.take_calls([ended("x", outcome="timeout")])
    tick(top)
    assert (top.picture(0).totals.calls_per_s, top.picture(0).totals.failed) == (0.03, 1)
    tick(top, 45_000)
    assert (top.picture(0).totals.calls_per_s, top.picture(0).totals.ttft_p50_ms) == (0, 50.0)
    tick(top, 70_000)
    assert (top.picture(0).totals.failed, top.picture(0).totals.ttft_p50_ms) == (0, None)
    assert len(top.picture(0).calls) == 1


def test_calls_that_are_too_many_to_be_followed_are_counted_as_those_that_are():
    top = begun(node("a"))
    tick(top, unseen=100)
    top.take_calls([ended("x"), ended("y")])
    tick(top, 1000, unseen=104)
    totals = top.picture(0).totals
    assert (totals.calls_per_s, totals.tokens_per_s, totals.unseen) == (0.2, round(60 * 3 / 30, 1), 4)


def test_a_call_that_the_ledger_and_the_events_tell_of_is_one():
    told = {**ended("x"), "attempts": 2, "shares": [{"endpoint": "b", "purpose": "moved_on"}]}
    del told["state"]
    top = begun(node("a"), page={"data": [told], "before": None})
    top.take_calls([ended("x")])
    (only,) = top.picture(0).calls
    assert (only.state, only.attempts, only.steps) == ("ok", 2, ["b moved on"])


def test_a_page_that_ends_too_soon_makes_rates_of_less_time():
    told = {**ended("x", time_ms=NOW_MS - 10_000), "attempts": 1, "shares": []}
    top = begun(node("a"), page={"data": [told], "before": "there is more"})
    assert top.picture(0).totals.calls_per_s == 0.1


def test_what_was_done_beside_asking_one_endpoint_is_said():
    top = begun(node("a"), node("b"))
    hedged = [attempt("a", "left"), attempt("b", "over", first_ms=9.0)]
    resumed = [attempt("a", "failed", cause="broken"), attempt("b", "answering")]
    top.take_calls([call("x", "answering", *resumed), ended("y", attempts=hedged)])
    assert [each.steps for each in top.picture(0).calls] == [
        ["a broken", "b answers"],
        ["a not needed", "b answered"],
    ]


def test_errors_of_an_endpoint_are_those_that_are_its_own():
    (shown,) = begun(node("a")).picture(0).endpoints
    assert (shown.answered, shown.errors) == (7, 2)


def test_of_a_gateway_that_is_away_nothing_is_under_way():
    top = begun(node("a"))
    top.take_calls([call("x", "asked")])
    top.away = "connection refused"
    top.lost()
    picture = top.picture(NOW_MS + 90_000)
    assert (picture.calls, picture.totals.running, picture.away) == ([], 0, "connection refused")


def drawn(top: Top, width: int, height: int | None) -> list[str]:
    console = Console(width=width, height=height or 25, color_system=None, markup=False, highlight=False)
    with console.capture() as capture:
        console.print(screen(top.picture(0), width, height))
    return capture.get().splitlines()


def busy_fleet(nodes: int, calls: int) -> Top:
    names = [node(f"worker-with-a-long-name-{at}") for at in range(nodes)]
    top = begun(*names, node("zebra", state="out", reason="ejected: connection refused", inflight=0))
    top.take_calls([ended(f"call-{at}", tenant="a-tenant-with-a-long-name") for at in range(calls)])
    top.take_calls([call("now", "answering", attempt("a", "failed", cause="broken"), attempt("b", "asked"))])
    return top


@pytest.mark.parametrize("size", [(80, 24), (160, 50), (48, 16), (30, 10), (500, 200)])
@pytest.mark.parametrize("nodes", [1, 8, 200])
def test_it_fits_whatever_the_size_of_the_terminal(size: tuple[int, int], nodes: int):
    width, height = size
    lines = drawn(busy_fleet(nodes, 300), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    for word in (
        "zebra",
        "out",
        "answering",
    ):  # those in trouble, and calls, are never those that are left out
        assert any(word in line for line in lines), word


def test_a_wide_terminal_says_why_and_a_narrow_one_what():
    wide, narrow = "\n".join(drawn(busy_fleet(2, 3), 220, 24)), "\n".join(drawn(busy_fleet(2, 3), 80, 24))
    assert "ejected: connection refused" in wide
    assert "a broken, b asked" in wide
    for title in ("ENDPOINT", "STATE", "CALLS", "BUSY", "KV", "HITS", "READS/s", "WRITES/s", "TOK/s", "ERR"):
        assert title in narrow
    for title in ("TIER", "IN", "OUT", "FIRST", "TOOK", "COST", "STEPS"):
        assert title in narrow


def test_without_a_height_all_of_it_is_there():
    lines = "\n".join(drawn(busy_fleet(60, 90), 100, None))
    assert lines.count("serving") == 60


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (0, "0"), (3.25, "3.2"), (999, "999"), (999.9, "1.0k"), (12_345, "12k"), (2.5e6, "2.5M")],
)
def test_numbers_are_short(value: float | None, words: str):
    assert short(value) == words


@pytest.mark.parametrize(
    ("ms", "words"), [(None, "-"), (7.4, "7ms"), (1500, "1.5s"), (120_000, "2m"), (7.2e6, "2h")]
)
def test_times_are_short(ms: float | None, words: str):
    assert span(ms) == words


@pytest.mark.parametrize(
    ("nano", "words"),
    [
        (0, "$0.00"),
        (1_500_000_000, "$1.50"),
        (14_321, "$0.000014"),
        (810, "$0.0000008"),
        (20_000_000, "$0.020"),
    ],
)
def test_money_has_two_digits_that_say_something(nano: int, words: str):
    assert money(nano) == words
