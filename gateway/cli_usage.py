"""`tidegate usage`: what was used in a span of time by whom and where, and the money for it.

`app` is mounted by gateway.cli under the name `usage`; it has one command, which needs no name of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, cast

import typer

from gateway import spans
from gateway.cli_options import FormatOption, Place, unfolded
from gateway.output import Format, show, usd
from gateway.usage_totals import GROUPINGS, Grouping

app = typer.Typer()

_PAGE = 10_000

_COLUMNS = (
    "calls",
    "errors",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "wasted_tokens",
    "estimated_calls",
    "charge_usd",
    "cost_usd",
    "waste_usd",
)


@app.callback(invoke_without_command=True)
@unfolded
def usage(  # noqa: PLR0913, PLR0917  a command's options are its parameters
    by: Annotated[
        str, typer.Option("--by", help=f"What to sum by, one or several with commas: {', '.join(GROUPINGS)}.")
    ] = "tenant",
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
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    project: Annotated[str | None, typer.Option(help="Only of this project of it.")] = None,
    key: Annotated[str | None, typer.Option(help="Only of the key with this id.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    customer: Annotated[str | None, typer.Option(help="Only for this customer of the tenant's.")] = None,
    *,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Calls, tokens and money, summed up; of the current month unless told otherwise."""
    start, end = span(since, until, datetime.now(UTC))
    groups = groupings(by)
    asked = {"by": ",".join(groups), "from": start.isoformat(), "to": end.isoformat(), "limit": _PAGE}
    asked |= {"tenant": tenant, "project": project, "key": key, "model": model, "customer": customer}
    rows = _all(place, asked)
    if groups[0] not in ("hour", "day", "month"):
        rows.sort(key=lambda row: -row["charge_nano_usd"])  # of equals the first group stays the first
    for row in rows:
        for amount in ("charge", "cost", "waste"):
            row[f"{amount}_usd"] = usd(row[f"{amount}_nano_usd"])
    helped = ("helped_calls",) if "endpoint" in groups else ()
    show(rows, (*groups, _COLUMNS[0], *helped, *_COLUMNS[1:]), as_format)


def _all(place: Place, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all pages."""
    rows: list[dict[str, Any]] = []
    while True:
        page = place.ask("GET", "usage", **asked)
        rows += page["data"]
        asked["cursor"] = page["next_cursor"]
        if asked["cursor"] is None:
            return rows


def groupings(by: str) -> tuple[Grouping, ...]:
    """What `--by` names."""
    names = tuple(dict.fromkeys(part.strip() for part in by.split(",")))
    for name in names:
        if name not in GROUPINGS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(GROUPINGS)}", param_hint="--by")
    return cast("tuple[Grouping, ...]", names)


def span(since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """What `--from` and `--to` say."""
    try:
        return spans.span(since, until, now)
    except spans.BadSpan as bad:
        raise typer.BadParameter(str(bad), param_hint=f"--{bad.end}") from None
