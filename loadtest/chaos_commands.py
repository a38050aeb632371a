"""The command line of the chaos run."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from loadtest import chaos as running
from loadtest.proxies import LiteLlm, Proxy, RustRouter, Tidegate
from loadtest.report import write_json
from loadtest.steps import doing


def chaos(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    seconds: Annotated[float, typer.Option(help="For how long calls begin.", min=5)] = 120.0,
    clients: Annotated[int, typer.Option(help="Calls under way at once.", min=1)] = 300,
    workers: Annotated[int, typer.Option(help="Simulated workers.", min=4)] = 8,
    every: Annotated[float, typer.Option(help="Seconds between two mishaps.", min=0.5)] = 4.0,
    seed: Annotated[int, typer.Option(help="The same seed, the same schedule.")] = 1,
    routers: Annotated[str, typer.Option(help="Which, by name, with commas.")] = "tidegate",
    peers_path: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with the peers' executables; may be given more than once."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all that was seen here.")] = None,
) -> None:
    """Kill, stall, slow down and take away workers under many calls; exit 1 where Tidegate let a client notice."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does, workers and all
    plan = running.Plan(seconds=seconds, clients=clients, workers=workers, every_s=every, seed=seed)
    folders = peers_path or []
    known: dict[str, Proxy] = {
        "tidegate": Tidegate(plan.gateway_timeouts),
        "sglang-router": RustRouter("sglang-router", ("launch",), folders),
        "vllm-router": RustRouter("vllm-router", (), folders),
        "litellm": LiteLlm(folders),
    }
    names = [name.strip() for name in routers.split(",")]
    if unknown := set(names) - known.keys():
        raise typer.BadParameter(f"--routers: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    with (
        doing() as say,
        tempfile.TemporaryDirectory(prefix="tidegate-chaos-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        outcome = runner.run(running.run_chaos(plan, [known[name] for name in names], Path(folder), say))
    console = Console()
    console.print(running.table(outcome), markup=False, highlight=False, soft_wrap=True)
    for line in running.notes(outcome):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    write_json(outcome, json_file)
    if any(each.failures or each.left_behind for each in outcome.results if each.router == "tidegate"):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add this subcommand to `app`."""
    app.command()(chaos)
