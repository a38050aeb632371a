"""Usage events in the database: what each webhook has still to be told, who is telling it, and what it would not take.

One process at a time tells a webhook. It holds a lease in the webhook's row, which it renews with every step, and what it
has done counts only while the lease is its own. The clock is the database's. Everything here blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from sqlalchemy import and_, delete, func, or_, select, text, update

from gateway.bookkeeping import Books
from gateway.event_shapes import Fact, call_about
from gateway.event_tables import EVENT_BATCHES, EVENT_REFUSALS, EVENT_WEBHOOKS, NOW_MS
from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.output import usd
from gateway.tables import SHARES, TENANTS, USAGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement, Connection, Row

    from gateway.store import Store

_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
_OWED = ("refund", "credit", "correction")
"""Kinds of transactions that change what a tenant owes for what it used; a payment settles it."""


class Place(Struct, frozen=True, order=True):
    """How far a webhook has come: in which batch, and how many of its ids are done with."""

    number: int
    done: int


class Item(Struct, frozen=True):
    """One id of a batch."""

    after: Place
    """Where the webhook is when it is done with."""
    kind: str
    id: str
    part: str | None
    """Which of its events is meant, where it is not all of them."""


class Told(Struct, frozen=True):
    """An item with all that there is to tell of it."""

    item: Item
    fact: Fact | None
    """None: nothing was used, and nobody has to be told."""
    metadata: dict[str, str] | None
    """The tenant's; None where it is none that could have any."""


class Window(Struct, frozen=True):
    """What comes next, for whoever has the lease."""

    told: tuple[Told, ...]
    attempts: int
    """Failures since the webhook last took something."""


class Refusal(Struct, frozen=True):
    """An event that a receiver would not take."""

    item: Item
    part: str
    tenant: str
    reason: str


class Failure(Struct, frozen=True):
    reason: str
    retry_in_s: float


class Outcome(Struct, frozen=True):
    """What has become of a window, or of its beginning."""

    place: Place | None
    """How far it is done with; None where it is not even begun."""
    sent: int = 0
    refused: tuple[Refusal, ...] = ()
    failure: Failure | None = None


class Standing(Struct, frozen=True):
    """How it stands with a webhook."""

    webhook: str
    waiting: int
    """Calls and transactions that it has still to be told of, some of which nobody needs to be told of."""
    oldest_ms: int | None
    """Since when the first of them waits."""
    set_aside: int
    """Events that it would not take."""
    sent: int
    last_sent_ms: int | None
    attempts: int
    failing_since_ms: int | None
    failure: str | None
    retry_ms: int
    now_ms: int


class Outbox:
    """All webhooks of one database."""

    def __init__(self, store: Store, holder: str) -> None:
        """`holder` is a name that no other process has."""
        self._store = store
        self._holder = holder

    def register(self, webhooks: Collection[str]) -> list[str]:
        """Those that are new are told of what is recorded from now on. The names of others that there are, which are not
        among these.
        """
        with self._store.writing() as connection:
            Books(connection.dialect).lock(connection)
            last = connection.execute(
                select(EVENT_BATCHES.c.number, EVENT_BATCHES.c.size)
                .order_by(EVENT_BATCHES.c.number.desc())
                .limit(1)
            ).first()
            fresh = {
                "batch_number": 0 if last is None else last.number,
                "done": 0 if last is None else last.size,
                **dict.fromkeys(("held_until_ms", "sent", "attempts", "retry_ms"), 0),
            }
            insert = self._store.insert(EVENT_WEBHOOKS).on_conflict_do_nothing()
            for name in webhooks:
                connection.execute(insert, {"name": name, **fresh})
            known = connection.execute(select(EVENT_WEBHOOKS.c.name).order_by(EVENT_WEBHOOKS.c.name))
            return [name for name in known.scalars() if name not in webhooks]

    def due(self, webhook: str) -> bool:
        """Whether there is something to tell it, and nobody else does, and it need not be left alone for a while."""
        with self._store.reading() as connection:
            row = connection.execute(_webhook(webhook)).first()
            if row is not None:
                now_ms = _now_ms(connection)
                if row.retry_ms > now_ms or (row.holder != self._holder and row.held_until_ms > now_ms):
                    return False
                waiting = select(EVENT_BATCHES.c.number).where(_to_come(row)).limit(1)
                return connection.execute(waiting).first() is not None
        self.register([webhook])  # forgotten by somebody who did not know that it is still configured here
        return False

    def take(self, webhook: str, lease_s: float, most: int) -> Window | None:
        """The lease, and so many of what comes next. None: somebody else has it, or there is nothing."""
        with self._store.writing() as connection:
            if not self._lease(connection, webhook, lease_s):
                return None
            row = connection.execute(_webhook(webhook)).one()
            items = list(_items(connection, row, most))
            return Window(tuple(_told(connection, items)), row.attempts) if items else None

    def renew(self, webhook: str, lease_s: float) -> bool:
        """False: it is somebody else's."""
        with self._store.writing() as connection:
            return self._lease(connection, webhook, lease_s)

    def settle(self, webhook: str, outcome: Outcome, lease_s: float) -> bool:
        """Keep what has become of a window. False: the lease was lost before, and nothing is kept."""
        with self._store.writing() as connection:
            if not self._lease(connection, webhook, lease_s):
                return False
            now_ms = _now_ms(connection)
            changes: dict[str, object] = {}
            if outcome.place is not None:
                changes |= {"batch_number": outcome.place.number, "done": outcome.place.done}
            if outcome.sent:
                changes |= {"sent": EVENT_WEBHOOKS.c.sent + outcome.sent, "last_sent_ms": now_ms}
            moved = bool(outcome.sent or outcome.place)
            if outcome.failure is None:
                changes |= {"attempts": 0, "failing_since_ms": None, "failure": None, "retry_ms": 0}
            else:
                changes |= {
                    "attempts": 1 if moved else EVENT_WEBHOOKS.c.attempts + 1,
                    "failing_since_ms": now_ms
                    if moved
                    else func.coalesce(EVENT_WEBHOOKS.c.failing_since_ms, now_ms),
                    "failure": outcome.failure.reason,
                    "retry_ms": now_ms + int(outcome.failure.retry_in_s * 1000),
                }
            connection.execute(update(EVENT_WEBHOOKS).where(EVENT_WEBHOOKS.c.name == webhook).values(changes))
            self._set_aside(connection, webhook, outcome.refused, now_ms)
            if outcome.place is not None:
                _forget_told(connection)
            return True

    def release(self) -> None:
        """Others need not wait for the leases of this process to end."""
        with self._store.writing() as connection:
            connection.execute(
                update(EVENT_WEBHOOKS)
                .where(EVENT_WEBHOOKS.c.holder == self._holder)
                .values(holder=None, held_until_ms=0)
            )

    def _lease(self, connection: Connection, webhook: str, lease_s: float) -> bool:
        now_ms = _now_ms(connection)
        mine = or_(EVENT_WEBHOOKS.c.holder == self._holder, EVENT_WEBHOOKS.c.held_until_ms <= now_ms)
        taken = connection.execute(
            update(EVENT_WEBHOOKS)
            .where(EVENT_WEBHOOKS.c.name == webhook, mine)
            .values(holder=self._holder, held_until_ms=now_ms + int(lease_s * 1000))
        )
        return taken.rowcount == 1

    def _set_aside(
        self, connection: Connection, webhook: str, refusals: Iterable[Refusal], now_ms: int
    ) -> None:
        for refusal in refusals:
            why = {"refused_ms": now_ms, "reason": refusal.reason, "number": refusal.item.after.number}
            row = {
                "webhook": webhook,
                "kind": refusal.item.kind,
                "id": refusal.item.id,
                "part": refusal.part,
                "tenant": refusal.tenant,
                **why,
            }
            insert = self._store.insert(EVENT_REFUSALS).values(row)
            key = [column.name for column in EVENT_REFUSALS.primary_key]
            connection.execute(insert.on_conflict_do_update(index_elements=key, set_=why))


def standings(store: Store, webhook: str | None = None) -> list[Standing]:
    """By name."""
    query = select(EVENT_WEBHOOKS).order_by(EVENT_WEBHOOKS.c.name)
    if webhook is not None:
        query = query.where(EVENT_WEBHOOKS.c.name == webhook)
    found = []
    with store.reading() as connection:
        now_ms = _now_ms(connection)
        for row in connection.execute(query).all():
            waiting, oldest_ms, in_first = connection.execute(
                select(
                    func.coalesce(func.sum(EVENT_BATCHES.c.size), 0),
                    func.min(EVENT_BATCHES.c.created_ms),
                    func.count().filter(EVENT_BATCHES.c.number == row.batch_number),
                ).where(_to_come(row))
            ).one()
            aside = select(func.count()).where(EVENT_REFUSALS.c.webhook == row.name)
            found.append(
                Standing(
                    row.name,
                    int(waiting) - in_first * row.done,
                    oldest_ms,
                    connection.execute(aside).scalar_one(),
                    row.sent,
                    row.last_sent_ms,
                    row.attempts,
                    row.failing_since_ms,
                    row.failure,
                    row.retry_ms,
                    now_ms,
                )
            )
    return found


def _webhook(name: str) -> Any:
    return select(EVENT_WEBHOOKS).where(EVENT_WEBHOOKS.c.name == name)


def _now_ms(connection: Connection) -> int:
    now_ms: int = connection.execute(text(f"SELECT {NOW_MS[connection.dialect.name]}")).scalar_one()
    return now_ms


def _to_come(row: Row[Any]) -> ColumnElement[bool]:
    """The batches that a webhook has not been told of, or not to their end."""
    batches = EVENT_BATCHES.c
    begun = and_(batches.number == row.batch_number, batches.size > row.done)
    return and_(
        or_(batches.webhook.is_(None), batches.webhook == row.name),
        batches.number >= row.batch_number,
        or_(batches.number > row.batch_number, begun),
    )


def _items(connection: Connection, row: Row[Any], most: int) -> Iterator[Item]:
    batches = EVENT_BATCHES.c
    sizes = select(batches.number, batches.size).where(_to_come(row)).order_by(batches.number).limit(most)
    needed, left = [], most
    for number, size in connection.execute(sizes).all():  # most have one id, and some a thousand
        if left > 0:
            needed.append(number)
            left -= size - (row.done if number == row.batch_number else 0)
    wanted = select(EVENT_BATCHES).where(batches.number.in_(needed)).order_by(batches.number)
    left = most
    for batch in connection.execute(wanted):
        done = row.done if batch.number == row.batch_number else 0
        ids = msgspec.json.decode(batch.ids, type=list[str | tuple[str, str]])[done : done + left]
        left -= len(ids)
        for index, one in enumerate(ids, done + 1):
            name, part = (one, None) if isinstance(one, str) else one
            yield Item(Place(batch.number, index), batch.kind, name, part)


def _told(connection: Connection, items: Sequence[Item]) -> Iterator[Told]:
    facts = _calls(connection, [item.id for item in items if item.kind == "calls"])
    facts |= _movements(connection, [item.id for item in items if item.kind == "ledger"])
    tenants = {fact.tenant for fact in facts.values()}
    rows = connection.execute(
        select(TENANTS.c.name, TENANTS.c.metadata).where(TENANTS.c.name.in_(sorted(tenants)))
    )
    metadata = {name: msgspec.json.decode(text or b"{}", type=dict[str, str]) for name, text in rows}
    for item in items:
        fact = facts.get((item.kind, item.id))
        yield Told(item, fact, None if fact is None else metadata.get(fact.tenant))


def _calls(connection: Connection, call_ids: Sequence[str]) -> dict[tuple[str, str], Fact]:
    """Those that used something, or cost something."""
    if not call_ids:
        return {}
    shared: dict[str, dict[str, int]] = {}
    for share in connection.execute(select(SHARES).where(SHARES.c.call_id.in_(call_ids))):
        # As in the sums by hour: what reached the client is the tenant's, and the rest is nobody's business but ours.
        tokens = shared.setdefault(share.call_id, dict.fromkeys(_TOKENS, 0))
        if share.purpose == "answer":
            for name in _TOKENS:
                tokens[name] += getattr(share, name)
    facts = {}
    for row in connection.execute(select(USAGE).where(USAGE.c.call_id.in_(call_ids))).mappings():
        tokens = shared.get(row["call_id"]) or {name: row[name] for name in _TOKENS}
        charge_nano_usd = row["charge_nano_usd"]
        if not any(tokens.values()) and not charge_nano_usd:
            continue
        quantities = {
            "calls": 1,
            **tokens,
            "uncached_tokens": tokens["prompt_tokens"] - tokens["cached_tokens"],
            "charge_nano_usd": charge_nano_usd,
        }
        facts["calls", row["call_id"]] = Fact(
            row["call_id"], "call", row["tenant"], row["time_ms"], call_about(dict(row), tokens), quantities
        )
    return facts


def _movements(connection: Connection, ids: Sequence[str]) -> dict[tuple[str, str], Fact]:
    if not ids:
        return {}
    query = (
        select(LEDGER_TRANSACTIONS, LEDGER_ENTRIES.c.account, LEDGER_ENTRIES.c.amount_nano_usd)
        .join(LEDGER_ENTRIES, LEDGER_ENTRIES.c.transaction_id == LEDGER_TRANSACTIONS.c.id)
        .where(LEDGER_TRANSACTIONS.c.id.in_(ids), LEDGER_ENTRIES.c.account.startswith("tenant:"))
    )
    facts = {}
    for row in connection.execute(query):
        amount = row.amount_nano_usd
        about = {
            "call_id": row.call_id,
            "note": row.note,
            "amount_nano_usd": amount,
            "amount_usd": usd(amount),
        }
        quantities = {"charge_nano_usd": amount} if row.kind in _OWED else {}
        tenant = row.account.removeprefix("tenant:")
        facts["ledger", row.id] = Fact(row.id, row.kind, tenant, row.time_ms, about, quantities)
    return facts


def _forget_told(connection: Connection) -> None:
    """Delete the batches that all webhooks are past."""
    slowest = select(func.min(EVENT_WEBHOOKS.c.batch_number)).scalar_subquery()
    connection.execute(delete(EVENT_BATCHES).where(EVENT_BATCHES.c.number < slowest))
