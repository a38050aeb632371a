"""All routes below /admin that are about the database: those that the command line asks in its own process as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter
from pydantic import BaseModel, Field

from gateway.admin_billing import billing_routes
from gateway.admin_bills import bill_routes
from gateway.admin_events import event_routes
from gateway.admin_subjects import subject_routes
from gateway.admin_usage import usage_routes

if TYPE_CHECKING:
    from gateway.desk import Desk


class DriftShown(BaseModel):
    account: str
    kept_nano_usd: int = Field(
        description="In the store of limits. It may be behind by what has just been committed."
    )
    ledger_nano_usd: int
    ahead_nano_usd: int = Field(description="It should be 0.")
    repaired: bool


class DriftsShown(BaseModel):
    data: list[DriftShown]


def desk_routes(desk: Desk) -> APIRouter:
    """To be mounted where only administrators are let in, and those with role `read` only to look."""
    routes = APIRouter()
    routes.include_router(subject_routes(desk))
    routes.include_router(usage_routes(desk.store))
    routes.include_router(billing_routes(desk))
    routes.include_router(bill_routes(desk))
    routes.include_router(event_routes(desk))

    async def shown(*, repair: bool) -> DriftsShown:
        return DriftsShown(
            data=[
                DriftShown(
                    account=each.account,
                    kept_nano_usd=each.kept_nano_usd,
                    ledger_nano_usd=each.ledger_nano_usd,
                    ahead_nano_usd=each.ahead_nano_usd,
                    repaired=each.repaired,
                )
                for each in await desk.drift(repair)
            ]
        )

    @routes.get("/limits")
    async def compare_limits() -> DriftsShown:
        """What the store of limits takes to be spent of each budget, beside the ledger."""
        return await shown(repair=False)

    @routes.post("/limits/repair")
    async def repair_limits() -> DriftsShown:
        """The same, and the ledger's figure takes the place of those that are ahead. Gateways may run meanwhile."""
        return await shown(repair=True)

    return routes
