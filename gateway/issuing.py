"""Invoices that have been issued: numbered without a gap, and never changed again.

As an accountant has it. A month can be billed once it is over. What comes in after its invoice (a correction, a refund, a
call that a killed gateway had left in its journal) is on the tenant's next one, as lines of their own; so an invoice
begins with what the one before ended with, and all of them add up to the ledger. An invoice of a month before the last one
issued cannot be issued any more: what it would have had is on that one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs
from sqlalchemy import func, select

from gateway.audit import SYSTEM, Actor, note
from gateway.billing import BillingError, expect_known
from gateway.bookkeeping import Books
from gateway.invoice import Invoice, Movement, draft
from gateway.ledger_tables import INVOICES
from gateway.spans import month_ms

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.store import Store


class Issued(Struct, frozen=True):
    """What the audit log and lists have of an invoice."""

    number: str
    tenant: str
    month: str
    issued_ms: int
    total_nano_usd: int
    closing_nano_usd: int

    @classmethod
    def of(cls, invoice: Invoice) -> Issued:
        return msgspec.convert(invoice, cls, from_attributes=True)


def invoice(store: Store, tenant: str, month: str) -> Invoice:
    """The invoice of the month as it was issued, or a draft of it. Raises ValueError, BillingError."""
    month_ms(month)
    with store.reading() as connection:
        return _known(connection, tenant, month) or _draft(store, connection, tenant, month)


def issue(
    store: Store, tenant: str, month: str, actor: Actor = SYSTEM, now_ms: int | None = None
) -> tuple[Invoice, bool]:
    """Issue it, once, on the word of `actor`; whether it is new. Raises ValueError, BillingError, StoreAway."""
    now_ms = now_ms or time.time_ns() // 1_000_000
    if now_ms < month_ms(month)[1]:
        raise BillingError(f"{month} is not over")
    with store.writing() as connection:
        Books(connection.dialect).lock(connection)  # from here on nobody else enters anything
        if there := _known(connection, tenant, month):
            return there, False
        expect_known(connection, f"tenant:{tenant}")
        made = _draft(store, connection, tenant, month)
        if any(each.month > month for each in _all(connection, tenant)):
            raise BillingError(f"invoices of {tenant} have been issued for months after {month}")
        if not (made.lines or made.late or made.adjustments):
            raise BillingError(f"there is nothing to bill {tenant} for in {month}")
        last = connection.execute(select(func.coalesce(func.max(INVOICES.c.number), 0))).scalar_one()
        made = structs.replace(made, number=f"INV-{last + 1:06d}", issued_ms=now_ms)
        row = {
            "number": last + 1,
            "tenant": tenant,
            "month": month,
            "issued_ms": now_ms,
            "document": msgspec.json.encode(made).decode(),
        }
        connection.execute(INVOICES.insert(), row)
        note(
            connection, actor, "invoice.issue", f"invoice:{made.number}", tenant=tenant, after=Issued.of(made)
        )
        return made, True


def period(store: Store, tenant: str, month: str) -> tuple[Invoice | None, str]:
    """The charges whose billing period is this month, and the last month that was billed before it, or "".

    Each charge has one such month: that of the invoice it is on; and while it is on none, its own month, or the one behind
    the last invoice where it is of earlier ones. A month that was passed over has none: its charges are on a later invoice.
    Raises ValueError.
    """
    start_ms, end_ms = month_ms(month)
    with store.reading() as connection:
        every = _all(connection, tenant)
    before = [each for each in every if each.month < month]
    if there := [each for each in every if each.month == month]:
        return there[0], before[-1].month if before else ""
    if not before:
        own = draft(store, tenant, month)
        follows = bool(every) and month_ms(every[0].month)[0] == end_ms
        return _less_late(own, every[0], draft(store, tenant, every[0].month)) if follows else own, ""
    if every[-1].month > month:
        return None, before[-1].month
    first_open = month_ms(before[-1].month)[1] == start_ms
    return draft(store, tenant, month, before if first_open else ()), before[-1].month


def _less_late(own: Invoice, first: Invoice, now: Invoice) -> Invoice:
    """What has come in late of the time before the first invoice is on later ones, without its month: it is taken off here."""
    late_nano_usd = now.opening_nano_usd - first.opening_nano_usd
    if not late_nano_usd:
        return own
    note = f"entered late, billed after {first.month}"
    taken = Movement(f"late:{first.month}", "late", month_ms(own.month)[1] - 1, None, note, -late_nano_usd)
    total = own.total_nano_usd - late_nano_usd
    return structs.replace(own, adjustments=(*own.adjustments, taken), total_nano_usd=total)


def issued(store: Store, tenant: str | None = None, after: str = "", most: int = 1000) -> list[Issued]:
    """In the order of their numbers, from behind the number `after` on."""
    query = select(INVOICES.c.document).order_by(INVOICES.c.number).limit(most)
    if tenant is not None:
        query = query.where(INVOICES.c.tenant == tenant)
    if after:
        query = query.where(INVOICES.c.number > _number(after))
    with store.reading() as connection:
        return [Issued.of(_read(text)) for text in connection.execute(query).scalars()]


def _number(shown: str) -> int:
    digits = shown.removeprefix("INV-")
    if not digits.isdecimal() or len(digits) > 18:
        raise ValueError(f"{shown[:50]!r} is no invoice's number")
    return int(digits)


def _draft(store: Store, connection: Connection, tenant: str, month: str) -> Invoice:
    """Behind those that have been issued before it."""
    others = _all(connection, tenant)
    before = [each for each in others if each.month < month]
    behind = [each for each in others if each.month > month]
    if before and behind:
        raise BillingError(
            f"{month} has been billed with {behind[0].number}, the invoice of {behind[0].month}"
        )
    return draft(store, tenant, month, before)


def _known(connection: Connection, tenant: str, month: str) -> Invoice | None:
    query = select(INVOICES.c.document).where(INVOICES.c.tenant == tenant, INVOICES.c.month == month)
    text = connection.execute(query).scalar()
    return None if text is None else _read(text)


def _all(connection: Connection, tenant: str) -> list[Invoice]:
    query = select(INVOICES.c.document).where(INVOICES.c.tenant == tenant).order_by(INVOICES.c.month)
    return [_read(text) for text in connection.execute(query).scalars()]


def _read(document: str) -> Invoice:
    return msgspec.json.decode(document, type=Invoice)
