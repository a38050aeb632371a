"""`tidegate events`: how it stands with webhooks, what they would not take, and sending it again."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from gateway.cli_options import FormatOption, Place, fail, unfolded
from gateway.output import Format, iso, show

app = typer.Typer(help="Usage events for webhooks.", no_args_is_help=True)

WebhookArgument = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="Its name in the configuration's events.")
]
TenantOption = Annotated[str | None, typer.Option(help="Only of this tenant.")]

_STATUS = (
    *("webhook", "waiting", "oldest", "sent", "last_sent", "set_aside", "failing_since", "failure", "retry"),
)
_REFUSED = ("id", "part", "tenant", "refused", "reason")


@app.command()
@unfolded
def status(*, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """How far each webhook has been told, and what keeps it."""
    rows = place.ask("GET", "events")
    for row in rows:
        for moment in ("oldest", "last_sent", "failing_since"):
            row[moment] = None if row[f"{moment}_ms"] is None else iso(row[f"{moment}_ms"])
        row["retry"] = iso(row["retry_ms"]) if row["retry_ms"] > row["now_ms"] else None
    show(rows, _STATUS, as_format)


@app.command()
@unfolded
def refused(
    webhook: WebhookArgument,
    *,
    tenant: TenantOption = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most, the oldest first.")] = 100,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """The events that it would not take, and why."""
    rows = place.ask("GET", "events", webhook, "refused", tenant=tenant, most=most)
    show([{**row, "refused": iso(row["refused_ms"])} for row in rows], _REFUSED, as_format)


@app.command()
@unfolded
def resend(
    webhook: WebhookArgument,
    *,
    tenant: TenantOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="All that was recorded since then, sent before or not: a date, a date-time or a span as in 7d.",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="As --from; without it, until now.")] = None,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Send what it would not take once more; or, with --from, all of a span of time, under the same ids."""
    said = {"tenant": tenant, "from": since, "to": until}
    queued = place.ask("POST", "events", webhook, "resend", body=said)
    show([{"webhook": webhook, "tenant": tenant, **queued}], ("webhook", "tenant", "queued"), as_format)


@app.command()
@unfolded
def forget(webhook: WebhookArgument, *, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """Keep nothing more for a webhook that is in no gateway's configuration any longer."""
    from gateway.config import load  # noqa: PLC0415 - takes time to import

    if place.url is None and webhook in load(place.config, os.environ).events:
        fail(
            f"{webhook} is in {place.config}: a gateway would tell it of new usage again; take it out first",
            2,
        )
    gone = place.ask("DELETE", "events", webhook)
    show([{"webhook": webhook, **gone}], ("webhook", "sent", "set_aside"), as_format)
