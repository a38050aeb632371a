"""What tests of usage events need: a sender of a webhook, rows to tell of, and what a receiver answers."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
from pydantic import SecretStr
from receiver import Answer, Received, Receiver
from sqlalchemy import update
from usage_rows import a_row

from gateway.config_events import WebhookSection
from gateway.event_store import Outbox
from gateway.event_tables import EVENT_WEBHOOKS
from gateway.events import Sender

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from gateway.store import Store


LIMIT_S = 60
KEY = "om_secret"
SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


@asynccontextmanager
async def sending(
    store: Store, receiver: Receiver, holder: str = "a", **changes: Any
) -> AsyncIterator[Sender]:
    """A sender for the webhook `om`, which is known from now on."""
    section = WebhookSection(url=receiver.url, api_key=SecretStr(KEY), **changes)
    outbox = Outbox(store, holder)
    outbox.register(["om"])
    async with httpx2.AsyncClient(timeout=section.timeout_s, verify=False) as client:
        yield Sender("om", section, outbox, client)


async def until(sender: Sender, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await sender.work()
            await asyncio.sleep(0.02)


def record(store: Store, *call_ids: str, **changes: Any) -> None:
    store.record([a_row(call_id, **changes) for call_id in call_ids])


def hurry(store: Store) -> None:
    """No pause is waited for."""
    with store.writing() as connection:
        connection.execute(update(EVENT_WEBHOOKS).values(retry_ms=0))


def says(status: int, ids: Iterable[str], body: bytes = b"") -> Callable[[Received], Answer]:
    """So it answers what has one of these in it."""
    some = set(ids)
    return lambda received: Answer(status, body) if some & set(received.ids) else Answer()
