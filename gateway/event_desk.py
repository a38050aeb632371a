"""What administrators do about usage events: see what was refused, have it or a span of time sent again, forget a webhook.

To send something again is to put it into a batch of its own behind all that waits: it goes the way of all events, under
its old ids. Everything here blocks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from sqlalchemy import and_, delete, func, select

from gateway.audit import SYSTEM, Actor, note
from gateway.bookkeeping import Books
from gateway.event_tables import EVENT_BATCHES, EVENT_REFUSALS, EVENT_WEBHOOKS
from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.subjects import NotFound
from gateway.tables import USAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection

    from gateway.store import Store

Id = str | tuple[str, str]
_IDS_IN_A_BATCH = 1000


class Aside(Struct, frozen=True):
    """An event that a receiver would not take."""

    kind: str
    """calls or ledger."""
    id: str
    """Of the call or the transaction."""
    part: str
    """The meter, where each has events of its own."""
    tenant: str
    refused_ms: int
    reason: str


class Again(Struct, frozen=True):
    """What is to be sent again, for the audit log."""

    tenant: str | None
    start_ms: int | None
    end_ms: int | None
    count: int


class Forgotten(Struct, frozen=True):
    """What a webhook that was forgotten had left, for the audit log."""

    sent: int
    set_aside: int


def refused(store: Store, webhook: str, tenant: str | None = None, most: int = 100) -> list[Aside]:
    """The oldest first. Raises NotFound, StoreAway."""
    columns = [EVENT_REFUSALS.c[name] for name in Aside.__struct_fields__]
    query = select(*columns).where(_of(webhook, tenant)).order_by(*_ORDER).limit(most)
    with store.reading() as connection:
        _expect(connection, webhook)
        return [Aside(*row) for row in connection.execute(query)]


def send_refused(store: Store, webhook: str, tenant: str | None = None, actor: Actor = SYSTEM) -> int:
    """Have all that was set aside sent again, or that of a tenant; how many events. Raises NotFound, StoreAway."""
    with store.writing() as connection:
        Books(connection.dialect).lock(connection)
        _expect(connection, webhook)
        rows = connection.execute(select(EVENT_REFUSALS).where(_of(webhook, tenant)).order_by(*_ORDER)).all()
        for kind in ("calls", "ledger"):
            _write(connection, webhook, kind, [(row.id, row.part) for row in rows if row.kind == kind])
        connection.execute(delete(EVENT_REFUSALS).where(_of(webhook, tenant)))
        _note(connection, actor, webhook, Again(tenant, None, None, len(rows)))
        return len(rows)


def send_span(
    store: Store, webhook: str, start_ms: int, end_ms: int, tenant: str | None = None, actor: Actor = SYSTEM
) -> int:
    """Have all that was recorded of a span of time sent, whether it was sent before or not; of how many calls and
    transactions. Raises NotFound, StoreAway.
    """
    calls = select(USAGE.c.call_id).where(USAGE.c.time_ms >= start_ms, USAGE.c.time_ms < end_ms)
    beside = (
        select(LEDGER_TRANSACTIONS.c.id)
        .join(LEDGER_ENTRIES, LEDGER_ENTRIES.c.transaction_id == LEDGER_TRANSACTIONS.c.id)
        .where(
            LEDGER_TRANSACTIONS.c.kind != "call",
            LEDGER_TRANSACTIONS.c.time_ms >= start_ms,
            LEDGER_TRANSACTIONS.c.time_ms < end_ms,
            LEDGER_ENTRIES.c.account.startswith("tenant:")
            if tenant is None
            else LEDGER_ENTRIES.c.account == f"tenant:{tenant}",
        )
        .order_by(LEDGER_TRANSACTIONS.c.time_ms, LEDGER_TRANSACTIONS.c.id)
    )
    if tenant is not None:
        calls = calls.where(USAGE.c.tenant == tenant)
    calls = calls.order_by(USAGE.c.time_ms, USAGE.c.call_id)
    with store.writing() as connection:
        Books(connection.dialect).lock(connection)
        _expect(connection, webhook)
        count = 0
        for kind, query in (("calls", calls), ("ledger", beside)):
            found = connection.execute(query.execution_options(yield_per=_IDS_IN_A_BATCH)).scalars()
            for ids in found.partitions(_IDS_IN_A_BATCH):
                _write(connection, webhook, kind, ids)
                count += len(ids)
        _note(connection, actor, webhook, Again(tenant, start_ms, end_ms, count))
        return count


def forget(store: Store, webhook: str, actor: Actor = SYSTEM) -> Forgotten:
    """Nothing more is kept for it. Raises NotFound, StoreAway."""
    with store.writing() as connection:
        Books(connection.dialect).lock(connection)
        _expect(connection, webhook)
        row = connection.execute(select(EVENT_WEBHOOKS).where(EVENT_WEBHOOKS.c.name == webhook)).one()
        connection.execute(delete(EVENT_WEBHOOKS).where(EVENT_WEBHOOKS.c.name == webhook))
        aside = connection.execute(delete(EVENT_REFUSALS).where(EVENT_REFUSALS.c.webhook == webhook))
        connection.execute(delete(EVENT_BATCHES).where(EVENT_BATCHES.c.webhook == webhook))
        slowest = connection.execute(select(func.min(EVENT_WEBHOOKS.c.batch_number))).scalar()
        told = delete(EVENT_BATCHES)
        connection.execute(told if slowest is None else told.where(EVENT_BATCHES.c.number < slowest))
        forgotten = Forgotten(row.sent, aside.rowcount)
        note(connection, actor, "events.forget", f"webhook:{webhook}", before=forgotten)
        return forgotten


_ORDER = (EVENT_REFUSALS.c.number, EVENT_REFUSALS.c.refused_ms, EVENT_REFUSALS.c.id, EVENT_REFUSALS.c.part)


def _of(webhook: str, tenant: str | None) -> ColumnElement[bool]:
    whose = EVENT_REFUSALS.c.webhook == webhook
    return whose if tenant is None else and_(whose, EVENT_REFUSALS.c.tenant == tenant)


def _expect(connection: Connection, webhook: str) -> None:
    names = connection.execute(select(EVENT_WEBHOOKS.c.name).order_by(EVENT_WEBHOOKS.c.name)).scalars().all()
    if webhook not in names:
        known = (
            f"known are {', '.join(names)}"
            if names
            else "a gateway that is configured with it makes it known"
        )
        raise NotFound(f"there is no webhook {webhook[:64]}; {known}")


def _write(connection: Connection, webhook: str, kind: str, ids: Sequence[Id]) -> None:
    for start in range(0, len(ids), _IDS_IN_A_BATCH):
        some = ids[start : start + _IDS_IN_A_BATCH]
        row = {
            "created_ms": time.time_ns() // 1_000_000,
            "webhook": webhook,
            "kind": kind,
            "size": len(some),
            "ids": msgspec.json.encode(some).decode(),
        }
        connection.execute(EVENT_BATCHES.insert(), row)


def _note(connection: Connection, actor: Actor, webhook: str, again: Again) -> None:
    if again.count:
        note(connection, actor, "events.resend", f"webhook:{webhook}", tenant=again.tenant, after=again)
