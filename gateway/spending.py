"""What has been spent of budgets, by the database: that is what limits go by, and are checked against.

Windows begin and end with an hour, and the sums by the hour are written in the transaction of the usage rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, and_, func, select

from gateway.ledger_tables import USAGE_HOURS
from gateway.tables import KEYS
from gateway.windows import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.store import Store


class Spending:
    """Sums of charges. Blocks; raises StoreAway."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def nano_usd(self, accounts: Iterable[str]) -> dict[str, int]:
        """By account."""
        with self._store.reading() as connection:
            return {
                account: int(connection.execute(select(_charged(Window.named(account)))).scalar_one())
                for account in accounts
            }


def _charged(window: Window) -> ColumnElement[int]:
    hours = USAGE_HOURS.c
    kind, _, name = window.subject.partition(":")
    match kind:
        case "tenant":
            whose = hours.tenant == name
        case "project":
            tenant, _, project = name.partition("/")
            whose = and_(hours.tenant == tenant, hours.project == project)
        case _:
            # There is an index by tenant; the master key is of the tenant of its own name.
            tenant_of_key = select(KEYS.c.tenant).where(KEYS.c.id == name).scalar_subquery()
            whose = and_(hours.tenant == func.coalesce(tenant_of_key, name), hours.key_id == name)
    return (
        select(func.coalesce(func.sum(hours.charge_nano_usd), 0))
        .where(
            whose,
            hours.hour_ms >= int(window.since_s * 1000),
            hours.hour_ms < int(window.until_s * 1000),
        )
        .scalar_subquery()
    )
