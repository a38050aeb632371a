"""The export by billing periods: what is on an invoice keeps its number and its amount, whatever comes in later."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from usage_rows import a_row

from gateway import focus
from gateway.billing import Order, enter
from gateway.issuing import issue

if TYPE_CHECKING:
    from gateway.store import Store

OCTOBER, NOVEMBER, DECEMBER, JANUARY = "2025-10", "2025-11", "2025-12", "2026-01"


@pytest.fixture
def url(either_url: str) -> str:
    return either_url


def at(month: str, day: int = 1) -> int:
    return round(datetime.fromisoformat(f"{month}-{day:02}T12:00+00:00").timestamp() * 1000)


def call(call_id: str, month: str, day: int, charge: int, **more: object):
    return a_row(call_id, time_ms=at(month, day), charge_nano_usd=charge, cost_nano_usd=0, **more)


def exported(store: Store, month: str, *columns: str, tenant: str = "acme") -> list[tuple[Any, ...]]:
    rows = focus.rows(store, month, "us", tenant)
    return [(*(row[each] for each in columns), int(Decimal(row["BilledCost"]).scaleb(9))) for row in rows]


def test_what_has_been_billed_bears_its_invoice_and_what_is_to_be_bears_none(store: Store):
    store.record([call("a", NOVEMBER, 1, 100), call("b", NOVEMBER, 2, 20), call("c", DECEMBER, 3, 3)])
    seen = ("InvoiceId", "ChargePeriodStart", "ChargeClass", "Tags")
    tags = '{"key": "key_1", "tier": "default"}'
    assert exported(store, NOVEMBER, "InvoiceId") == [("", 100), ("", 20)]
    issue(store, "acme", NOVEMBER)
    assert exported(store, NOVEMBER, *seen) == [
        ("INV-000001", "2025-11-01T00:00:00Z", "", tags, 100),
        ("INV-000001", "2025-11-02T00:00:00Z", "", tags, 20),
    ]
    assert exported(store, DECEMBER, *seen) == [("", "2025-12-03T00:00:00Z", "", tags, 3)]


def test_what_comes_in_after_an_invoice_is_in_the_next_period_as_a_correction(store: Store):
    store.record([call("a", NOVEMBER, 1, 100), call("o", NOVEMBER, 1, 50, model="other")])
    issue(store, "acme", NOVEMBER)
    enter(store, Order("refund", "a", 7, "r"), at(DECEMBER, 9))
    store.record([call("late", NOVEMBER, 5, 11), call("d", DECEMBER, 2, 3)])
    enter(store, Order("refund", "d", 1, "s"), at(DECEMBER, 9))
    seen = ("InvoiceId", "ChargePeriodStart", "ChargePeriodEnd", "ChargeClass")
    # Of what the invoice has, no more is known by day: there is more by now.
    billed = [
        ("INV-000001", "2025-11-01T00:00:00Z", "2025-12-01T00:00:00Z", "", 100),
        ("INV-000001", "2025-11-01T00:00:00Z", "2025-11-02T00:00:00Z", "", 50),
    ]
    assert exported(store, NOVEMBER, *seen) == billed
    later = [
        ("2025-12-02T00:00:00Z", "2025-12-03T00:00:00Z", "", 3),
        ("2025-11-01T00:00:00Z", "2025-12-01T00:00:00Z", "Correction", 11),
        ("2025-12-09T12:00:00Z", "2025-12-09T12:00:01Z", "Correction", -7),
        ("2025-12-09T12:00:00Z", "2025-12-09T12:00:01Z", "", -1),
    ]
    assert exported(store, DECEMBER, *seen) == [("", *each) for each in later]
    issue(store, "acme", DECEMBER)
    assert exported(store, DECEMBER, *seen) == [("INV-000002", *each) for each in later]
    assert exported(store, NOVEMBER, *seen) == billed
    assert exported(store, JANUARY) == []


def test_a_month_that_was_passed_over_is_in_the_period_of_the_invoice_that_has_it(store: Store):
    store.record([call(month, month, 1, 1) for month in (OCTOBER, NOVEMBER, DECEMBER, JANUARY)])
    for month in (OCTOBER, DECEMBER):
        issue(store, "acme", month)
    assert exported(store, NOVEMBER) == []
    assert exported(store, DECEMBER, "InvoiceId", "ChargeClass") == [("INV-000002", "", 1)] * 2
    assert exported(store, JANUARY, "InvoiceId") == [("", 1)]


def test_what_comes_in_of_before_the_first_invoice_is_exported_once(store: Store):
    store.record([call("o", OCTOBER, 1, 1), call("n", NOVEMBER, 1, 20)])
    issue(store, "acme", NOVEMBER)
    store.record([call("late", OCTOBER, 1, 7)])
    issue(store, "acme", DECEMBER)
    seen = ("InvoiceId", "ChargeDescription")
    assert exported(store, OCTOBER, *seen) == [
        ("", "llama, tier default", 8),
        ("", "entered late, billed after 2025-11", -7),
    ]
    assert exported(store, DECEMBER, *seen) == [("INV-000002", "entered late, of before 2025-11", 7)]


def test_every_tenant_is_exported_also_one_that_was_only_credited_or_charged_nothing(store: Store):
    store.record([call("a", NOVEMBER, 1, 0, tenant="free"), call("b", NOVEMBER, 1, 5)])
    store.record([call("c", OCTOBER, 1, 5, tenant="zeta")])
    enter(store, Order("credit", "zeta", 3, "k"), at(NOVEMBER, 2))
    rows = [
        (row["BillingAccountId"], row["ChargeCategory"], row["BilledCost"])
        for row in focus.rows(store, NOVEMBER, "us")
    ]
    assert rows == [
        ("acme", "Usage", "0.000000005"),
        ("free", "Usage", "0.000000000"),
        ("zeta", "Credit", "-0.000000003"),
    ]
