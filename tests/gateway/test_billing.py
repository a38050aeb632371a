from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from usage_rows import a_row

from gateway.audit import Actor, entries
from gateway.billing import BillingError, Conflict, Order, balance_nano_usd, balances, enter
from gateway.cli import app
from gateway.config_section import nano_usd_text
from gateway.ledger_tables import LEDGER_ENTRIES
from gateway.store import Store
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def url(either_url: str) -> str:
    return either_url


@pytest.fixture
def used(store: Store) -> Store:
    """One call of acme's has been charged 100 and cost 40."""
    store.record([a_row("call-1", charge_nano_usd=100, cost_nano_usd=40)])
    return store


def test_money_that_moves_beside_calls_is_entered_on_two_sides(used: Store):
    enter(used, Order("payment", "acme", 500, "p1"))
    enter(used, Order("credit", "acme", 30, "c1", "sorry"))
    enter(used, Order("refund", "call-1", 60, "r1"))
    enter(used, Order("correction", "acme", -5, "k1"))
    enter(used, Order("payout", "w1", 40, "o1"))
    assert balances(used) == {
        "tenant:acme": 100 - 500 - 30 - 60 - 5,
        "revenue": -100 + 60 + 5,
        "cash": 500 - 40,
        "credit": 30,
        "cost": 40,
        "payout:w1": 0,
    }
    assert balance_nano_usd(used, "acme") == 495
    assert balance_nano_usd(used, "nobody") == 0
    with used.reading() as connection:
        amounts: dict[str, int] = {}
        for row in connection.execute(LEDGER_ENTRIES.select()):
            amounts[row.transaction_id] = amounts.get(row.transaction_id, 0) + row.amount_nano_usd
    assert set(amounts.values()) == {0}
    assert len(amounts) == 6


def test_who_moved_money_is_in_the_audit_log_once(used: Store):
    ops = Actor("adm_1", "10.0.0.1")
    for _ in range(2):
        enter(used, Order("credit", "acme", 30, "c1", "sorry"), actor=ops)
    enter(used, Order("payout", "w1", 40, "o1"))
    payout, credit = entries(used, most=9, tenant=None, subject=None)
    assert (credit.actor, credit.source, credit.tenant) == ("adm_1", "10.0.0.1", "acme")
    assert (credit.action, credit.subject) == ("ledger.credit", "tenant:acme")
    assert (credit.after["amount_nano_usd"], credit.after["note"]) == (-30, "sorry")
    assert (payout.subject, payout.tenant) == ("payout:w1", None)


def test_with_the_same_key_it_is_entered_once(used: Store):
    first = enter(used, Order("credit", "acme", 30, "c1", "sorry"))
    again = enter(used, Order("credit", "acme", 30, "c1"))
    assert (first.new, again.new) == (True, False)
    assert (again.id, again.time_ms, again.note) == (first.id, first.time_ms, "sorry")
    assert balances(used)["credit"] == 30
    for other in (Order("credit", "acme", 31, "c1"), Order("credit", "zeta", 30, "c1")):
        with pytest.raises(Conflict):
            enter(used, other)
    assert enter(used, Order("payment", "acme", 30, "c1")).new  # another kind's keys are its own
    assert enter(used, Order("credit", "acme", 30)).new
    assert enter(used, Order("credit", "acme", 30)).new


def test_no_more_of_a_call_is_refunded_than_it_was_charged(used: Store):
    enter(used, Order("refund", "call-1", 60))
    with pytest.raises(BillingError, match="40 nano-USD"):
        enter(used, Order("refund", "call-1", 41))
    assert enter(used, Order("refund", "call-1", None)).amount_nano_usd == -40
    with pytest.raises(BillingError):
        enter(used, Order("refund", "call-1", None))
    with pytest.raises(BillingError, match="no call"):
        enter(used, Order("refund", "call-2", 1))
    assert balances(used)["tenant:acme"] == 0


@pytest.mark.parametrize(
    "order",
    [
        Order("credit", "acmee", 1),
        Order("payout", "w9", 1),
        Order("credit", "acme", 0),
        Order("credit", "acme", -1),
        Order("payment", "acme", None),
        Order("payment", "acme", 10**18 + 1),
        Order("payment", "acme", 1, "x" * 201),
    ],
)
def test_what_makes_no_sense_is_not_entered(used: Store, order: Order):
    before = balances(used)
    with pytest.raises(BillingError):
        enter(used, order)
    assert balances(used) == before


def test_a_tenant_can_pay_before_its_first_call(store: Store):
    Subjects(store).create_key("early")
    enter(store, Order("payment", "early", 7))
    assert balance_nano_usd(store, "early") == 7


@given(st.integers(-(10**18), 10**18))
def test_amounts_in_text_are_exact(nano_usd: int):
    sign, whole = "-" if nano_usd < 0 else "", abs(nano_usd)
    assert nano_usd_text(f"{sign}{whole // 10**9}.{whole % 10**9:09d}") == nano_usd


@pytest.mark.parametrize("text", ["", "x", "NaN", "inf", "0.0000000001", "1e30", "1,5"])
def test_what_is_no_amount_is_refused(text: str):
    with pytest.raises(ValueError, match="nine decimals"):
        nano_usd_text(text)


def test_the_command_line_enters_and_shows(tmp_path: Path, sqlite_url: str):
    config = tmp_path / "tidegate.yaml"
    config.write_text(
        f"database: {sqlite_url}\n"
        "models: {llama: {price: {input: 1, output: 1}, endpoints: [{worker: 'http://127.0.0.1:1'}]}}\n"
    )
    with Store.open(sqlite_url) as store:
        store.record([a_row("call-1", charge_nano_usd=100, cost_nano_usd=40)])

    def run(*words: str, code: int = 0) -> list[dict[str, object]]:
        result = CliRunner().invoke(app, [*words, "--config", str(config), "--format", "json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else []

    (paid,) = run("payment", "acme", "1.5", "--idempotency-key", "p1", "--note", "wire")
    assert (paid["account"], paid["amount_usd"], paid["new"]) == ("tenant:acme", "-1.50", True)
    assert run("payment", "acme", "1.5", "--idempotency-key", "p1")[0]["new"] is False
    run("credit", "acme", "0.25")
    run("refund", "call-1")
    run("pay", "w1", "0.00000004")
    run("correct", "acme", "0.25")
    run("credit", "nobody", "1", code=1)
    run("credit", "acme", "one", code=2)
    (mine,) = run("balance", "tenant:acme")
    assert mine == {"account": "tenant:acme", "amount_nano_usd": -1_500_000_000, "amount_usd": "-1.50"}
    assert {row["account"] for row in run("balance")} >= {"cash", "credit", "revenue", "payout:w1"}
