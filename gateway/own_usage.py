"""What a tenant sees of its own usage with its own key: GET /v1/usage, and OpenAI's /v1/organization/usage and /costs.

A key of a project sees that project, and all limits that bound its calls. What serving a call has cost, and where it was served, is the operator's business.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from msgspec import Struct, structs

from gateway.admin_usage import By, Cursor, From, Limit, To, UsagePage, answered, asked, page
from gateway.errors import ApiError
from gateway.own_limits import OwnLimits
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.auth import Key
    from gateway.own_limits import OwnLimiter
    from gateway.store import Store
    from gateway.usage_totals import Grouping, Measures, Total

Api = Literal["completions", "costs"]

_HIDDEN = ("cost_nano_usd", "waste_nano_usd", "wasted_tokens", "helped_calls")
_OWN: tuple[Grouping, ...] = ("project", "key", "model", "tier", "customer", "hour", "day", "month")
_FIELDS: dict[str, Grouping] = {
    "project_id": "project",
    "user_id": "customer",
    "api_key_id": "key",
    "model": "model",
    "service_tier": "tier",
    "line_item": "model",
}
"""What OpenAI groups by, and by what we do."""
_COMPLETIONS = ("project_id", "user_id", "api_key_id", "model", "service_tier")
_COSTS = ("project_id", "user_id", "api_key_id", "line_item")
_WIDTHS = {"1h": 3600, "1d": 86_400}
_BUCKETS = {("completions", "1h"): (24, 168), ("completions", "1d"): (7, 31), ("costs", "1d"): (7, 180)}
"""How many there are in a page unless told otherwise, and at most."""


class _Asked(Struct, frozen=True):
    """What OpenAI's parameters ask for."""

    width_s: int
    start_s: int
    """Of the first bucket of this page."""
    end_s: int
    """Of the last one of this page."""
    whole_end_s: int
    groups: tuple[str, ...]
    only: dict[Grouping, tuple[str, ...]]


class OwnUsage(UsagePage, OwnLimits):
    """A page of what was used, and what may be used."""


def own_usage_routes(store: Store, caller: Callable[[Request], Key], limiter: OwnLimiter) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.get("/usage")
    async def usage(  # noqa: PLR0913, PLR0917 - what can be asked are the parameters
        request: Request,
        since: From = None,
        to: To = None,
        by: By = "",
        model: str | None = None,
        project: str | None = None,
        customer: str | None = None,
        limit: Limit = 1000,
        cursor: Cursor = None,
    ) -> OwnUsage:
        key = caller(request)
        mine = _mine(key)
        if project is not None and mine.get("project", project) != project:
            raise ApiError("invalid_value", "The key is another project's.", param="project")
        given: dict[str, str | None] = {"model": model, "project": project, "customer": customer}
        given |= {str(name): value for name, value in mine.items()}
        question = asked(since, to, by, given, limit, cursor)
        if hidden := [name for name in question.by if name not in _OWN]:
            raise ApiError("invalid_value", f"{hidden[0]!r} is none of {', '.join(_OWN)}", param="by")
        found = page(await answered(store, question), question, _seen)
        return OwnUsage(**dict(found), **dict(await limiter.of(key)))

    async def _openai(request: Request, api: Api, known: tuple[str, ...]) -> dict[str, Any]:
        mine = _mine(caller(request))
        found = _read(request, api, known)
        bucket: Grouping = "hour" if found.width_s == 3600 else "day"
        by = tuple(dict.fromkeys((bucket, *(_FIELDS[field] for field in found.groups))))
        only: dict[Grouping, str | tuple[str, ...]] = {**found.only}
        for name, value in mine.items():
            if name in found.only and value not in found.only[name]:
                only[name] = ()
            else:
                only[name] = value
        question = Question(found.start_s * 1000, found.end_s * 1000, by, only, "group")
        return _as_openai(await answered(store, question), found, api)

    @routes.get("/organization/usage/completions")
    async def completions(request: Request) -> dict[str, Any]:
        return await _openai(request, "completions", _COMPLETIONS)

    @routes.get("/organization/costs")
    async def costs(request: Request) -> dict[str, Any]:
        return await _openai(request, "costs", _COSTS)

    return routes


def _mine(key: Key) -> dict[Grouping, str]:
    return {"tenant": key.tenant} if key.project is None else {"tenant": key.tenant, "project": key.project}


def _seen(sums: Measures) -> dict[str, int]:
    return {name: value for name, value in structs.asdict(sums).items() if name not in _HIDDEN}


def _read(request: Request, api: Api, known: tuple[str, ...]) -> _Asked:
    """OpenAI's parameters. Raises ApiError."""
    query = request.query_params

    def several(name: str) -> list[str]:
        return [*query.getlist(name), *query.getlist(f"{name}[]")]

    width = query.get("bucket_width", "1d")
    if (api, width) not in _BUCKETS:
        widths = " or ".join(each for of, each in _BUCKETS if of == api)
        raise ApiError(
            "invalid_value", f"bucket_width is {widths}: usage is summed up by the hour", param="bucket_width"
        )
    usual, most = _BUCKETS[api, width]
    width_s = _WIDTHS[width]
    limit = min(_number(query.get("limit"), "limit") or usual, most)
    start_s = _number(query.get("start_time"), "start_time")
    if start_s is None:
        raise ApiError(
            "missing_required_parameter", "start_time is required, in seconds since 1970", param="start_time"
        )
    start_s -= start_s % width_s
    end_s = _number(query.get("end_time"), "end_time") or int(time.time())
    whole_end_s = max(start_s, -(-end_s // width_s) * width_s)
    start_s = max(start_s, _number(query.get("page"), "page") or start_s)
    groups = tuple(dict.fromkeys(several("group_by")))
    for field in groups:
        if field not in known:
            raise ApiError("invalid_value", f"group_by is any of {', '.join(known)}", param="group_by")
    lists: dict[str, Grouping] = {
        "project_ids": "project",
        "user_ids": "customer",
        "api_key_ids": "key",
        "models": "model",
    }
    only = {grouping: tuple(several(name)) for name, grouping in lists.items() if several(name)}
    return _Asked(width_s, start_s, min(start_s + limit * width_s, whole_end_s), whole_end_s, groups, only)


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 11:
        raise ApiError("invalid_value", f"{name} should be a whole number", param=name)
    return int(text)


def _as_openai(found: list[Total], asked: _Asked, api: Api) -> dict[str, Any]:
    results: dict[str, list[dict[str, Any]]] = {}
    by = tuple(dict.fromkeys(_FIELDS[field] for field in asked.groups))
    for total in found:
        groups = dict(zip(by, total.group[1:], strict=True))
        results.setdefault(total.group[0], []).append(_result(api, asked.groups, groups, total.sums))
    shape = "%Y-%m-%dT%HZ" if asked.width_s == 3600 else "%Y-%m-%d"
    buckets = [
        {
            "object": "bucket",
            "start_time": start_s,
            "end_time": start_s + asked.width_s,
            "results": results.get(time.strftime(shape, time.gmtime(start_s)), []),
        }
        for start_s in range(asked.start_s, asked.end_s, asked.width_s)
    ]
    more = asked.end_s < asked.whole_end_s
    return {
        "object": "page",
        "data": buckets,
        "has_more": more,
        "next_page": str(asked.end_s) if more else None,
    }


def _result(api: Api, fields: tuple[str, ...], groups: dict[Grouping, str], sums: Measures) -> dict[str, Any]:
    named = {
        field: groups[_FIELDS[field]] if field in fields else None
        for field in (_COSTS if api == "costs" else _COMPLETIONS)
    }
    if api == "costs":
        amount = {"value": sums.charge_nano_usd / 1_000_000_000, "currency": "usd"}
        return {"object": "organization.costs.result", "amount": amount, **named}
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": sums.prompt_tokens,
        "input_cached_tokens": sums.cached_tokens,
        "output_tokens": sums.completion_tokens,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": sums.calls,
        "batch": None,
        **named,
    }
