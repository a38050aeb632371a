"""What was used in a span of time, summed up by whatever is asked for, out of the sums by the hour.

Ten million calls are some hundred thousand sums, and those are read in order of time. Where a span begins or ends within
an hour, the usage rows of that part of the hour are summed up instead, by the same rules.
"""

# ruff: noqa: S608 - the SQL is made of names in the code

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sqlalchemy import text

from gateway.bookkeeping import HOUR_MS, pieces
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
    source = " UNION ALL ".join(_sources(question, parameters))
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
    """SQL of what there is in the span: sums of whole hours, and pieces of calls in what is left at either end."""
    by_customer = "customer" in (*question.by, *question.only)
    columns = ", ".join(("hour_ms", *DIMENSIONS, *(["customer"] if by_customer else []), *MEASURES))
    since_ms, until_ms = question.since_ms, question.until_ms
    if until_ms >= time.time_ns() // 1_000_000:
        until_ms = -(-until_ms // HOUR_MS) * HOUR_MS  # nothing has begun later
    first_ms, last_ms = -(-since_ms // HOUR_MS) * HOUR_MS, until_ms // HOUR_MS * HOUR_MS
    parts: list[tuple[int, int]] = []
    if first_ms <= last_ms:
        # Named once more here, so that a tenant's own usage is found by its index.
        mine = " AND tenant = :only_tenant_0" if isinstance(question.only.get("tenant"), str) else ""
        table = "usage_customer_hours" if by_customer else "usage_hours"
        parameters |= {"first_ms": first_ms, "last_ms": last_ms}
        yield f"SELECT {columns} FROM {table} WHERE hour_ms >= :first_ms AND hour_ms < :last_ms{mine}"
        parts += [(since_ms, first_ms), (last_ms, until_ms)]
    else:
        parts.append((since_ms, until_ms))
    for number, (start_ms, end_ms) in enumerate(parts):
        if start_ms < end_ms:
            parameters |= {f"start_{number}": start_ms, f"end_{number}": end_ms}
            calls = f"(SELECT * FROM usage WHERE time_ms >= :start_{number} AND time_ms < :end_{number})"
            hour = f"time_ms - time_ms % {HOUR_MS} AS hour_ms"
            yield f"SELECT {columns} FROM (SELECT *, {hour} FROM ({pieces(calls)}) AS p) AS part"
