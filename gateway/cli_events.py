"""`tidegate events`: how it stands with webhooks, what they would not take, and sending it again."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import structs

from gateway import spans
from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, FormatOption, actor_here, fail, open_store
from gateway.cli_usage import span
from gateway.output import Format, iso, show

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.store import Store

app = typer.Typer(help="Usage events for webhooks.", no_args_is_help=True)

WebhookArgument = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="Its name in the configuration's events.")
]
TenantOption = Annotated[str | None, typer.Option(help="Only of this tenant.")]

_STATUS = (
    "webhook",
    "waiting",
    "oldest",
    "sent",
    "last_sent",
    "set_aside",
    "failing_since",
    "failure",
    "retry",
)
_REFUSED = ("id", "part", "tenant", "refused", "reason")


@contextmanager
def _store(config: Path) -> Iterator[Store]:
    from gateway.subjects import NotFound  # noqa: PLC0415 - takes time to import

    with open_store(config) as store:
        try:
            yield store
        except NotFound as error:
            fail(str(error))


@app.command()
def status(config: ConfigOption = DEFAULT_CONFIG, as_format: FormatOption = Format.TABLE) -> None:
    """How far each webhook has been told, and what keeps it."""
    from gateway.event_store import standings  # noqa: PLC0415 - takes time to import

    with _store(config) as store:
        found = standings(store)
    rows = []
    for standing in found:
        row = structs.asdict(standing)
        for moment in ("oldest", "last_sent", "failing_since"):
            row[moment] = None if row[f"{moment}_ms"] is None else iso(row[f"{moment}_ms"])
        row["retry"] = iso(standing.retry_ms) if standing.retry_ms > standing.now_ms else None
        rows.append(row)
    show(rows, _STATUS, as_format)


@app.command()
def refused(
    webhook: WebhookArgument,
    tenant: TenantOption = None,
    most: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most, the oldest first.")] = 100,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """The events that it would not take, and why."""
    from gateway.event_desk import refused as those_refused  # noqa: PLC0415 - takes time to import

    with _store(config) as store:
        found = those_refused(store, webhook, tenant, most)
    show([{**structs.asdict(each), "refused": iso(each.refused_ms)} for each in found], _REFUSED, as_format)


@app.command()
def resend(
    webhook: WebhookArgument,
    tenant: TenantOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="All that was recorded since then, sent before or not: a date, a date-time or a span as in 7d.",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", help="As --from; without it, until now.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Send what it would not take once more; or, with --from, all of a span of time, under the same ids."""
    from gateway.event_desk import send_refused, send_span  # noqa: PLC0415 - takes time to import

    if until is not None and since is None:
        raise typer.BadParameter("takes --from as well", param_hint="--to")
    with _store(config) as store:
        if since is None:
            count = send_refused(store, webhook, tenant, actor_here())
        else:
            start, end = (spans.ms(moment) for moment in span(since, until, datetime.now(UTC)))
            count = send_span(store, webhook, start, end, tenant, actor_here())
    show(
        [{"webhook": webhook, "tenant": tenant, "queued": count}], ("webhook", "tenant", "queued"), as_format
    )


@app.command()
def forget(
    webhook: WebhookArgument, config: ConfigOption = DEFAULT_CONFIG, as_format: FormatOption = Format.TABLE
) -> None:
    """Keep nothing more for a webhook that is in no gateway's configuration any longer."""
    from gateway.config import load  # noqa: PLC0415 - takes time to import
    from gateway.event_desk import forget as forgotten  # noqa: PLC0415 - as above

    if webhook in load(config, os.environ).events:
        fail(f"{webhook} is in {config}: a gateway would tell it of new usage again; take it out first", 2)
    with _store(config) as store:
        gone = forgotten(store, webhook, actor_here())
    show([{"webhook": webhook, **structs.asdict(gone)}], ("webhook", "sent", "set_aside"), as_format)
