"""What a tenant owes for a month, and what a node has earned in it: from the sums of its calls and the ledger's transactions
beside them.

A call belongs to the month in which it began. One that a gateway killed in that month has left in its journal comes in when
the journal is adopted, which may be after the month's invoice has been issued. What has been issued stays as it is
(gateway.issuing): an invoice is for its month, and for all that has come in of earlier months since their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, structs
from sqlalchemy import select

from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.spans import month_ms
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.store import Store
    from gateway.usage_totals import Grouping, Measures

COUNTS = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
"""What a line has beside its amount."""
_BY: tuple[Grouping, ...] = ("month", "project", "model", "tier")


class Line(Struct, frozen=True):
    """Usage of one kind."""

    month: str
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
    number: str | None
    """None: a draft."""
    issued_ms: int | None
    tenant: str
    month: str
    opening_nano_usd: int
    """What it owed by the invoice before, or when the month began; below zero, what it had paid in advance."""
    lines: tuple[Line, ...]
    late: tuple[Line, ...]
    """Usage of earlier months that has come in since they were billed."""
    adjustments: tuple[Movement, ...]
    """Credits, refunds and corrections that are on no invoice before."""
    total_nano_usd: int
    """Of the lines and the adjustments: what is billed."""
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


def draft(store: Store, tenant: str, month: str, issued: Sequence[Invoice] = ()) -> Invoice:
    """What is to be billed by now for a month, behind what has been `issued` for months before. Raises ValueError."""
    start_ms, end_ms = month_ms(month)
    first_ms = month_ms(issued[0].month)[0] if issued else start_ms
    lines, late = _unbilled(store, tenant, month, (first_ms, end_ms), issued)
    before_nano_usd, moved = movements(store, f"tenant:{tenant}", first_ms, end_ms)
    opening = before_nano_usd + _summed(store, {"tenant": tenant}, first_ms, "charge_nano_usd")
    if issued:
        there = {each.id for one in issued for each in (*one.adjustments, *one.payments)}
        moved = [each for each in moved if each.id not in there]
        moved += _before_all(issued, month, opening, start_ms)
        opening = issued[-1].closing_nano_usd
    adjustments = tuple(each for each in moved if each.kind != "payment")
    payments = tuple(each for each in moved if each.kind == "payment")
    total = _amount(lines) + _amount(late) + _amount(adjustments)
    closing = opening + total + _amount(payments)
    return Invoice(
        None, None, tenant, month, opening, tuple(lines), tuple(late), adjustments, total, payments, closing
    )


def _unbilled(
    store: Store, tenant: str, month: str, span_ms: tuple[int, int], issued: Sequence[Invoice]
) -> tuple[list[Line], list[Line]]:
    """Usage of the month, and what there is of earlier ones beyond what has been billed."""
    billed: dict[tuple[str, ...], Line] = {}
    for one in issued:
        for line in (*one.lines, *one.late):
            billed[_kind(line)] = _combined(line, billed.get(_kind(line)), 1)
    lines, late = [], []
    for total in store.usage(Question(*span_ms, _BY, {"tenant": tenant}, "group")):
        line = _line(total.group, total.sums, total.sums.charge_nano_usd)
        if line.month == month:
            lines.append(line)
        else:
            rest = _combined(line, billed.get(_kind(line)), -1)
            if any(structs.astuple(rest)[len(_BY) :]):
                late.append(rest)
    return lines, late


def _before_all(issued: Sequence[Invoice], month: str, opening_nano_usd: int, time_ms: int) -> list[Movement]:
    """What has come in of the time before the first invoice, whose usage no invoice has line by line."""
    carried = [each for one in issued for each in one.adjustments if each.kind == "late"]
    amount = opening_nano_usd - issued[0].opening_nano_usd - _amount(carried)
    note = f"entered late, of before {issued[0].month}"
    return [Movement(f"late:{month}", "late", time_ms, None, note, amount)] if amount else []


def _kind(line: Line) -> tuple[str, ...]:
    return (line.month, line.project, line.model, line.tier)


def _combined(line: Line, other: Line | None, sign: int) -> Line:
    """`line` plus `sign` times the other, which is of the same kind."""
    if other is None:
        return line
    figures = (*COUNTS, "amount_nano_usd")
    sums = {each: getattr(line, each) + sign * getattr(other, each) for each in figures}
    return structs.replace(line, **sums)


def _amount(of: Iterable[Line | Movement]) -> int:
    return sum(each.amount_nano_usd for each in of)


def statement(store: Store, node: str, month: str) -> Statement:
    """Raises ValueError where the month is none."""
    start_ms, end_ms = month_ms(month)
    found = store.usage(Question(start_ms, end_ms, ("model", "tier"), {"endpoint": node}, "group"))
    lines = tuple(_line((month, "", *total.group), total.sums, total.sums.cost_nano_usd) for total in found)
    before_nano_usd, inside = movements(store, f"payout:{node}", start_ms, end_ms)
    paid = tuple(structs.replace(each, amount_nano_usd=-each.amount_nano_usd) for each in inside)
    opening = _summed(store, {"endpoint": node}, start_ms, "cost_nano_usd") - before_nano_usd
    total = _amount(lines)
    closing = opening + total + _amount(paid)
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
    month, project, model, tier = group
    counts = {each: getattr(sums, each) for each in COUNTS}
    return Line(month, project, model, tier, **counts, amount_nano_usd=amount_nano_usd)
