"""The command line of how a gateway grows."""

from __future__ import annotations

import signal
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated

import typer
from rich.console import Console

from loadtest.proxies import DidNotStartError
from loadtest.report import write_json
from loadtest.scale.report import markdown, notes, sheets, table
from loadtest.scale.run import Asked, quick, run_scale
from loadtest.steps import doing


def scale(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    endpoints: Annotated[str, typer.Option(help="How many, with commas.")] = "10,100,1000",
    calls_per_s: Annotated[float, typer.Option(help="Told of by gossip, of all gateways.", min=1)] = 1000.0,
    rows: Annotated[int, typer.Option(help="Into each ledger.", min=400)] = 40_000,
    seconds: Annotated[float, typer.Option(help="Of each measurement on sockets.", min=1)] = 3.0,
    tenants: Annotated[int, typer.Option(help="With limits, in the model.", min=1)] = 1000,
    only_a_look: Annotated[
        bool, typer.Option("--quick", help="Little of each: a look, not a result.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all that was measured here.")
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the README's tables here.")
    ] = None,
) -> None:
    """Measure how a gateway grows with processes and endpoints, and model which part is full first beyond them."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does, servers and all
    try:
        counts = tuple(sorted({int(each) for each in endpoints.split(",")}))
    except ValueError as error:
        raise typer.BadParameter("numbers with commas between them", param_hint="--endpoints") from error
    if counts[0] < 1:
        raise typer.BadParameter("at least one", param_hint="--endpoints")
    asked = Asked(counts, calls_per_s, rows, seconds, tenants)
    console = Console()
    try:
        with doing() as say:
            grown = run_scale(quick(asked) if only_a_look else asked, say)
    except DidNotStartError as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error
    for sheet in sheets(grown):
        console.print(table(sheet))
    for line in notes(grown):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    write_json(grown, json_file)
    if markdown_file is not None:
        markdown_file.write_text(markdown(grown))


def register(app: typer.Typer) -> None:
    """Add this subcommand to `app`."""
    app.command()(scale)
