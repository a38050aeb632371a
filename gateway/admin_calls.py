"""GET /admin/calls: calls that have ended, the latest first, as the ledger has them; what was said in them is nowhere."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import select, tuple_

from gateway.errors import ApiError
from gateway.output import iso
from gateway.tables import SHARES, USAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Row

    from gateway.store import Store

Only = Annotated[str | None, Query(description="Only of this.")]
Most = Annotated[int, Query(ge=1, le=1000, description="Most of them at once.")]


class ShareShown(BaseModel):
    endpoint: str
    purpose: str = Field(description="`answer`, or why the work reached no client.")
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano_usd: int
    waste_nano_usd: int


class CallShown(BaseModel):
    id: str
    time: str
    time_ms: int
    request_id: str
    tenant: str
    project: str
    key: str
    customer: str
    model: str
    endpoint: str = Field(description="The one that served it, the first where it was several, or empty.")
    tier: str
    api: str
    stream: bool
    status: int
    outcome: str = Field(description="`ok`, `client_left`, or the code of the error.")
    attempts: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    ttft_ms: float | None
    duration_ms: float
    charge_nano_usd: int
    cost_nano_usd: int
    waste_nano_usd: int
    shares: list[ShareShown] = Field(description="Where it was not one endpoint alone.")

    @classmethod
    def of(cls, row: Row[tuple[object, ...]], shares: Sequence[ShareShown]) -> Self:
        known = row._asdict()
        return cls(
            id=known.pop("call_id"),
            key=known.pop("key_id"),
            time=iso(row.time_ms),
            shares=list(shares),
            **{name: value for name, value in known.items() if name in cls.model_fields},
        )


class CallsShown(BaseModel):
    data: list[CallShown]
    before: str | None = Field(description="Ask for what follows with this; null: this is the end.")


def call_routes(store: Store) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter(prefix="/calls")

    @routes.get("")
    async def list_calls(  # noqa: PLR0913, PLR0917 - what can be asked are the parameters
        tenant: Only = None,
        key: Only = None,
        model: Only = None,
        endpoint: Only = None,
        outcome: Only = None,
        failed: Annotated[bool, Query(description="Only those that ended in an error.")] = False,  # noqa: FBT002
        before: Annotated[str | None, Query(description="Only older ones.")] = None,
        most: Most = 100,
    ) -> CallsShown:
        """Calls that have ended, the latest first. A call is here a second or two after its end."""
        only = {"tenant": tenant, "key_id": key, "model": model, "endpoint": endpoint, "outcome": outcome}
        given = {name: value for name, value in only.items() if value is not None}
        found = await asyncio.to_thread(_read, store, given, failed=failed, before=before, most=most + 1)
        last = found[most - 1] if len(found) > most else None
        return CallsShown(data=found[:most], before=last and f"{last.time_ms}-{last.id}")

    return routes


def _read(
    store: Store, only: Mapping[str, str], *, failed: bool, before: str | None, most: int
) -> list[CallShown]:
    order = (USAGE.c.time_ms.desc(), USAGE.c.call_id.desc())
    query = select(USAGE).where(*(USAGE.c[name] == value for name, value in only.items()))
    if failed:
        query = query.where(USAGE.c.outcome.not_in(("ok", "client_left")))
    if before is not None:
        time_ms, _, call_id = before.partition("-")
        if not time_ms.isdecimal() or len(time_ms) > 15 or not call_id:
            raise ApiError("invalid_value", "This is no place to go on from.", param="before")
        query = query.where(tuple_(USAGE.c.time_ms, USAGE.c.call_id) < (int(time_ms), call_id))
    with store.reading() as connection:
        rows = connection.execute(query.order_by(*order).limit(most)).all()
        ids = [row.call_id for row in rows]
        shares: dict[str, list[ShareShown]] = {}
        of_these = select(SHARES).where(SHARES.c.call_id.in_(ids)).order_by(SHARES.c.call_id, SHARES.c.number)
        for row in connection.execute(of_these):
            fields = {name: getattr(row, name) for name in ShareShown.model_fields}
            shares.setdefault(row.call_id, []).append(ShareShown(**fields))
    return [CallShown.of(row, shares.get(row.call_id, ())) for row in rows]
