"""`tidegate nodes`: the workers of a running gateway: look at them, drain them, take them out.

`app` is mounted by gateway.cli. The commands ask the gateway; nothing here reads its configuration.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gateway.cli_options import (
    FormatOption,
    KeyOption,
    ReportFormatOption,
    UrlOption,
    administration_at,
    asked_over_http,
    below,
    decoded,
    show_rows,
    unfolded,
)
from gateway.output import Format, ReportFormat, show

app = typer.Typer(no_args_is_help=True, help="The workers of a running gateway: look, drain, take out.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]

_COLUMNS = (
    *("name", "model", "source", "state", "inflight", "region", "gpu"),
    *("context_tokens", "lease_left_s", "leaves_in_s", "mean_stay_s", "reason"),
)
_LEASE = ("name", "leaves_in_s", "drained")


@app.command("list")
@unfolded
def list_nodes(url: UrlOption = None, key: KeyOption = None, as_format: FormatOption = Format.TABLE) -> None:
    """All workers: how each stands, and why it gets no calls where it gets none."""
    found = _ask("GET", url, key)
    stays = found["histories"]
    rows = [{**row, "mean_stay_s": stays.get(row["name"], {}).get("mean_stay_s")} for row in found["nodes"]]
    show(rows, _COLUMNS, as_format)


@app.command("show")
@unfolded
def show_node(
    name: NameArgument,
    url: UrlOption = None,
    key: KeyOption = None,
    as_format: ReportFormatOption = ReportFormat.JSON,
) -> None:
    """One node with the history of its stays: how long, how they ended, at which hours it is there."""
    found = _ask("GET", url, key, name)
    if as_format is ReportFormat.JSON:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [{"about": about, "value": value} for about, value in found.items()]
    show_rows(rows, ("about", "value"), Format.TABLE)


@app.command()
@unfolded
def drain(
    name: NameArgument,
    *,
    within: Annotated[
        float | None,
        typer.Option(help="Seconds after which running calls are taken from it; else `timeouts.total_s`."),
    ] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="It does not leave after all.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Give a node nothing new, and let what runs there finish."""
    body = None if within is None else {"within_s": within}
    lease = _ask("DELETE" if cancel else "POST", url, key, name, "drain", body=body)
    show([lease], _LEASE, as_format)


@app.command()
def remove(name: NameArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Take out a node that has registered. What runs there finishes."""
    _ask("DELETE", url, key, name)


def _ask(
    method: str, url: str | None, key: str | None, *path: str, body: dict[str, Any] | None = None
) -> Any:
    """What the gateway answers. Ends the command with one line where it refuses, or is none."""
    return decoded(asked_over_http(administration_at(url), key, method, below("nodes", *path), json=body))
