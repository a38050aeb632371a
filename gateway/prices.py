"""Prices over time: what the configuration, or a node, says is written down when it first is in force.

A usage row has the amounts, which never change. This is what explains them later: what a model was charged at, what an
endpoint was paid, what tiers and tenants were multiplied with, each from when on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from sqlalchemy import func, select

from backends.rounds import rounds
from gateway.catalog import TIERS
from gateway.database import StoreAway
from gateway.ledger import ONCE
from gateway.ledger_tables import PRICES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from backends.fleet import Fleet
    from gateway.catalog import Catalog
    from gateway.store import Store
    from routing.types import Price

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Between two looks at whose price has come up or changed."""

Kind = Literal["charge", "cost", "tier", "tenant"]


class Priced(Struct, frozen=True):
    """What has a price."""

    kind: Kind
    name: str
    """The model's, the tier's or the tenant's."""
    endpoint: str = ""
    """Of costs."""


class Rates(Struct, frozen=True):
    """Per token, or a multiplier."""

    input_pico_usd: int | None = None
    output_pico_usd: int | None = None
    cached_input_pico_usd: int | None = None
    reasoning_pico_usd: int | None = None
    millionths: int | None = None

    @classmethod
    def of(cls, price: Price) -> Rates:
        return cls(
            price.input_pico_usd,
            price.output_pico_usd,
            price.cached_input_pico_usd,
            price.reasoning_pico_usd,
        )


class Version(Struct, frozen=True):
    priced: Priced
    valid_from_ms: int
    rates: Rates


def versions(store: Store, priced: Priced | None = None) -> list[Version]:
    """All that there were, the oldest first."""
    query = select(PRICES).order_by(PRICES.c.valid_from_ms, PRICES.c.kind, PRICES.c.name, PRICES.c.endpoint)
    if priced is not None:
        query = query.where(
            PRICES.c.kind == priced.kind, PRICES.c.name == priced.name, PRICES.c.endpoint == priced.endpoint
        )
    with store.reading() as connection:
        return [Version(Priced(*row[:3]), row[3], Rates(*row[4:])) for row in connection.execute(query)]


def latest(store: Store) -> dict[Priced, Rates]:
    """What was in force last."""
    newest = select(
        PRICES.c.kind, PRICES.c.name, PRICES.c.endpoint, func.max(PRICES.c.valid_from_ms).label("from_ms")
    ).group_by(PRICES.c.kind, PRICES.c.name, PRICES.c.endpoint)
    last = newest.subquery()
    query = select(PRICES).join(
        last,
        (PRICES.c.kind == last.c.kind)
        & (PRICES.c.name == last.c.name)
        & (PRICES.c.endpoint == last.c.endpoint)
        & (PRICES.c.valid_from_ms == last.c.from_ms),
    )
    with store.reading() as connection:
        return {Priced(*row[:3]): Rates(*row[4:]) for row in connection.execute(query)}


def in_force(catalog: Catalog, fleet: Fleet) -> dict[Priced, Rates]:
    """What is charged and paid now."""
    found = {Priced("charge", name): Rates.of(model.price) for name, model in catalog.models.items()}
    for member in fleet.members:
        endpoint = member.endpoint
        found[Priced("cost", endpoint.model, endpoint.name)] = Rates.of(endpoint.cost)
    for tier in TIERS:
        found[Priced("tier", tier)] = Rates(millionths=catalog.of_tiers.get(tier, ONCE))
    for tenant, millionths in catalog.of_tenants.items():
        found[Priced("tenant", tenant)] = Rates(millionths=millionths)
    return found


class PriceBook:
    """Keeps the table in step with what is in force."""

    def __init__(self, store: Store, catalog: Catalog, fleet: Fleet) -> None:
        self._store = store
        self._catalog = catalog
        self._fleet = fleet
        self._known: dict[Priced, Rates] | None = None
        self._looked_ms: int | None = None
        self._away = False

    async def look(self) -> None:
        """Write down what has come up since the last look, or changed."""
        now_ms = time.time_ns() // 1_000_000
        found = in_force(self._catalog, self._fleet)
        try:
            if self._known is None:
                self._known = await asyncio.to_thread(latest, self._store)
            for gone in self._known.keys() - found.keys():
                if gone.kind == "tenant":  # it pays what others do
                    found[gone] = Rates(millionths=ONCE)
            fresh = {priced: rates for priced, rates in found.items() if self._known.get(priced) != rates}
            if fresh:
                await asyncio.to_thread(self._write, fresh, now_ms)
        except StoreAway as failure:
            if not self._away:
                log.warning("prices in force cannot be written down now: %s", failure)
            self._away = True
            return
        self._away = False
        self._known |= fresh
        self._looked_ms = now_ms

    def _write(self, fresh: Mapping[Priced, Rates], now_ms: int) -> None:
        # Of a node that is new, the first calls may be older than this look.
        known, since_ms = self._known or {}, self._looked_ms or now_ms
        rows = [
            {
                "kind": priced.kind,
                "name": priced.name,
                "endpoint": priced.endpoint,
                "valid_from_ms": now_ms if priced in known else since_ms,
                **{field: getattr(rates, field) for field in Rates.__struct_fields__},
            }
            for priced, rates in fresh.items()
        ]
        with self._store.writing() as connection:
            connection.execute(
                PRICES.delete().where(PRICES.c.valid_from_ms > now_ms)
            )  # the clock was set back
            connection.execute(self._store.insert(PRICES).on_conflict_do_nothing(), rows)


@asynccontextmanager
async def keeping_prices(store: Store, catalog: Catalog, fleet: Fleet) -> AsyncIterator[PriceBook]:
    """The table is in step when the block begins, and is kept so while it runs."""
    book = PriceBook(store, catalog, fleet)
    await book.look()
    async with rounds(lambda _: book.look(), LOOK_S, "looking at prices"):
        yield book
