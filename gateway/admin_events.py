"""The routes below /admin/events: how it stands with webhooks, what they would not take, and sending it again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Request
from msgspec import structs
from pydantic import BaseModel, ConfigDict, Field

from gateway import spans
from gateway.errors import ApiError
from gateway.event_desk import Aside, Forgotten, forget, refused, send_refused, send_span
from gateway.event_store import Standing, standings

if TYPE_CHECKING:
    from gateway.desk import Desk


class Webhook(BaseModel):
    webhook: str
    waiting: int = Field(description="Calls and transactions that it has still to be told of.")
    oldest_ms: int | None = Field(description="Since when the first of them waits.")
    set_aside: int = Field(description="Events that it would not take.")
    sent: int = Field(description="Events that it has taken, ever.")
    last_sent_ms: int | None
    attempts: int = Field(description="That have failed since it last took something.")
    failing_since_ms: int | None
    failure: str | None
    retry_ms: int = Field(description="It is left alone until then.")
    now_ms: int

    @classmethod
    def of(cls, standing: Standing) -> Webhook:
        return cls(**structs.asdict(standing))


class RefusedEvent(BaseModel):
    kind: str = Field(description="calls or ledger.")
    id: str = Field(description="Of the call or the transaction.")
    part: str = Field(description="The meter, where each has events of its own.")
    tenant: str
    refused_ms: int
    reason: str

    @classmethod
    def of(cls, aside: Aside) -> RefusedEvent:
        return cls(**structs.asdict(aside))


class ResendBody(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    tenant: str | None = Field(None, description="Only of this tenant.")
    since: str | None = Field(
        None,
        alias="from",
        description="All that was recorded since then, sent before or not: a date, a date-time or a span as in 7d. "
        "Without it, what was refused.",
    )
    until: str | None = Field(None, alias="to", description="As `from`; without it, until now.")


class Queued(BaseModel):
    queued: int


class ForgottenShown(BaseModel):
    sent: int = Field(description="Events that it had taken.")
    set_aside: int = Field(description="Events that it had not, and never will.")

    @classmethod
    def of(cls, forgotten: Forgotten) -> ForgottenShown:
        return cls(**structs.asdict(forgotten))


def event_routes(desk: Desk) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter(prefix="/events")
    store = desk.store

    @routes.get("")
    async def list_webhooks() -> list[Webhook]:
        return [Webhook.of(each) for each in await asyncio.to_thread(standings, store)]

    @routes.get("/{webhook}/refused")
    async def list_refused(
        webhook: str,
        tenant: Annotated[str | None, Query(description="Only of this tenant.")] = None,
        most: Annotated[int, Query(ge=1, le=10_000)] = 100,
    ) -> list[RefusedEvent]:
        """The oldest first."""
        found = await asyncio.to_thread(refused, store, webhook, tenant, most)
        return [RefusedEvent.of(each) for each in found]

    @routes.post("/{webhook}/resend")
    async def resend(webhook: str, body: ResendBody, request: Request) -> Queued:
        """Under the same ids, behind all that waits."""
        actor = desk.actor_of(request)
        if body.since is None:
            if body.until is not None:
                raise ApiError("invalid_value", "takes `from` as well", param="to")
            return Queued(queued=await asyncio.to_thread(send_refused, store, webhook, body.tenant, actor))
        try:
            start_ms, end_ms = spans.span_ms(body.since, body.until)
        except spans.BadSpan as bad:
            raise ApiError("invalid_value", str(bad), param=bad.end) from None
        count = await asyncio.to_thread(send_span, store, webhook, start_ms, end_ms, body.tenant, actor)
        return Queued(queued=count)

    @routes.delete("/{webhook}")
    async def forget_webhook(webhook: str, request: Request) -> ForgottenShown:
        """Keep nothing more for a webhook that is in no configuration any longer."""
        return ForgottenShown.of(await asyncio.to_thread(forget, store, webhook, desk.actor_of(request)))

    return routes
