"""Accounts that differ are found to, each in its own way; and those that agree are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from loadtest.reckoning import Books, Called, Reckoning, reckoned
from loadtest.simworker.account import Worked
from loadtest.witness import Question, Reply, Seen
from routing.types import Price

PRICE = Price(1_000, 2_000, 500)
USAGE = (100, 40, 10)
CHARGE = 60 + 20 + 20
GPU, OTHER = "127.0.0.1:8001", "127.0.0.1:8002"


def called(request_id: str = "a", outcome: str = "ok", *, left: bool = False) -> Called:
    seen = Seen(Question("Why?", 10, stream=True), outcome, Reply(usage=USAGE), 0.0, 1.0, 0.1, {})
    return Called("acme", request_id, 0, seen, left)


def row(request_id: str = "a", **changed: Any) -> SimpleNamespace:
    fields = {"call_id": f"c-{request_id}", "request_id": request_id, "tenant": "acme", "endpoint": GPU}
    tokens = dict(zip(("prompt_tokens", "cached_tokens", "completion_tokens"), USAGE, strict=True))
    return SimpleNamespace(
        **{**fields, **tokens, "outcome": "ok", "status": 200, "charge_nano_usd": CHARGE, **changed}
    )


def share(endpoint: str, tokens: tuple[int, int, int], *, estimated: bool = False) -> SimpleNamespace:
    prompt, cached, completion = tokens
    return SimpleNamespace(
        endpoint=endpoint,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        estimated=estimated,
    )


def worked(
    request_id: str = "a", tokens: tuple[int, int, int] = USAGE, port: int = 8001
) -> tuple[int, Worked]:
    return port, Worked(request_id, *tokens, "finished")


def books(*rows: Any, shares: dict[str, list[Any]] | None = None, **owed: int) -> Books:
    return Books(list(rows), shares or {}, owed or {"acme": sum(each.charge_nano_usd for each in rows)}, ())


def found(calls: list[Called], there: Books, work: list[tuple[int, Worked]]) -> Reckoning:
    return reckoned(calls, there, work, PRICE)


def test_accounts_that_agree_are_in_order():
    calls = [called(), called("refused", "status 429 insufficient_quota"), called("gone", "left", left=True)]
    probe = 8001, Worked("", 1, 0, 1, "finished")
    result = found(calls, books(row()), [worked(), probe])
    assert result.wrong == ()
    assert (result.rows, result.alone, result.shared) == (1, 1, 0)
    assert structs.astuple(result.tokens) == (110, 110, 110, 110)
    assert result.charged_nano_usd == {"acme": CHARGE}


REFUSED = called(outcome="status 429 rate_limit_exceeded")


@pytest.mark.parametrize(
    ("calls", "there", "work", "what"),
    [
        ([called()], books(), [], "answered calls without a row"),
        ([called()], books(row(), row(call_id="again")), [worked()], "calls with more than one row"),
        ([REFUSED], books(row()), [worked()], "calls that were refused and have a row"),
        ([], books(row()), [], "rows of calls that nobody made"),
        ([called()], books(row(outcome="gateway_died")), [worked()], "answered calls booked as gateway_died"),
        ([called()], books(row(tenant="other"), other=CHARGE), [worked()], "answered calls booked as ok"),
        ([called()], books(row(completion_tokens=11)), [worked(tokens=(100, 40, 11))], "other tokens than their clients"),
        ([called()], books(row(charge_nano_usd=99)), [worked()], "calls charged wrongly"),
        ([called()], books(row(), acme=CHARGE - 1), [worked()], "do not owe what their calls are charged"),
        ([called()], books(row()), [], "their worker has counted something else"),
        ([called()], books(row()), [worked(tokens=(100, 40, 9))], "their worker has counted something else"),
        ([called()], books(row()), [worked(), worked(port=8002)], "the ledger does not know it"),
        ([called()], books(row()), [worked(), worked("b")], "the ledger does not know it"),
    ],
)  # fmt: skip
def test_each_difference_is_found(calls: list[Called], there: Books, work: list[Any], what: str):
    wrong = found(calls, there, work).wrong
    assert len(wrong) == 1
    assert what in wrong[0]


@pytest.mark.parametrize(("completion", "differences"), [(6, 0), (7, 1)])
def test_of_a_call_in_pieces_each_worker_has_counted_what_its_shares_say(completion: int, differences: int):
    shares = {"c-a": [share(GPU, (100, 40, 4)), share(OTHER, (104, 0, 0)), share(OTHER, (0, 0, 6))]}
    work = [worked(tokens=(104, 0, completion), port=8002)]
    result = found([called()], books(row(), shares=shares), work)
    assert len(result.wrong) == differences
    # The first was killed, and has told nothing.
    assert (result.shared, result.shares, result.estimated) == (1, 1, 1)
