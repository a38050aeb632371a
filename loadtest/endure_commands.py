"""The command line of the endurance run."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from loadtest.endurance import Plan
from loadtest.endure_report import markdown, notes, table
from loadtest.report import write_json
from loadtest.steps import on_terminal


def endure(
    *,
    minutes: Annotated[float, typer.Option(help="For how long calls begin, at least.", min=0.5)] = 15.0,
    clients: Annotated[int, typer.Option(help="Of all tenants.", min=10)] = 40,
    seed: Annotated[int, typer.Option(help="The same seed, the same calls and kills.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was found here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table here, for a README.")
    ] = None,
) -> None:
    """Replicas, Redis, PostgreSQL, workers and clients for a while; all but clients are restarted, stopped and killed.

    Exit 1 where a client noticed, where an account differs from another, or something is left behind.
    """
    if find_spec("psycopg") is None:
        typer.echo("it takes PostgreSQL's driver: pip install 'tidegate[postgres]'", err=True)
        raise typer.Exit(1)
    from loadtest import endure as running  # noqa: PLC0415 - that driver is an extra

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does, servers and all
    plan = Plan.of(minutes, clients, seed)
    columns = (TimeElapsedColumn(), BarColumn(), TextColumn("{task.description}"))
    with (
        tempfile.TemporaryDirectory(prefix="tidegate-endure-") as folder,
        on_terminal(*columns) as progress,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        bar = progress.add_task("servers and workers are started", total=plan.seconds)

        def show(at_s: float, doing: str, calls: int, failures: int) -> None:
            described = f"{calls} calls, {failures} failures{doing and f': {doing}'}"
            progress.update(bar, completed=at_s, description=described)

        try:
            outcome = runner.run(running.run_endurance(plan, Path(folder), show))
        except running.CannotRun as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    console = Console()
    console.print(table(outcome))
    for line in notes(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    write_json(outcome, json_file)
    if markdown_file is not None:
        markdown_file.write_text(markdown(outcome))
    if outcome.wrong:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this subcommand to `app`."""
    app.command()(endure)
