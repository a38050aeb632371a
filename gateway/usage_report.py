"""What was used in a span of time, summed up by whatever is asked for, out of the sums by day and by hour.

Ten million calls of a month are some hundred thousand sums by day. Where a span begins or ends within a day its hours are
read, and where it does within an hour, the usage rows of that part of it are summed up, by the same rules.
"""

# ruff: noqa: S608 - the SQL is made of names in the code

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from gateway.bookkeeping import DAY_MS, HOUR_MS, pieces
from gateway.ledger_tables import DIMENSIONS, MEASURES
from gateway.usage_totals import Measures, Total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from gateway.usage_totals import Grouping, Question

_MONTH = {
    "sqlite": "strftime('%Y-%m', hour_ms / 1000, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(hour_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM')",
}
_DAY = {
    "sqlite": "strftime('%Y-%m-%d', hour_ms / 1000, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(hour_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
}
_HOUR = {
    "sqlite": "strftime('%Y-%m-%dT%HZ', hour_ms / 1000, 'unixepoch')",
    "postgresql": "to_char(to_timestamp(hour_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24\"Z\"')",
}
_MOMENTS = {"month": _MONTH, "day": _DAY, "hour": _HOUR}


def totals(connection: Connection, question: Question) -> list[Total]:
    """The answer. Raises what the database raises."""
    dialect = connection.dialect.name
    parameters: dict[str, object] = {}
    sources = list(_sources(question, parameters))
    if not sources:
        return []
    source = " UNION ALL ".join(sources)
    keys = [_expression(each, dialect) for each in question.by]
    names = [f"group_{number}" for number in range(len(keys))]
    chosen = ", ".join(f"{key} AS {name}" for key, name in zip(keys, names, strict=True))
    conditions = []
    for each, value in question.only.items():
        values = (value,) if isinstance(value, str) else value
        marks = ", ".join(f":only_{each}_{number}" for number in range(len(values)))
        conditions.append(f"{_expression(each, dialect)} IN ({marks})" if values else "1 = 0")
        parameters |= {f"only_{each}_{number}": one for number, one in enumerate(values)}
    # PostgreSQL's own order of text depends on where it runs; pages and their cursors must not.
    plain = ' COLLATE "C"' if dialect == "postgresql" else ""
    ordered = [key + plain for key in keys]
    if question.after is not None and keys:
        conditions.append(f"({', '.join(ordered)}) > ({', '.join(f':after_{name}' for name in names)})")
        parameters |= {f"after_{name}": value for name, value in zip(names, question.after, strict=True)}
    order = ["sum(charge_nano_usd) DESC"] if question.order == "charge" else []
    query = f"""
    SELECT {chosen}{", " if keys else ""}{", ".join(f"sum({each}) AS {each}" for each in MEASURES)} FROM ({source}) AS sums
    {"WHERE " + " AND ".join(conditions) if conditions else ""}
    {"GROUP BY " + ", ".join(names) if keys else ""}
    HAVING count(*) > 0 {"ORDER BY " + ", ".join((*order, *ordered)) if keys else ""}
    """
    if question.limit is not None:
        query += " LIMIT :most"
        parameters["most"] = question.limit
    found = connection.execute(text(query), parameters)
    many = len(keys)
    # PostgreSQL's sums of bigint are numeric, hence int().
    return [Total(tuple(row[:many]), Measures(*map(int, row[many:]))) for row in found]


def _expression(grouping: Grouping, dialect: str) -> str:
    if grouping in _MOMENTS:
        return _MOMENTS[grouping][dialect]
    return "key_id" if grouping == "key" else grouping


def _sources(question: Question, parameters: dict[str, object]) -> Iterator[str]:
    """SQL of what there is in the span: sums of whole days, of whole hours beside them, and pieces of calls in what is left."""
    by_customer = "customer" in (*question.by, *question.only)
    columns = ", ".join((*DIMENSIONS, *(["customer"] if by_customer else []), *MEASURES))
    # Named once more here, so that a tenant's own usage is found by its index.
    mine = " AND tenant = :only_tenant_0" if isinstance(question.only.get("tenant"), str) else ""
    widths = (HOUR_MS,) if "hour" in question.by else (HOUR_MS, DAY_MS)
    until_ms = question.until_ms
    if until_ms >= time.time_ns() // 1_000_000:
        until_ms = -(-until_ms // widths[-1]) * widths[-1]  # nothing has begun later
    for number, (width_ms, start_ms, end_ms) in enumerate(_parts(question.since_ms, until_ms, widths)):
        parameters |= {f"start_{number}": start_ms, f"end_{number}": end_ms}
        span = f"{{0}} >= :start_{number} AND {{0}} < :end_{number}"
        if width_ms:
            unit = "day" if width_ms == DAY_MS else "hour"
            table = f"usage_customer_{unit}s" if by_customer else f"usage_{unit}s"
            yield f"SELECT {unit}_ms AS hour_ms, {columns} FROM {table} WHERE {span.format(f'{unit}_ms')}{mine}"
        else:
            calls = f"(SELECT * FROM usage WHERE {span.format('time_ms')})"
            hour = f"time_ms - time_ms % {HOUR_MS} AS hour_ms"
            yield f"SELECT hour_ms, {columns} FROM (SELECT *, {hour} FROM ({pieces(calls)}) AS p) AS part"


def _parts(since_ms: int, until_ms: int, widths: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """The span in parts, each whole as far as it goes: its width, 0 for what is left, its start and its end."""
    if since_ms >= until_ms:
        return
    if not widths:
        yield 0, since_ms, until_ms
        return
    width_ms = widths[-1]
    first_ms, last_ms = -(-since_ms // width_ms) * width_ms, until_ms // width_ms * width_ms
    if first_ms >= last_ms:
        yield from _parts(since_ms, until_ms, widths[:-1])
        return
    yield width_ms, first_ms, last_ms
    yield from _parts(since_ms, first_ms, widths[:-1])
    yield from _parts(last_ms, until_ms, widths[:-1])
