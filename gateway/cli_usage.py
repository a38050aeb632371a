"""`tidegate usage`: what tenants, models, endpoints or keys used in a span of time, and the money for it.

`app` is mounted by gateway.cli under the name `usage`; it has one command, which needs no name of its own.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Any

import typer
from msgspec import structs

from gateway.cli_keys import DEFAULT_CONFIG, ConfigOption, FormatOption, open_store
from gateway.output import Format, show, usd

app = typer.Typer()

_COLUMNS = (
    "calls",
    "errors",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "estimated_calls",
    "charge_usd",
    "cost_usd",
    "waste_usd",
)
_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class By(StrEnum):
    TENANT = "tenant"
    MODEL = "model"
    ENDPOINT = "endpoint"
    KEY = "key"


@app.callback(invoke_without_command=True)
def usage(
    by: Annotated[By, typer.Option("--by", help="What to sum by.")] = By.TENANT,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", help="A date, an ISO date-time (UTC) or a span back from now as in 7d, 12h, 30m, 2w."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", help="As --from. A date includes that whole day, a date-time is not included."),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Calls, tokens and money by tenant, model, endpoint or key; of the current month unless told otherwise."""
    start, end = span(since, until, datetime.now(UTC))
    with open_store(config) as store:
        totals = store.usage(by.value, _ms(start), _ms(end))
    rows: list[dict[str, Any]] = []
    for total in totals:
        row = structs.asdict(total)
        row = {by.value: row.pop("name"), **row}
        for amount in ("charge", "cost", "waste"):
            row[f"{amount}_usd"] = usd(row[f"{amount}_nano_usd"])
        rows.append(row)
    show(rows, (by.value, *_COLUMNS), as_format)


def span(since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """From when, and until before when: the month of the end where no start is given, until now where no end is."""
    end = now if until is None else _moment(until, now, option="--to")
    start = _month(end) if since is None else _moment(since, now, option="--from")
    if until is None and since is None:
        end = _month(start + timedelta(days=31))
    if until is not None and _is_date(until):
        end += timedelta(days=1)
    if start >= end:
        raise typer.BadParameter(f"begins at {start:%Y-%m-%d %H:%M}, after its end", param_hint="--from")
    return start, end


def _month(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def _is_date(value: str) -> bool:
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None


def _moment(value: str, now: datetime, option: str) -> datetime:
    try:
        if relative := re.fullmatch(r"(\d+)([mhdw])", value):
            return now - timedelta(**{_SPANS[relative[2]]: int(relative[1])})
        if _is_date(value):
            return datetime.combine(date.fromisoformat(value), time.min, UTC)
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{value!r} is neither a date (2026-01-31), a date-time (2026-01-31T12:00) nor a span (7d)",
            param_hint=option,
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
