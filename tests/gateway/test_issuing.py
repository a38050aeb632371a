"""Invoices that have been issued stay as they are, and all of them add up to the ledger."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.exc import DatabaseError
from typer.testing import CliRunner
from usage_rows import a_row

from gateway import focus
from gateway.audit import Actor, entries
from gateway.billing import BillingError, Order, Unknown, balances, enter
from gateway.bills import in_words, rendered
from gateway.cli import app
from gateway.issuing import invoice, issue, issued
from gateway.ledger import amount_nano_usd
from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.output import BillFormat
from gateway.store import Store
from routing.types import Price, Usage

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.invoice import Invoice

OCTOBER, NOVEMBER, DECEMBER, JANUARY = "2025-10", "2025-11", "2025-12", "2026-01"
OLD, NEW = Price(50_001, 100_003, 25_000), Price(70_007, 90_000)
HOUR_MS = 3_600_000


@pytest.fixture
def url(either_url: str) -> str:
    return either_url


def at(month: str, day: int = 1) -> int:
    return round(datetime.fromisoformat(f"{month}-{day:02}T12:00+00:00").timestamp() * 1000)


def call(call_id: str, month: str, day: int = 1, charge: int = 100, **more: object):
    return a_row(call_id, time_ms=at(month, day), charge_nano_usd=charge, cost_nano_usd=0, **more)


def billed(*made: Invoice) -> int:
    return sum(each.total_nano_usd for each in made)


def paid(*made: Invoice) -> int:
    return sum(movement.amount_nano_usd for each in made for movement in each.payments)


def test_a_month_with_a_price_change_a_refund_and_failed_calls_adds_up_also_after_a_correction(store: Store):
    rows = []
    for day in range(1, 31):
        failed = day % 7 == 3
        usage = Usage() if failed else Usage(100 + day, day, 37 * day)
        price = OLD if day < 15 else NEW
        row = call(
            f"n-{day}",
            NOVEMBER,
            day,
            amount_nano_usd(price, usage),
            outcome="upstream_error" if failed else "ok",
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
        )
        rows.append(row)
    store.record(rows)
    enter(store, Order("refund", "n-5", None, "r"), at(NOVEMBER, 20))
    enter(store, Order("payment", "acme", 10_000, "p"), at(NOVEMBER, 21))
    november, new = issue(store, "acme", NOVEMBER)
    assert new
    charged = sum(row.charge_nano_usd for row in rows)
    assert november.total_nano_usd == charged - rows[4].charge_nano_usd
    assert [(line.calls, line.month) for line in november.lines] == [(30, NOVEMBER)]

    enter(store, Order("correction", "acme", -777, "c"), at(DECEMBER, 2))
    enter(store, Order("refund", "n-6", None, "r2"), at(NOVEMBER, 30))  # by a clock that is behind
    store.record([call("late", NOVEMBER, 9, 33, model="other"), call("d-1", DECEMBER, charge=5)])
    assert invoice(store, "acme", NOVEMBER) == november
    december, _ = issue(store, "acme", DECEMBER)
    assert [(line.month, line.model, line.amount_nano_usd) for line in december.late] == [
        (NOVEMBER, "other", 33)
    ]
    assert {each.id: each.amount_nano_usd for each in december.adjustments} == {
        "correction:c": -777,
        "refund:r2": -rows[5].charge_nano_usd,
    }
    assert december.opening_nano_usd == november.closing_nano_usd
    both = (november, december)
    assert billed(*both) + paid(*both) == balances(store, "tenant:acme")["tenant:acme"]
    assert december.closing_nano_usd == balances(store, "tenant:acme")["tenant:acme"]


def test_numbers_have_no_gap_and_an_invoice_is_issued_once(store: Store):
    store.record([call("a", NOVEMBER), call("b", NOVEMBER, tenant="zeta"), call("c", DECEMBER)])
    ops = Actor("adm_1", "10.0.0.1")
    first, _ = issue(store, "acme", NOVEMBER, ops)
    again, new = issue(store, "acme", NOVEMBER, ops)
    assert (again, new) == (first, False)
    for tenant, month in (("zeta", DECEMBER), ("nobody", NOVEMBER)):
        with pytest.raises(BillingError):
            issue(store, tenant, month)  # nothing to bill
    issue(store, "zeta", NOVEMBER)
    issue(store, "acme", DECEMBER)
    assert [(each.number, each.tenant, each.month) for each in issued(store)] == [
        ("INV-000001", "acme", NOVEMBER),
        ("INV-000002", "zeta", NOVEMBER),
        ("INV-000003", "acme", DECEMBER),
    ]
    assert [each.number for each in issued(store, "acme", "INV-000001")] == ["INV-000003"]
    audited = entries(store, most=9, tenant=None, subject="invoice:INV-000001")
    assert [(each.actor, each.source, each.action, each.tenant) for each in audited] == [
        ("adm_1", "10.0.0.1", "invoice.issue", "acme")
    ]
    assert audited[0].after["total_nano_usd"] == 100


def test_what_cannot_be_issued_is_refused_with_its_reason(store: Store):
    store.record([call("a", OCTOBER), call("b", NOVEMBER), call("c", DECEMBER)])
    with pytest.raises(BillingError, match="not over"):
        issue(store, "acme", NOVEMBER, now_ms=at(NOVEMBER, 30))
    with pytest.raises(ValueError, match="no month"):
        issue(store, "acme", "2025-13-1")
    with pytest.raises(Unknown):
        issue(store, "nobody", NOVEMBER)
    issue(store, "acme", NOVEMBER)
    with pytest.raises(BillingError, match="after 2025-10"):
        issue(store, "acme", OCTOBER)
    assert invoice(store, "acme", OCTOBER).number is None


def test_a_month_that_was_passed_over_is_on_the_next_invoice(store: Store):
    store.record(
        [call("o", OCTOBER, charge=1), call("n", NOVEMBER, charge=20), call("d", DECEMBER, charge=300)]
    )
    october, _ = issue(store, "acme", OCTOBER)
    december, _ = issue(store, "acme", DECEMBER)
    assert [(line.month, line.amount_nano_usd) for line in december.late] == [(NOVEMBER, 20)]
    assert (december.opening_nano_usd, december.total_nano_usd) == (october.closing_nano_usd, 320)
    with pytest.raises(BillingError, match="billed with INV-000002"):
        invoice(store, "acme", NOVEMBER)
    with pytest.raises(BillingError):
        issue(store, "acme", NOVEMBER)


def test_what_comes_in_of_the_time_before_the_first_invoice_is_on_the_next_one(store: Store):
    store.record([call("o", OCTOBER, charge=1), call("n", NOVEMBER, charge=20)])
    november, _ = issue(store, "acme", NOVEMBER)
    assert november.opening_nano_usd == 1
    store.record([call("o-late", OCTOBER, charge=7)])
    december, _ = issue(store, "acme", DECEMBER)
    (late,) = december.adjustments
    assert (late.kind, late.amount_nano_usd) == ("late", 7)
    store.record([call("o-later", OCTOBER, charge=9)])
    january, _ = issue(store, "acme", JANUARY, now_ms=at("2026-02"))
    assert [each.amount_nano_usd for each in january.adjustments] == [9]
    assert january.closing_nano_usd == balances(store, "tenant:acme")["tenant:acme"] == 37


def test_a_draft_has_no_number_and_follows_the_ledger(store: Store):
    store.record([call("a", NOVEMBER)])
    draft = invoice(store, "acme", NOVEMBER)
    assert (draft.number, draft.issued_ms, draft.total_nano_usd) == (None, None, 100)
    assert "Draft: it may still change" in in_words(draft)
    enter(store, Order("credit", "acme", 40, "c"), at(NOVEMBER, 2))
    assert invoice(store, "acme", NOVEMBER).total_nano_usd == 60
    made, _ = issue(store, "acme", NOVEMBER, now_ms=at(DECEMBER))
    assert "Number INV-000001, issued 2025-12-01" in in_words(made)
    shown = json.loads(rendered(made, BillFormat.JSON))
    assert (shown["number"], shown["issued"], shown["total_usd"]) == (
        "INV-000001",
        "2025-12-01T12:00:00Z",
        "0.00000006",
    )


def test_many_at_once_issue_one_invoice(store: Store):
    store.record([call("a", NOVEMBER)])
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: issue(store, "acme", NOVEMBER), range(4)))
    assert sorted(new for _, new in made) == [False, False, False, True]
    assert len({each.number for each, _ in made}) == 1


@pytest.mark.parametrize("act", ["UPDATE invoices SET month = month", "DELETE FROM invoices"])
def test_an_invoice_that_has_been_issued_cannot_be_changed(store: Store, act: str):
    store.record([call("a", NOVEMBER)])
    made, _ = issue(store, "acme", NOVEMBER)
    with pytest.raises(DatabaseError, match="append-only"), store._writer.begin() as connection:
        connection.execute(text(act))
    assert invoice(store, "acme", NOVEMBER) == made


MONTHS = (OCTOBER, NOVEMBER, DECEMBER, JANUARY)
acts = st.one_of(
    st.tuples(st.just("call"), st.sampled_from(MONTHS), st.integers(0, 1000)),
    st.tuples(st.sampled_from(["credit", "payment"]), st.sampled_from(MONTHS), st.integers(1, 1000)),
    st.tuples(
        st.just("correction"), st.sampled_from(MONTHS), st.integers(-1000, 1000).filter(lambda n: n != 0)
    ),
    st.tuples(st.just("issue"), st.sampled_from(MONTHS), st.just(0)),
)


def expect_export(store: Store, made: list[Invoice]) -> None:
    """A period of the export has what its invoice has, or else what is on none; all of them have all charges of the ledger."""
    by_month = {each.month: each for each in made}
    exported = 0
    for month in (*MONTHS, "2026-02"):
        rows = list(focus.rows(store, month, "us"))
        total = sum((Decimal(row["BilledCost"]).scaleb(9) for row in rows), Decimal(0))
        there = by_month.get(month)
        if there is not None:
            assert {row["InvoiceId"] for row in rows} == {there.number}
            assert total == there.total_nano_usd
        else:
            assert {row["InvoiceId"] for row in rows} <= {""}
        exported += int(total)
    charged = (
        select(func.sum(LEDGER_ENTRIES.c.amount_nano_usd))
        .join(LEDGER_TRANSACTIONS, LEDGER_TRANSACTIONS.c.id == LEDGER_ENTRIES.c.transaction_id)
        .where(LEDGER_ENTRIES.c.account == "tenant:acme", LEDGER_TRANSACTIONS.c.kind != "payment")
    )
    with store.reading() as connection:
        assert exported == connection.execute(charged).scalar_one()


@given(done=st.lists(acts, max_size=25))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_in_whatever_order_things_come_in_the_invoices_add_up_to_the_ledger(
    tmp_path_factory: pytest.TempPathFactory, done: list[tuple[str, str, int]]
):
    with Store.open(f"sqlite:///{tmp_path_factory.mktemp('d')}/t.db") as store:
        store.record([call("first", OCTOBER, charge=1)])
        made: list[Invoice] = []
        for number, (kind, month, amount) in enumerate(done):
            if kind == "call":
                store.record([call(f"c-{number}", month, 1 + number, amount, model=f"m{number % 3}")])
            elif kind == "issue":
                try:
                    one, new = issue(store, "acme", month, now_ms=at("2026-03"))
                except BillingError:
                    continue
                if new:
                    made.append(one)
                    # All that there is by the end of its month is on it or on one before it.
                    balance = invoice(store, "acme", month).closing_nano_usd
                    assert balance == made[0].opening_nano_usd + billed(*made) + paid(*made)
            else:
                enter(store, Order(kind, "acme", amount, str(number)), at(month, 1 + number))
        for each in made:
            assert invoice(store, "acme", each.month) == each
        if len(done) % 2:
            expect_export(store, made)
        store.record([call("last", "2026-02", charge=1)])
        last, _ = issue(store, "acme", "2026-02", now_ms=at("2026-03"))
        made.append(last)
        in_ledger = balances(store, "tenant:acme")["tenant:acme"]
        assert last.closing_nano_usd == in_ledger
        assert made[0].opening_nano_usd + billed(*made) + paid(*made) == in_ledger
        if not len(done) % 2:
            expect_export(store, made)


def test_the_command_line_issues_and_lists(tmp_path: Path, sqlite_url: str):
    config = tmp_path / "tidegate.yaml"
    config.write_text(
        f"database: {sqlite_url}\n"
        "models: {llama: {price: {input: 1, output: 1}, endpoints: [{worker: 'http://127.0.0.1:1'}]}}\n"
    )
    with Store.open(sqlite_url) as store:
        store.record([call("a", NOVEMBER, charge=10**9)])

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, "--config", str(config)])
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.stderr

    assert json.loads(run("invoice", "acme", NOVEMBER))["number"] is None
    assert json.loads(run("invoice", "acme", NOVEMBER, "--issue"))["number"] == "INV-000001"
    assert json.loads(run("invoice", "acme", NOVEMBER))["number"] == "INV-000001"
    (listed,) = json.loads(run("invoices", "--format", "json"))
    assert (listed["number"], listed["total_usd"]) == ("INV-000001", "1.00")
    this_month = datetime.now(UTC).strftime("%Y-%m")
    assert "is not over" in run("invoice", "acme", this_month, "--issue", code=1)
    assert "nobody" in run("invoice", "nobody", NOVEMBER, "--issue", code=1)
