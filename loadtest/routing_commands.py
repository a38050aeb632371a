"""The command line of the routing bench on real sockets."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
import uvloop
from rich.console import Console

from loadtest import bench, routing_bench
from loadtest.conversations import WorkloadName
from loadtest.report import write_json
from loadtest.steps import doing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadtest.proxies import Proxy

_ROUTERS = "tidegate,sglang-router,vllm-router,power of two,round robin,least in flight"


def route_bench(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    routers: Annotated[str, typer.Option(help="Which, by name, with commas.")] = _ROUTERS,
    workloads: Annotated[str, typer.Option(help="Which, by name, with commas.")] = "chat,little",
    load: Annotated[float, typer.Option(help="Share of what the workers can read.", min=0.05, max=2)] = 0.65,
    seconds: Annotated[float, typer.Option(help="For how long conversations begin.", min=1)] = 60.0,
    rounds: Annotated[int, typer.Option(help="Times each router is measured.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="The same seed, the same calls.")] = 1,
    peers_path: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with the peers' executables; may be given more than once."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the README's tables here.")
    ] = None,
) -> None:
    """Compare routers on real sockets, in front of eight simulated workers of three speeds."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does, workers and all
    known = {each.name: each for each in routing_bench.routers(peers_path or [])}
    chosen: list[Proxy] = [known[name] for name in _names("--routers", routers, known)]
    kinds = {name: name for name in get_args(WorkloadName)}
    cores = bench.cores(bench.Plan())
    plan = routing_bench.Plan(
        load=load,
        seconds=seconds,
        rounds=rounds,
        seed=seed,
        workloads=tuple(kinds[name] for name in _names("--workloads", workloads, kinds)),
        server_core=cores.server_core,
        load_core=cores.load_core,
    )
    with (
        doing() as say,
        tempfile.TemporaryDirectory(prefix="tidegate-routing-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        outcome = runner.run(routing_bench.run_bench(plan, chosen, Path(folder), say))
    console = Console()
    for table in routing_bench.tables(outcome):
        console.print(table)
    for line in routing_bench.notes(outcome):
        console.print(line, markup=False, highlight=False)
    write_json(outcome, json_file)
    if markdown_file is not None:
        markdown_file.write_text(routing_bench.markdown(outcome))


def _names(option: str, given: str, known: Mapping[str, object]) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    if unknown := set(names) - set(known):
        raise typer.BadParameter(f"{option}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return names


def register(app: typer.Typer) -> None:
    """Add these subcommands to `app`."""
    app.command()(route_bench)
