"""Of a call at which several endpoints have worked: who is paid, and what the tenant pays."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metered import CHUNK, COST, WORKER, meter_for
from msgspec import structs

from backends.sse import CompletionStream, Shown
from gateway.catalog import Model
from gateway.errors import ApiError
from gateway.ledger import PAID_BY_GATEWAY, WASTE, amount_nano_usd
from routing.types import Endpoint, Price, Usage

if TYPE_CHECKING:
    from backends.said import Said
    from gateway.ledger import UsageRow


@pytest.fixture
def rows() -> list[UsageRow]:
    return []


def named(name: str, cost: Price = COST) -> Endpoint:
    return structs.replace(WORKER, name=name, cost=cost)


A, B, C = map(named, "ABC")


@dataclass
class Seen:
    """A stream of which so much has been seen."""

    tokens: int
    usage: Usage | None = None
    said: Said | None = None


def work(row: UsageRow) -> list[tuple[str, str, int, int, int]]:
    """Endpoint, purpose, tokens read and written, and what is paid for it."""
    return [
        (s.endpoint, s.purpose, s.prompt_tokens, s.completion_tokens, s.cost_nano_usd) for s in row.shares
    ]


def test_a_call_that_one_endpoint_answers_has_no_shares(rows: list[UsageRow]) -> None:
    with meter_for(rows) as meter:
        meter.asked(A)
        meter.failed(A)  # could not be reached: it has done nothing
        meter.asked(B)
        meter.answered(B, Seen(5, Usage(10, 0, 5)))
    (row,) = rows
    assert (row.endpoint, row.attempts, row.shares, row.waste_nano_usd) == ("B", 2, (), 0)


def test_a_node_that_failed_to_deliver_is_not_paid_and_the_tenant_does_not_pay(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.failed(A, "late")
        meter.asked(B)
        meter.answered(B, Seen(5, Usage(10, 4, 5)))
    (row,) = rows
    assert work(row) == [("B", "answer", 10, 5, 10 * 20 + 5 * 40), ("A", "late", 12, 0, 0)]
    assert row.shares[1].estimated
    assert (row.cost_nano_usd, row.waste_nano_usd) == (10 * 20 + 5 * 40, 12 * 20)
    assert row.charge_nano_usd == row.shares[0].charge_nano_usd == 6 * 50 + 4 * 25 + 5 * 100


def test_of_a_call_that_failed_at_an_endpoint_the_row_says_which(rows: list[UsageRow]) -> None:
    with suppress(ApiError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.failed(A, "failed")
        raise ApiError("upstream_error", "it failed")
    (row,) = rows
    assert (row.endpoint, row.charge_nano_usd, row.cost_nano_usd) == ("", 0, 0)
    assert work(row) == [("A", "failed", 12, 0, 0)]


def test_the_loser_of_a_race_is_paid_by_the_gateway(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.asked(B)
        meter.answered(B, Seen(5, Usage(10, 0, 5)))
        meter.failed(A, "hedge_lost")
    (row,) = rows
    assert (row.endpoint, row.attempts) == ("B", 2)
    assert work(row) == [("B", "answer", 10, 5, 400), ("A", "hedge_lost", 12, 0, 240)]
    assert (row.cost_nano_usd, row.waste_nano_usd) == (400 + 240, 240)
    assert row.charge_nano_usd == 10 * 50 + 5 * 100


def test_one_that_did_not_come_to_ask_leaves_nothing(rows: list[UsageRow]) -> None:
    with meter_for(rows) as meter:
        meter.asked(A)
        meter.answered(A, Seen(5, Usage(10, 0, 5)))
        meter.failed(B, "hedge_lost")  # its task was cancelled before it began
    assert (rows[0].attempts, rows[0].shares) == (1, ())


def test_one_that_fails_in_a_race_leaves_the_other_in_it(rows: list[UsageRow]) -> None:
    with suppress(asyncio.CancelledError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.asked(B)
        meter.failed(A, "broken")
        assert meter.endpoint is B
        raise asyncio.CancelledError
    assert work(rows[0]) == [("B", "answer", 12, 0, 240), ("A", "broken", 12, 0, 0)]


def test_a_client_that_leaves_during_a_race_pays_for_one_prompt(rows: list[UsageRow]) -> None:
    with suppress(asyncio.CancelledError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.asked(B)
        raise asyncio.CancelledError
    (row,) = rows
    assert work(row) == [("A", "answer", 12, 0, 240), ("B", "hedge_lost", 12, 0, 240)]
    assert (row.charge_nano_usd, row.prompt_tokens, row.endpoint) == (12 * 50, 12, "A")


def test_a_call_that_is_taken_back_is_paid_by_the_gateway(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.given_up()
        assert meter.endpoint is None
        meter.asked(A)
        meter.answered(A, Seen(5, Usage(10, 0, 5)))
    assert work(rows[0]) == [("A", "answer", 10, 5, 400), ("A", "given_up", 12, 0, 240)]


def test_of_an_answer_that_went_on_elsewhere_each_is_paid_for_its_own(rows: list[UsageRow]) -> None:
    first, second = Seen(9), Seen(0)
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.answered(A, first)
        meter.asked(B)
        meter.continued(B, second, 7, 2)
        second.usage = Usage(prompt_tokens=10 + 7, cached_tokens=8, completion_tokens=13)
    (row,) = rows
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens, row.estimated) == ("A", 10, 20, False)
    assert row.charge_nano_usd == 10 * 50 + 20 * 100
    assert work(row) == [
        ("A", "answer", 10, 7, 10 * 20 + 7 * 40),
        ("B", "read_again", 17, 0, 17 * 20),
        ("B", "answer", 0, 13, 13 * 40),
        ("A", "broken", 0, 2, 0),
    ]
    assert row.shares[1].cached_tokens == 8
    assert row.waste_nano_usd == 17 * 20 + 2 * 40


def test_what_the_client_was_told_of_an_answer_in_pieces_is_what_it_is_charged(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.answered(A, Seen(9))
        meter.asked(B)
        meter.continued(B, Seen(13, Usage(23, 0, 13)), 9)
        meter.usage = Usage(11, 0, 22)
    (row,) = rows
    assert (row.prompt_tokens, row.completion_tokens) == (11, 22)
    assert [(s.endpoint, s.prompt_tokens, s.completion_tokens) for s in row.shares] == [
        ("A", 11, 9),
        ("B", 23, 0),
        ("B", 0, 13),
    ]


def test_an_answer_that_could_not_go_on_is_charged_as_far_as_it_came(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.answered(A, Seen(9))
        meter.asked(B)
        meter.failed(B, "late")
        meter.settle("upstream_broken")
    (row,) = rows
    assert (row.endpoint, row.prompt_tokens, row.completion_tokens, row.estimated) == ("A", 12, 9, True)
    assert work(row) == [("A", "answer", 12, 9, 600), ("B", "late", 12, 0, 0)]


def test_an_answer_that_begins_anew_elsewhere_costs_the_tenant_nothing_twice(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.answered(A, Seen(1))
        meter.failed(A, "broken")
        meter.asked(B)
        meter.answered(B, Seen(5, Usage(10, 0, 5)))
    assert work(rows[0]) == [("B", "answer", 10, 5, 400), ("A", "broken", 12, 1, 0)]


PRICES = st.builds(
    Price,
    *(st.integers(0, 9999), st.integers(0, 9999), st.none() | st.integers(0, 9999)),
    reasoning_pico_usd=st.none() | st.integers(0, 9999),
    parts=st.integers(1, 3),
)
COUNTS = st.integers(0, 50)
REPORTED = st.none() | st.builds(
    lambda prompt, cached, completion, reasoning: Usage(
        prompt, min(prompt, cached), completion, reasoning_tokens=min(completion, reasoning)
    ),
    *(COUNTS, COUNTS, COUNTS, COUNTS),
)
STREAMS = st.builds(Seen, COUNTS, REPORTED)


@given(PRICES, st.lists(st.tuples(PRICES, STREAMS, COUNTS), min_size=1, max_size=4), st.data())
def test_shares_add_up_to_the_row_and_the_answers_among_them_to_what_the_client_received(
    price: Price, pieces: list[tuple[Price, Seen, int]], data: st.DataObject
) -> None:
    rows: list[UsageRow] = []
    costs: dict[str, Price] = {}
    with meter_for(rows) as meter:
        meter.model = Model("llama", price)
        for number, (cost, stream, kept_tokens) in enumerate(pieces):
            endpoint = named(f"w{number}", cost)
            costs[endpoint.name] = cost
            for beside in data.draw(st.lists(st.sampled_from([*WASTE, None]), max_size=2)):
                meter.asked(A)
                meter.failed(A, beside)
            meter.asked(endpoint)
            if number == 0:
                meter.answered(endpoint, stream)
            else:
                meter.continued(endpoint, stream, min(kept_tokens, pieces[number - 1][1].tokens))
        if data.draw(st.booleans()):
            meter.asked(B)  # and the client leaves
    (row,) = rows
    used = Usage(
        row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.estimated, row.reasoning_tokens
    )
    assert row.charge_nano_usd == amount_nano_usd(price, used)
    if not row.shares:
        assert (row.endpoint, row.cost_nano_usd, row.waste_nano_usd) == (
            "w0",
            amount_nano_usd(costs["w0"], used),
            0,
        )
        return
    for field in ("charge_nano_usd", "cost_nano_usd", "waste_nano_usd"):
        assert sum(getattr(share, field) for share in row.shares) == getattr(row, field)
        assert all(getattr(share, field) >= 0 for share in row.shares)
    for field in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"):
        shown = sum(getattr(share, field) for share in row.shares if share.purpose == "answer")
        assert shown == getattr(row, field)
    for share in row.shares:
        if share.purpose != "answer":
            assert share.charge_nano_usd == 0
            paid = share.purpose in PAID_BY_GATEWAY
            assert share.cost_nano_usd == (share.waste_nano_usd if paid else 0)


def test_what_the_client_has_stays_its_own_where_it_could_not_go_on_at_the_same_endpoint(
    rows: list[UsageRow],
) -> None:
    stream = CompletionStream(Shown("llama", None, usage=False, choices=1), 65_536)
    with suppress(asyncio.CancelledError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(WORKER)
        stream.feed(CHUNK * 3)
        meter.answered(WORKER, stream)
        meter.asked(WORKER)
        meter.failed(WORKER, "failed")
        raise asyncio.CancelledError
    (row,) = rows
    assert (row.completion_tokens, row.estimated) == (3, True)
    assert [(s.purpose, s.completion_tokens) for s in row.shares] == [("answer", 3), ("failed", 0)]


def test_a_client_that_gets_an_error_in_place_of_its_answer_is_charged_nothing(rows: list[UsageRow]) -> None:
    with suppress(ApiError), meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.answered(A, Seen(9))
        meter.asked(B)
        raise ApiError("overloaded", "nobody can go on with it")
    (row,) = rows
    assert (row.endpoint, row.charge_nano_usd, row.completion_tokens) == ("", 0, 0)
    assert work(row) == [("B", "given_up", 12, 0, 240), ("A", "given_up", 12, 9, 600)]


def test_what_was_told_of_an_answer_that_failed_after_all_is_forgotten_with_it(rows: list[UsageRow]) -> None:
    with meter_for(rows, prompt_tokens=12) as meter:
        meter.asked(A)
        meter.answered(A, Seen(9))
        meter.usage = Usage(12, 0, 9)
        meter.failed(A, "failed")
        meter.asked(B)
        meter.answered(B, Seen(5, Usage(10, 0, 5)))
    assert (rows[0].prompt_tokens, rows[0].completion_tokens) == (10, 5)
