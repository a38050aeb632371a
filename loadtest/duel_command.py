"""`tidegate loadtest duel`: gateways that differ little, side by side."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from loadtest import bench, wrk
from loadtest.commands import chosen_by_name, without_traceback
from loadtest.duel import Checkout, markdown, run_duel, table
from loadtest.report import write_json
from loadtest.steps import doing

if TYPE_CHECKING:
    from loadtest.proxies import Proxy


def duel(
    *,
    targets: Annotated[
        str, typer.Option(help="Which, by name, with commas; the others are set beside the first.")
    ] = "tidegate,tidegate-bounded,tidegate-traced",
    checkout: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder with another version of Tidegate; may be given more than once.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    turns: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 20,
    endpoints: Annotated[int, typer.Option(help="Upstreams to choose from.", min=1)] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured here.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write the table here.")] = None,
) -> None:
    """What an option costs, or what a change of the code does: turns of a second, ratios within a turn."""
    if wrk.installed() is None:
        raise typer.BadParameter("wrk is not on PATH; it sends the requests")
    chosen: list[Proxy] = [
        *chosen_by_name([name.strip() for name in targets.split(",")]),
        *map(Checkout, checkout or []),
    ]
    if len(names := [proxy.name for proxy in chosen]) != len(set(names)):
        raise typer.BadParameter(f"two of the same name: {', '.join(names)}")
    plan = bench.cores(bench.Plan(endpoints=endpoints))
    with (
        without_traceback(),
        tempfile.TemporaryDirectory(prefix="tidegate-duel-") as folder,
        bench.site(plan, Path(folder)) as place,
        doing() as say,
    ):
        found = run_duel(place, chosen, turns, say)
    Console().print(table(found))
    write_json(found, json_file)
    if markdown_file is not None:
        markdown_file.write_text(markdown(found))


def register(app: typer.Typer) -> None:
    """Add this subcommand to `app`."""
    app.command()(duel)
