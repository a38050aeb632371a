"""GET /admin/usage: what was used, by whatever is asked for, in pages; read from the sums by the hour."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec
from fastapi import APIRouter, Query
from msgspec import structs
from pydantic import BaseModel, Field

from gateway.errors import ApiError
from gateway.spans import BadSpan, span_ms
from gateway.usage_totals import GROUPINGS, Grouping, Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.store import Store
    from gateway.usage_totals import Total

_PAGE = 1000
_MOST = 10_000

From = Annotated[
    str | None, Query(alias="from", description="A date, an ISO date-time (UTC), or 7d, 12h, 30m.")
]
To = Annotated[str | None, Query(description="As `from`. A date includes that whole day.")]
By = Annotated[str, Query(description=f"One or several, with commas: {', '.join(GROUPINGS)}.")]
Only = Annotated[str | None, Query(description="Only of this.")]
Limit = Annotated[int, Query(ge=1, le=_MOST, description="Rows in a page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]


class UsagePage(BaseModel):
    data: list[dict[str, str | int]] = Field(description="The groups, then the sums. Money is in nano-USD.")
    next_cursor: str | None = Field(description="None: this is the last page.")


def usage_routes(store: Store) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter(prefix="/usage")

    @routes.get("")
    async def usage(  # noqa: PLR0913, PLR0917 - what can be asked are the parameters
        since: From = None,
        to: To = None,
        by: By = "tenant",
        tenant: Only = None,
        project: Only = None,
        key: Only = None,
        model: Only = None,
        endpoint: Only = None,
        tier: Only = None,
        customer: Only = None,
        limit: Limit = _PAGE,
        cursor: Cursor = None,
    ) -> UsagePage:
        """Calls, tokens and money, of the current month unless told otherwise, in the order of the groups."""
        given = {
            "tenant": tenant,
            "project": project,
            "key": key,
            "model": model,
            "endpoint": endpoint,
            "tier": tier,
            "customer": customer,
        }
        question = asked(since, to, by, given, limit, cursor)
        return page(await answered(store, question), question, structs.asdict)

    return routes


def asked(
    since: str | None, to: str | None, by: str, only: dict[str, str | None], limit: int, cursor: str | None
) -> Question:
    """A question in the order of its groups. Raises ApiError."""
    names = tuple(dict.fromkeys(part.strip() for part in by.split(","))) if by else ()
    for name in names:
        if name not in GROUPINGS:
            raise ApiError("invalid_value", f"{name[:100]!r} is none of {', '.join(GROUPINGS)}", param="by")
    try:
        since_ms, until_ms = span_ms(since, to)
    except BadSpan as bad:
        raise ApiError("invalid_value", str(bad), param=bad.end) from None
    chosen = {cast("Grouping", name): value for name, value in only.items() if value is not None}
    groups = cast("tuple[Grouping, ...]", names)
    after = None if cursor is None else _after(cursor, len(names))
    return Question(since_ms, until_ms, groups, chosen, "group", after, limit)


def page(
    found: list[Total], question: Question, sums: Callable[[Any], dict[str, int]] = structs.asdict
) -> UsagePage:
    """A page of an answer, of whose measures `sums` says which are shown."""
    rows = [{**dict(zip(question.by, total.group, strict=True)), **sums(total.sums)} for total in found]
    full = question.by and len(found) == question.limit
    return UsagePage(data=cast("Any", rows), next_cursor=_cursor(found[-1].group) if full else None)


async def answered(store: Store, question: Question) -> list[Total]:
    """What the database says. Raises StoreAway."""
    return await asyncio.to_thread(store.usage, question)


def _cursor(group: tuple[str, ...]) -> str:
    return urlsafe_b64encode(msgspec.json.encode(group)).decode().rstrip("=")


def _after(cursor: str, groups: int) -> tuple[str, ...]:
    try:
        found = msgspec.json.decode(
            urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=tuple[str, ...]
        )
    except (ValueError, msgspec.DecodeError):
        found = ()
    if len(found) != groups:
        raise ApiError("invalid_value", "This is no cursor of these groups.", param="cursor")
    return found
