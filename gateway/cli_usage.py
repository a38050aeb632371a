"""`tidegate usage`: what was used in a span of time by whom and where, and the money for it.

`app` is mounted by gateway.cli under the name `usage`; it has one command, which needs no name of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, cast

import typer

from gateway import spans
from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, FormatOption, open_store
from gateway.output import Format, show, usd
from gateway.usage_totals import GROUPINGS, Grouping, Order, Question, shown

app = typer.Typer()

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
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Calls, tokens and money, summed up; of the current month unless told otherwise."""
    start, end = span(since, until, datetime.now(UTC))
    groups = groupings(by)
    given = {"tenant": tenant, "project": project, "key": key, "model": model, "customer": customer}
    only = {name: value for name, value in given.items() if value is not None}
    order: Order = "group" if groups[0] in ("hour", "day", "month") else "charge"
    with open_store(config) as store:
        found = store.usage(Question(spans.ms(start), spans.ms(end), groups, cast("Any", only), order))
    rows: list[dict[str, Any]] = []
    for total in found:
        row: dict[str, Any] = shown(total, groups)
        for amount in ("charge", "cost", "waste"):
            row[f"{amount}_usd"] = usd(row[f"{amount}_nano_usd"])
        rows.append(row)
    helped = ("helped_calls",) if "endpoint" in groups else ()
    show(rows, (*groups, _COLUMNS[0], *helped, *_COLUMNS[1:]), as_format)


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
