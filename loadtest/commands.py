"""The command line of the load generator proper: `run`, `bench`, `soak` and `mock`."""

from __future__ import annotations

import asyncio
import random
import shlex
import signal
import tempfile
import threading
from contextlib import contextmanager
from itertools import islice
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop
from rich.console import Console
from rich.live import Live

from loadtest import bench as benching
from loadtest import soak as soaking
from loadtest import wrk
from loadtest.arrivals import constant, poisson, until
from loadtest.client import Load
from loadtest.comparison import comparison_table, markdown, notes
from loadtest.mock import run_mock
from loadtest.proxies import DidNotStartError, every_proxy, pinned
from loadtest.report import latency_table, summarise, write_json
from loadtest.steps import doing
from loadtest.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from loadtest.proxies import Proxy

_PROGRESS_S = 0.5
_ALL_TARGETS = "mock,tidegate,nginx,sglang-router,vllm-router,litellm"


def mock(
    model: Annotated[str, typer.Option(help="The name it answers with.")] = "mock",
    ports: Annotated[int, typer.Option(help="How many to listen on.", min=1)] = 1,
    port: Annotated[int, typer.Option(help="The first; 0: any free ones.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    chunks_per_s: Annotated[
        float, typer.Option(help="Pace of streams whose prompt begins with `paced: `.")
    ] = 50.0,
) -> None:
    """An upstream that answers at once."""
    run_mock(model, ports, port, host, chunks_per_s)


def run(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    url: Annotated[str, typer.Option(help="Base URL, ending in /v1.")],
    model: Annotated[str, typer.Option(help="Model to ask for.")],
    key: Annotated[str, typer.Option(help="API key.", envvar="OPENAI_API_KEY")] = "none",
    rate: Annotated[float | None, typer.Option(help="Open loop: calls per second.", min=0.001)] = None,
    constant_gaps: Annotated[bool, typer.Option("--constant", help="Evenly spaced, not Poisson.")] = False,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: calls under way.", min=1)] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds.", min=0.1)] = None,
    requests: Annotated[int | None, typer.Option(help="Calls in all.", min=1)] = None,
    stream: Annotated[bool, typer.Option(help="Ask for streams.")] = True,
    prompt_tokens: Annotated[int, typer.Option(help="Words in a prompt, about a token each.", min=1)] = 200,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 64,
    abort_fraction: Annotated[
        float, typer.Option(help="Part of the clients that leave early.", min=0, max=1)
    ] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds a whole call may take.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed, the same run.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Send calls at a server and measure what they meet with."""
    if (rate is None) == (concurrency is None):
        raise typer.BadParameter("give either --rate (open loop) or --concurrency (closed loop)")
    if duration is None and requests is None:
        duration = 30.0
    workload = Workload(
        url=url,
        key=key,
        model=model,
        stream=stream,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        abort_fraction=abort_fraction,
        timeout_s=timeout,
        seed=seed,
    )

    async def drive(load: Load) -> None:
        if rate is not None:
            arrivals = constant(rate) if constant_gaps else poisson(rate, random.Random(seed))
            await load.open_loop(islice(until(duration or inf, arrivals), requests))
        else:
            await load.closed_loop(concurrency or 1, seconds=duration, calls=requests)

    console = Console()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            load, elapsed_s = runner.run(_watched(workload, drive, console))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    summary = summarise(load.samples, elapsed_s)
    console.print(latency_table(summary))
    write_json(summary, json_file)
    raise typer.Exit(0 if summary.ok or summary.aborted else 1)


async def _watched(
    workload: Workload, drive: Callable[[Load], Coroutine[None, None, None]], console: Console
) -> tuple[Load, float]:
    """Drive the load, with a line about it while it runs where somebody is watching."""
    async with Load(workload) as load:
        running = asyncio.ensure_future(drive(load))
        if console.is_terminal:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                while not running.done():
                    await asyncio.wait([running], timeout=_PROGRESS_S)
                    live.update(progress_line(load), refresh=True)
        await running
        return load, load.now_s()


def progress_line(load: Load) -> str:
    """How a run stands."""
    elapsed_s = load.now_s()
    return (
        f"{elapsed_s:6.1f} s  {len(load.samples)} calls ({len(load.samples) / elapsed_s:.0f}/s), {load.inflight} under way, "
        f"{load.errors} errors, {load.tokens} tokens ({load.tokens / elapsed_s:.0f}/s)"
    )


def bench(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    targets: Annotated[str, typer.Option(help="Which, by name, with commas.")] = _ALL_TARGETS,
    duration: Annotated[float, typer.Option(help="Seconds of each measurement.", min=1)] = 10.0,
    rounds: Annotated[int, typer.Option(help="Times each server is measured.", min=1)] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One round of 2 s: a look, not a result.")] = False,
    endpoints: Annotated[int, typer.Option(help="Upstreams to choose from.", min=1)] = 8,
    served_model: Annotated[
        str, typer.Option(help="The model's name at the upstreams; the public one is `bench`.")
    ] = benching.MODEL,
    peers_path: Annotated[
        list[Path] | None,
        typer.Option(help="Folder with the peers' executables; may be given more than once."),
    ] = None,
    with_wrk: Annotated[bool, typer.Option("--wrk/--no-wrk", help="Use wrk where it is on PATH.")] = True,
    pinned: Annotated[
        bool, typer.Option("--pinned/--unpinned", help="Whether server and load have a core each.")
    ] = True,
    hold: Annotated[
        bool, typer.Option("--hold", help="Measure nothing; keep it all running for a profiler.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured here.")] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the README's table here.")
    ] = None,
) -> None:
    """Measure what a gateway costs, beside a bare proxy and its peers."""
    signal.signal(signal.SIGTERM, _interrupt)
    plan = benching.Plan(
        duration_s=2.0 if quick else duration,
        rounds=1 if quick else rounds,
        endpoints=endpoints,
        served_model=served_model,
        with_wrk=with_wrk,
        server_core=None,
        load_core=None,
    )
    plan = benching.cores(plan) if pinned else plan
    console = Console()
    names = [name.strip() for name in targets.split(",")]
    chosen = chosen_by_name([name for name in names if name != "mock"], peers_path or [])
    with (
        without_traceback(),
        tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder,
        benching.site(plan, Path(folder)) as place,
    ):
        if hold:
            _hold(place, chosen, console)
            return
        with doing() as say:
            comparison = benching.run_bench(place, chosen, direct="mock" in names, say=say)
    console.print(comparison_table(comparison))
    for line in notes(comparison):
        console.print(line, markup=False, highlight=False)
    write_json(comparison, json_file)
    if markdown_file is not None:
        markdown_file.write_text(markdown(comparison))


def chosen_by_name(names: Sequence[str], folders: Sequence[Path] = ()) -> list[Proxy]:
    """The servers of these names. Raises BadParameter for what is none of them."""
    known = {proxy.name: proxy for proxy in every_proxy(folders)}
    if unknown := sorted(set(names) - known.keys()):
        raise typer.BadParameter(f"no such target: {', '.join(unknown)}; there are mock, {', '.join(known)}")
    return [known[name] for name in names]


def _hold(place: benching.Site, chosen: list[Proxy], console: Console) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with benching.held(place, chosen) as targets:
        for target in targets:
            console.print(
                f"{target.name}: PID {target.pid}, {target.url}, key {target.key}",
                markup=False,
                soft_wrap=True,
            )
            for stream in (False, True):
                script = benching.write_script(place, target, stream=stream)
                line = shlex.join(
                    wrk.command(script, target.url, connections=benching.CONNECTIONS, seconds=30)
                )
                pin = "" if place.plan.load_core is None else f"taskset -c {place.plan.load_core} "
                console.print(f"  {pin}{line}", markup=False, highlight=False, soft_wrap=True)
        console.print("Ctrl-C ends it.")
        stop.wait()


def soak(
    *,
    calls: Annotated[int, typer.Option(help="How many in all.", min=1000)] = 200_000,
    abort_fraction: Annotated[
        float, typer.Option(help="Part of the clients that leave early.", min=0, max=1)
    ] = 0.05,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the verdict here.")] = None,
) -> None:
    """Watch the gateway's memory and descriptors over many calls; exit 1 if it keeps what it should let go."""
    signal.signal(signal.SIGTERM, _interrupt)
    plan = benching.cores(benching.Plan())
    console = Console()
    [proxy] = [each for each in every_proxy([]) if each.name == "tidegate"]
    with (
        without_traceback(),
        tempfile.TemporaryDirectory(prefix="tidegate-soak-") as folder,
        benching.site(plan, Path(folder)) as place,
        benching.started(place, proxy, "tidegate") as target,
        pinned(plan.load_core),
        doing() as say,
    ):
        verdict = soaking.run_soak(target, calls, abort_fraction, say)
    for line in soaking.lines(verdict):
        console.print(line, markup=False, highlight=False)
    write_json(verdict, json_file)
    raise typer.Exit(1 if verdict.faults else 0)


@contextmanager
def without_traceback() -> Iterator[None]:
    """What did not start is a message with the end of its log, not a failure of the bench."""
    try:
        yield
    except DidNotStartError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error


def _interrupt(*_: object) -> None:
    """SIGTERM ends a bench as Ctrl-C does: by way of everything that stops what was started."""
    raise KeyboardInterrupt


def register(app: typer.Typer) -> None:
    """Add these subcommands to `app`."""
    for command in (run, bench, soak):
        app.command()(command)
    app.command(hidden=True)(mock)
