"""The routes below /admin/billing: credits, refunds, payments, corrections and payouts are entered; balances are read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import structs
from pydantic import BaseModel, ConfigDict, Field

from gateway.billing import Entered, Order, balances, enter
from gateway.config_section import nano_usd_text
from gateway.errors import ApiError

if TYPE_CHECKING:
    from gateway.desk import Desk

Kind = Annotated[Literal["credit", "refund", "payment", "correction", "payout"], Path()]


class OrderBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    whom: str = Field(description="A tenant; of a payout a node, of a refund the id of the call.")
    amount_usd: str | None = Field(
        None,
        description="As text, at most nine decimals. Of a refund it may be left out: all that is left of the charge.",
    )
    idempotency_key: str = Field(min_length=1, description="With the same one it is entered once.")
    note: str = ""


class EnteredShown(BaseModel):
    id: str
    kind: str
    account: str
    amount_nano_usd: int = Field(
        description="The account's entry: below zero where its owner owes less by it."
    )
    call_id: str | None
    time_ms: int
    note: str
    new: bool = Field(description="False: it was there already.")

    @classmethod
    def of(cls, entered: Entered) -> EnteredShown:
        return cls(**structs.asdict(entered))


class Balances(BaseModel):
    amounts_nano_usd: dict[str, int] = Field(description="By account. Positive: owed to us, or spent.")


def billing_routes(desk: Desk) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter(prefix="/billing")

    @routes.get("/balances")
    async def read_balances(
        account: Annotated[str | None, Query(description="As in `tenant:acme`; else all.")] = None,
    ) -> Balances:
        return Balances(amounts_nano_usd=await asyncio.to_thread(balances, desk.store, account))

    @routes.post("/{kind}", status_code=201)
    async def order(kind: Kind, body: OrderBody, request: Request, response: Response) -> EnteredShown:
        """Enter it in the ledger, once: 201 where it is new, 200 where it was there already."""
        try:
            amount_nano_usd = None if body.amount_usd is None else nano_usd_text(body.amount_usd)
        except ValueError as error:
            raise ApiError("invalid_value", str(error), param="amount_usd") from None
        wanted = Order(kind, body.whom, amount_nano_usd, body.idempotency_key, body.note)
        actor, configured = desk.actor_of(request), desk.configured()
        entered = await desk.change(lambda: enter(desk.store, wanted, None, actor, configured))
        if not entered.new:
            response.status_code = 200
        return EnteredShown.of(entered)

    return routes
