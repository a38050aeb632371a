"""Money that moves beside calls: credits, refunds, payments, corrections, payouts. Each is a new transaction of the ledger.

Nothing is ever changed. What was wrong is put right by another transaction, and whoever sends the same one again, with the
same idempotency key, gets the one that is there.

    credit       given to a tenant                    tenant:NAME -   credit +
    refund       of a call's charge, or a part of it  tenant:NAME -   revenue +
    payment      by a tenant, also in advance         tenant:NAME -   cash +
    correction   of what a tenant owes, either way    tenant:NAME ±   revenue ∓
    payout       paid to a node                       payout:NODE +   cash -
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from sqlalchemy import func, select, text

from gateway.audit import SYSTEM, Actor, note
from gateway.bookkeeping import Books
from gateway.ledger_tables import LEDGER_BALANCES, LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.subjects import next_revision
from gateway.tables import TENANTS, USAGE

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection

    from gateway.store import Store

Kind = Literal["credit", "refund", "payment", "correction", "payout"]

_AGAINST: dict[Kind, str] = {
    "credit": "credit",
    "refund": "revenue",
    "payment": "cash",
    "correction": "revenue",
    "payout": "cash",
}
_MOST_NANO_USD = 10**18
"""A billion USD."""


class BillingError(Exception):
    """What the ledger does not allow, in words."""


class BadOrder(BillingError):
    """It makes no sense, whatever is in the ledger."""


class Unknown(BillingError):
    """There is no such tenant, node or call."""


class Conflict(BillingError):
    """The idempotency key has been used for something else."""


class Entered(Struct, frozen=True):
    """A transaction in the ledger."""

    id: str
    kind: Kind
    account: str
    amount_nano_usd: int
    """What the account's entry is: below zero where its owner owes less by it, or has more."""
    call_id: str | None
    time_ms: int
    note: str
    new: bool
    """False: it was there already."""


class Order(Struct, frozen=True):
    """What is to be entered."""

    kind: Kind
    whom: str
    """A tenant, of a payout a node, of a refund the id of the call."""
    amount_nano_usd: int | None
    """More than zero; of a correction either. None: all of what is left of the call's charge to refund."""
    key: str | None = None
    """What makes it once."""
    note: str = ""


def enter(
    store: Store,
    order: Order,
    now_ms: int | None = None,
    actor: Actor = SYSTEM,
    configured: Collection[str] = (),
) -> Entered:
    """Enter it, once, on the word of `actor`. Raises BillingError, StoreAway.

    A tenant that only the configuration knows, one of `configured`, has an account from then on: who pays in advance
    does so before the first call.
    """
    kind, key = order.kind, order.key or secrets.token_hex(12)
    if len(key) > 200 or len(order.note) > 1000:
        raise BadOrder("an idempotency key has at most 200 characters, a note 1000")
    amount_nano_usd = order.amount_nano_usd
    if amount_nano_usd is not None and not 0 < abs(amount_nano_usd) <= _MOST_NANO_USD:
        raise BadOrder("the amount should be above zero, and a billion USD at most")
    if kind != "correction" and amount_nano_usd is not None and amount_nano_usd < 0:
        raise BadOrder("the amount should be above zero")
    with store.writing() as connection:
        books = Books(connection.dialect)
        books.lock(connection)
        made = f"{kind}:{key}"
        call_id = order.whom if kind == "refund" else None
        if there := _there(connection, made):
            return _same(there, order)
        account, amount_nano_usd = _side(connection, order, configured)
        entered = Entered(
            made,
            kind,
            account,
            amount_nano_usd,
            call_id,
            now_ms or time.time_ns() // 1_000_000,
            order.note,
            new=True,
        )
        _write(connection, entered)
        tenant = account.removeprefix("tenant:") if account.startswith("tenant:") else None
        if tenant is not None:
            books.announce(connection, made)
        note(connection, actor, f"ledger.{kind}", account, tenant=tenant, after=entered)
        return entered


def _side(connection: Connection, order: Order, configured: Collection[str]) -> tuple[str, int]:
    """Whose account it is, and what is entered there."""
    amount_nano_usd = order.amount_nano_usd
    if order.kind == "refund":
        tenant, left_nano_usd = _refundable(connection, order.whom)
        amount_nano_usd = left_nano_usd if amount_nano_usd is None else amount_nano_usd
        if not 0 < amount_nano_usd <= left_nano_usd:
            raise BillingError(
                f"of the call {order.whom}'s charge, {left_nano_usd} nano-USD are left to refund"
            )
        return f"tenant:{tenant}", -amount_nano_usd
    if amount_nano_usd is None:
        raise BadOrder("an amount is needed")
    account = f"payout:{order.whom}" if order.kind == "payout" else f"tenant:{order.whom}"
    if order.kind == "payout" or order.whom not in configured:
        expect_known(connection, account)
    return account, amount_nano_usd if order.kind in {"payout", "correction"} else -amount_nano_usd


def expect_known(connection: Connection, account: str) -> None:
    """There is such an account, or such a tenant without one so far. Raises Unknown."""
    kind, _, name = account.partition(":")
    known = [select(LEDGER_BALANCES.c.account).where(LEDGER_BALANCES.c.account == account)]
    if kind == "tenant":
        known.append(select(TENANTS.c.name).where(TENANTS.c.name == name))
    if not any(connection.execute(query).first() for query in known):
        raise Unknown(f"nothing is known of {'node' if kind == 'payout' else kind} {name[:200]!r}")


def _refundable(connection: Connection, call_id: str) -> tuple[str, int]:
    """Whose call it was, and what of its charge has not been refunded."""
    row = connection.execute(
        select(USAGE.c.tenant, USAGE.c.charge_nano_usd).where(USAGE.c.call_id == call_id)
    ).first()
    if row is None:
        raise Unknown(f"there is no call {call_id[:200]}")
    earlier = (
        select(func.coalesce(func.sum(LEDGER_ENTRIES.c.amount_nano_usd), 0))
        .join(LEDGER_TRANSACTIONS, LEDGER_TRANSACTIONS.c.id == LEDGER_ENTRIES.c.transaction_id)
        .where(
            LEDGER_TRANSACTIONS.c.kind == "refund",
            LEDGER_TRANSACTIONS.c.call_id == call_id,
            LEDGER_ENTRIES.c.account == f"tenant:{row.tenant}",
        )
    )
    return row.tenant, row.charge_nano_usd + int(connection.execute(earlier).scalar_one())


def _there(connection: Connection, made: str) -> Entered | None:
    query = (
        select(LEDGER_TRANSACTIONS, LEDGER_ENTRIES.c.account, LEDGER_ENTRIES.c.amount_nano_usd)
        .join(LEDGER_ENTRIES, LEDGER_ENTRIES.c.transaction_id == LEDGER_TRANSACTIONS.c.id)
        .where(LEDGER_TRANSACTIONS.c.id == made, LEDGER_ENTRIES.c.account.like("%:%"))
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    return Entered(
        row.id, row.kind, row.account, row.amount_nano_usd, row.call_id, row.time_ms, row.note, new=False
    )


def _same(there: Entered, order: Order) -> Entered:
    whose = order.whom in {there.call_id, there.account.partition(":")[2]}
    amount = order.amount_nano_usd
    if not whose or (amount is not None and abs(amount) != abs(there.amount_nano_usd)):
        raise Conflict(
            f"the idempotency key has been used, for {there.amount_nano_usd} nano-USD at {there.account}"
        )
    return there


def _write(connection: Connection, entered: Entered) -> None:
    connection.execute(
        LEDGER_TRANSACTIONS.insert(),
        {
            "id": entered.id,
            "kind": entered.kind,
            "call_id": entered.call_id,
            "time_ms": entered.time_ms,
            "note": entered.note,
        },
    )
    sides = {entered.account: entered.amount_nano_usd, _AGAINST[entered.kind]: -entered.amount_nano_usd}
    # In one statement: PostgreSQL looks, after each, whether it sums to zero.
    connection.execute(
        LEDGER_ENTRIES.insert().values(
            [
                {"transaction_id": entered.id, "account": account, "amount_nano_usd": amount}
                for account, amount in sides.items()
            ]
        )
    )
    add = text(
        "INSERT INTO ledger_balances (account, amount_nano_usd) VALUES (:account, :amount)"
        " ON CONFLICT (account) DO UPDATE SET amount_nano_usd = ledger_balances.amount_nano_usd + excluded.amount_nano_usd"
    )
    for account, amount in sides.items():
        connection.execute(add, {"account": account, "amount": amount})
    if entered.account.startswith("tenant:"):
        next_revision(connection)  # gateways look what it has paid in


def balance_nano_usd(store: Store, tenant: str) -> int:
    """What a tenant has left of what it has paid in and been credited; below zero, what it owes."""
    return -balances(store, f"tenant:{tenant}").get(f"tenant:{tenant}", 0)


def paid_in_nano_usd(store: Store, tenants: Collection[str]) -> dict[str, int]:
    """What tenants have paid in and been credited, less what they have been told to owe besides calls. None: nothing."""
    if not tenants:
        return {}
    query = (
        select(LEDGER_ENTRIES.c.account, func.sum(LEDGER_ENTRIES.c.amount_nano_usd))
        .join(LEDGER_TRANSACTIONS, LEDGER_TRANSACTIONS.c.id == LEDGER_ENTRIES.c.transaction_id)
        .where(LEDGER_TRANSACTIONS.c.kind != "call", LEDGER_ENTRIES.c.account.startswith("tenant:"))
        .group_by(LEDGER_ENTRIES.c.account)
    )
    with store.reading() as connection:
        found = {
            account.removeprefix("tenant:"): -int(amount) for account, amount in connection.execute(query)
        }
    return {tenant: found[tenant] for tenant in tenants if tenant in found}


def balances(store: Store, account: str | None = None) -> dict[str, int]:
    """What the accounts stand at, by name."""
    query = select(LEDGER_BALANCES).order_by(LEDGER_BALANCES.c.account)
    if account is not None:
        query = query.where(LEDGER_BALANCES.c.account == account)
    with store.reading() as connection:
        return {row.account: row.amount_nano_usd for row in connection.execute(query)}
