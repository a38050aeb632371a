"""What a tenant owes for a month, and what a node has earned in it: from the sums of its calls and the ledger's transactions
beside them.

A call belongs to the month in which it began. One that a gateway killed in that month has left in its journal comes in when
the journal is adopted, so an invoice is final once every gateway's journal has been moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy import select

from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.output import usd
from gateway.spans import month_ms
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from gateway.store import Store
    from gateway.usage_totals import Grouping, Measures


class Line(Struct, frozen=True):
    """Usage of one kind."""

    project: str
    """Of a statement of a node, nothing."""
    model: str
    tier: str
    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    amount_nano_usd: int


class Movement(Struct, frozen=True):
    """A transaction beside calls."""

    id: str
    kind: str
    time_ms: int
    call_id: str | None
    note: str
    amount_nano_usd: int
    """Below zero: in favour of who gets the invoice."""


class Invoice(Struct, frozen=True):
    tenant: str
    month: str
    opening_nano_usd: int
    """What it owed when the month began; below zero, what it had paid in advance."""
    lines: tuple[Line, ...]
    adjustments: tuple[Movement, ...]
    """Credits, refunds and corrections."""
    total_nano_usd: int
    """Of the lines and the adjustments: what is billed for the month."""
    payments: tuple[Movement, ...]
    closing_nano_usd: int
    """What it owed when the month ended."""


class Statement(Struct, frozen=True):
    """What a node has earned in a month, and been paid."""

    node: str
    month: str
    opening_nano_usd: int
    """What it was owed when the month began."""
    lines: tuple[Line, ...]
    total_nano_usd: int
    payments: tuple[Movement, ...]
    """Below zero: it has been paid so much."""
    closing_nano_usd: int


def invoice(store: Store, tenant: str, month: str) -> Invoice:
    """Raises ValueError where the month is none."""
    start_ms, end_ms = month_ms(month)
    account = f"tenant:{tenant}"
    found = store.usage(Question(start_ms, end_ms, ("project", "model", "tier"), {"tenant": tenant}, "group"))
    lines = tuple(_line(total.group, total.sums, total.sums.charge_nano_usd) for total in found)
    before_nano_usd, inside = movements(store, account, start_ms, end_ms)
    opening = before_nano_usd + _summed(store, {"tenant": tenant}, start_ms, "charge_nano_usd")
    adjustments = tuple(each for each in inside if each.kind != "payment")
    payments = tuple(each for each in inside if each.kind == "payment")
    total = sum(line.amount_nano_usd for line in lines) + sum(each.amount_nano_usd for each in adjustments)
    closing = opening + total + sum(each.amount_nano_usd for each in payments)
    return Invoice(tenant, month, opening, lines, adjustments, total, payments, closing)


def statement(store: Store, node: str, month: str) -> Statement:
    """Raises ValueError where the month is none."""
    start_ms, end_ms = month_ms(month)
    found = store.usage(Question(start_ms, end_ms, ("model", "tier"), {"endpoint": node}, "group"))
    lines = tuple(_line(("", *total.group), total.sums, total.sums.cost_nano_usd) for total in found)
    before_nano_usd, inside = movements(store, f"payout:{node}", start_ms, end_ms)
    paid = tuple(
        Movement(each.id, each.kind, each.time_ms, each.call_id, each.note, -each.amount_nano_usd)
        for each in inside
    )
    opening = _summed(store, {"endpoint": node}, start_ms, "cost_nano_usd") - before_nano_usd
    total = sum(line.amount_nano_usd for line in lines)
    closing = opening + total + sum(each.amount_nano_usd for each in paid)
    return Statement(node, month, opening, lines, total, paid, closing)


def movements(store: Store, account: str, start_ms: int, end_ms: int) -> tuple[int, list[Movement]]:
    """What transactions beside calls have entered at an account before a span, together, and in it, one by one."""
    query = (
        select(LEDGER_TRANSACTIONS, LEDGER_ENTRIES.c.amount_nano_usd)
        .join(LEDGER_ENTRIES, LEDGER_ENTRIES.c.transaction_id == LEDGER_TRANSACTIONS.c.id)
        .where(
            LEDGER_TRANSACTIONS.c.kind != "call",
            LEDGER_TRANSACTIONS.c.time_ms < end_ms,
            LEDGER_ENTRIES.c.account == account,
        )
        .order_by(LEDGER_TRANSACTIONS.c.time_ms, LEDGER_TRANSACTIONS.c.id)
    )
    before_nano_usd, inside = 0, []
    with store.reading() as connection:
        for row in connection.execute(query):
            if row.time_ms < start_ms:
                before_nano_usd += row.amount_nano_usd
            else:
                amount = row.amount_nano_usd
                inside.append(Movement(row.id, row.kind, row.time_ms, row.call_id, row.note, amount))
    return before_nano_usd, inside


def _summed(store: Store, only: dict[Grouping, str | tuple[str, ...]], until_ms: int, measure: str) -> int:
    return sum(int(getattr(total.sums, measure)) for total in store.usage(Question(0, until_ms, (), only)))


def _line(group: tuple[str, ...], sums: Measures, amount_nano_usd: int) -> Line:
    project, model, tier = group
    return Line(
        project,
        model,
        tier,
        sums.calls,
        sums.prompt_tokens,
        sums.cached_tokens,
        sums.completion_tokens,
        sums.reasoning_tokens,
        amount_nano_usd,
    )


def in_words(of: Invoice | Statement) -> list[str]:
    """As lines of text, for a page."""
    whose = f"Invoice for {of.tenant}" if isinstance(of, Invoice) else f"Statement for node {of.node}"
    rule = "-" * 92
    out = [whose, f"Month {of.month} (UTC)", "", _money("Brought forward", of.opening_nano_usd), rule]
    out.append(f"{'project':12}{'model':26}{'tier':9}{'calls':>9}{'tokens':>14}{'USD':>22}")
    for line in of.lines:
        tokens = line.prompt_tokens + line.completion_tokens
        out.append(
            f"{line.project[:11]:12}{line.model[:25]:26}{line.tier:9}{line.calls:>9}{tokens:>14}{usd(line.amount_nano_usd):>22}"
        )
    if isinstance(of, Invoice):
        out += [
            _money(f"{each.kind} {each.note or each.id}", each.amount_nano_usd) for each in of.adjustments
        ]
    out += [rule, _money("Total of the month", of.total_nano_usd)]
    out += [_money(f"{each.kind} {each.note or each.id}", each.amount_nano_usd) for each in of.payments]
    return [*out, rule, _money("Carried forward", of.closing_nano_usd)]


def _money(what: str, nano_usd: int) -> str:
    return f"{what[:69]:70}{usd(nano_usd):>22}"
