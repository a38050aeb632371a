"""The tables of money: the ledger in double entry, what its accounts stand at, and usage summed up by hours.

All of them are written in the transaction that keeps the usage rows they follow from (gateway.bookkeeping), so that none
can be ahead of another or behind it. The ledger's own two tables, and invoices, are append-only: triggers refuse anything
else, and in PostgreSQL one refuses a transaction that does not sum to zero.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Table, Text, UniqueConstraint, text

from gateway.tables import METADATA

LEDGER_TRANSACTIONS = Table(
    "ledger_transactions",
    METADATA,
    Column("id", Text, primary_key=True),  # the call's id, or KIND:IDEMPOTENCY_KEY
    Column("kind", Text, nullable=False),  # see gateway.billing
    Column("call_id", Text),  # which call it is about
    Column("time_ms", BigInteger, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
    # Calls are summed up in usage_hours; what else there was in a month is looked up here.
    Index(
        "ledger_transactions_beside_calls",
        "time_ms",
        sqlite_where=text("kind <> 'call'"),
        postgresql_where=text("kind <> 'call'"),
    ),
    sqlite_with_rowid=False,
)

LEDGER_ENTRIES = Table(
    "ledger_entries",
    METADATA,
    Column("transaction_id", Text, primary_key=True),
    Column("account", Text, primary_key=True),
    Column("amount_nano_usd", BigInteger, nullable=False),  # those of a transaction sum to zero
    sqlite_with_rowid=False,
)

LEDGER_BALANCES = Table(
    "ledger_balances",  # the sum of each account's entries
    METADATA,
    Column("account", Text, primary_key=True),
    Column("amount_nano_usd", BigInteger, nullable=False),
    # SQLite would make a float of what does not fit.
    CheckConstraint(
        "amount_nano_usd BETWEEN -9000000000000000000 AND 9000000000000000000", name="ledger_balances_fit"
    ),
)

DIMENSIONS = ("tenant", "project", "key_id", "model", "endpoint", "tier")
"""What usage is summed up by, beside its hour."""
MEASURES = (
    "calls",
    "errors",
    "estimated_calls",
    "helped_calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "wasted_tokens",
    "charge_nano_usd",
    "cost_nano_usd",
    "waste_nano_usd",
)
"""What is summed up. A call counts at the endpoint that its row names, and as helped at others that have worked for it."""


def _sums(name: str, unit: str, *dimensions: str) -> Table:
    return Table(
        name,
        METADATA,
        Column(unit, BigInteger, primary_key=True, autoincrement=False),  # its start
        *(Column(each, Text, primary_key=True) for each in dimensions),
        *(Column(each, BigInteger, nullable=False) for each in MEASURES),
        Index(f"{name}_tenant", "tenant", unit),
        sqlite_with_rowid=False,
    )


USAGE_HOURS = _sums("usage_hours", "hour_ms", *DIMENSIONS)
USAGE_DAYS = _sums("usage_days", "day_ms", *DIMENSIONS)
CUSTOMER_HOURS = _sums("usage_customer_hours", "hour_ms", *DIMENSIONS, "customer")
CUSTOMER_DAYS = _sums("usage_customer_days", "day_ms", *DIMENSIONS, "customer")
"""The same for each of the tenants' own customers, who may be very many: in tables of their own, which others need not read."""

PRICES = Table(
    "prices",  # each from when it was first in force, until the next one for the same; see gateway.prices
    METADATA,
    Column("kind", Text, primary_key=True),  # charge, cost, tier or tenant
    Column("name", Text, primary_key=True),  # of the model, the tier or the tenant
    Column("endpoint", Text, primary_key=True),  # of costs
    Column("valid_from_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("input_pico_usd", BigInteger),
    Column("output_pico_usd", BigInteger),
    Column("cached_input_pico_usd", BigInteger),
    Column("reasoning_pico_usd", BigInteger),
    Column("millionths", BigInteger),  # of tiers and tenants
)

INVOICES = Table(
    "invoices",  # those that have been issued; see gateway.issuing
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),  # from 1 on, without a gap
    Column("tenant", Text, nullable=False),
    Column("month", Text, nullable=False),
    Column("issued_ms", BigInteger, nullable=False),
    Column("document", Text, nullable=False),  # JSON, as it was issued
    UniqueConstraint("tenant", "month", name="invoices_tenant_month_key"),
)
