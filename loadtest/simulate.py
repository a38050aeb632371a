"""`simulate`: Tidegate's routing beside its peers' policies over a modelled fleet, on a virtual clock.

An hour of twelve workers takes some seconds, so routing can be judged over many loads and mishaps before it meets a
real one. It is a model: it says which policy copes better, not how many milliseconds your fleet will take.
"""

from __future__ import annotations

import random
from functools import partial
from itertools import product
from pathlib import Path  # noqa: TC003 - typer reads annotations
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from msgspec import Struct
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.table import Table

from loadtest.report import markdown_table
from loadtest.sim import calls, fleet, hiding, peers, plain, replicas, targets
from loadtest.sim.outcome import markdown, outcome, table
from loadtest.sim.plots import NoMatplotlibError, draw, require
from loadtest.sim.run import simulate
from loadtest.sim.scene import Scene
from loadtest.sim.targets import HEDGING, HIDING, OURS, RESUMING
from loadtest.sim.tidegate import Tidegate
from loadtest.steps import on_terminal, steps
from routing.types import Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from loadtest.sim.calls import Workload
    from loadtest.sim.outcome import Outcome
    from loadtest.sim.policy import Place, Policy
    from loadtest.sim.scene import Result
    from loadtest.sim.targets import Scenario

PEERS: dict[str, Callable[[Place], Policy]] = {
    "random": plain.RandomChoice,
    "round-robin": plain.RoundRobin,
    "power-of-two": plain.PowerOfTwo,
    "least-inflight": plain.LeastInFlight,
    "least-tokens": plain.LeastPendingTokens,
    "chwbl": plain.Chwbl,
    "sglang": peers.SglangCacheAware,
    "sglang-library": peers.SglangLibrary,
    "dynamo": peers.Dynamo,
    "llm-d": peers.LlmD,
    "aibrix": peers.Aibrix,
    "production-stack": peers.ProductionStack,
    "smetric": peers.Smetric,
}

OURS_HIDING = {
    OURS: (False, False),
    HEDGING: (True, False),
    RESUMING: (False, True),
    HIDING: (True, True),
}
"""Tidegate by whether it hedges, and resumes. By itself it does neither, like its peers: what is compared is routing."""

TIERS = {"priority": (1.0, 100.0), "default": (5.0, 4.0), "flex": (600.0, 0.0)}
"""Target of the time to first token in seconds, and what an hour of waiting is worth in USD: the gateway's defaults."""

WARM_UP_S = 120.0

_ALL = ",".join([OURS, *PEERS])
_KNOWN = (*OURS_HIDING, *PEERS)
_WORKLOADS = (*calls.GENERATED, "trace")


class Setting(Struct, frozen=True):
    """One simulation, as asked for."""

    workload: str = "chat"
    trace: Path | None = None
    load: float = 0.75
    fleet: str = "unequal"
    churn: str = "20min"
    minutes: float = 15.0
    seed: int = 1
    replicas: int = 1
    gossip_s: float | None = None
    misdeclared: float = 0.0
    scrape_s: float = 0.05
    wholes: float = 0.0
    """Share of the calls whose replies are wanted in one piece."""

    def check(self) -> None:
        one_of("--workload", self.workload, _WORKLOADS)
        one_of("--fleet", self.fleet, ("unequal", "equal", "mixed"))
        one_of("--churn", self.churn, fleet.CHURNS)
        if (self.workload == "trace") != (self.trace is not None):
            raise typer.BadParameter("--workload trace and --trace PATH belong together")

    @property
    def title(self) -> str:
        workload = self.workload if self.trace is None else self.trace.stem
        parts = [f"{workload} at {self.load:.0%} of an {self.fleet} fleet", f"churn {self.churn}"]
        parts += [f"{self.replicas} replicas"] if self.replicas > 1 else []
        parts += [f"gossip every {self.gossip_s:g} s"] if self.gossip_s is not None else []
        parts += [f"{self.misdeclared:.0%} declared wrongly"] if self.misdeclared else []
        return ", ".join([*parts, f"{self.minutes:g} min, seed {self.seed}"])


class Outputs(Struct, frozen=True):
    """Where to write what, beside the table that is printed."""

    json: Path | None
    markdown: Path | None
    plots: Path | None
    plot_format: str

    def check(self) -> None:
        one_of("--plot-format", self.plot_format, ("svg", "png"))
        if self.plots is not None:
            try:
                require()
            except NoMatplotlibError as error:
                raise typer.BadParameter(str(error)) from error


def simulated_tier(name: str, max_ttft_s: float | None = None, usd_per_hour: float | None = None) -> Tier:
    """A tier, or one like it with another target or another value of waiting."""
    usual_s, usual_usd = TIERS[name]
    max_ttft_s = usual_s if max_ttft_s is None else max_ttft_s
    usd_per_hour = usual_usd if usd_per_hour is None else usd_per_hour
    return Tier("default", max_ttft_s, usd_per_hour * 1e9 / 3600)


def scene_of(setting: Setting) -> tuple[Scene, Workload]:
    """The fleet, its calls and its mishaps: each from dice of its own, so that one does not depend on the other."""
    seconds = setting.minutes * 60
    dice = partial(random.Random, setting.seed)
    nodes = fleet.equal() if setting.fleet == "equal" else fleet.unequal(dice())
    if setting.trace is not None:
        workload = calls.replayed(setting.trace, nodes, setting.load, seconds, dice())
    else:
        workload = calls.generated(setting.workload, nodes, setting.load, seconds, dice())
    churn = fleet.CHURNS[setting.churn]
    mishaps = fleet.mishaps(churn, len(nodes), seconds, random.Random(setting.seed + 1))
    workload = calls.with_wholes(workload, setting.wholes, random.Random(setting.seed + 2))
    scene = Scene(
        nodes=fleet.misdeclared(nodes, setting.misdeclared, dice()) if setting.misdeclared else nodes,
        hosted=fleet.HOSTED if setting.fleet == "mixed" else (),
        calls=workload.calls,
        page_tokens=workload.page_tokens,
        mishaps=mishaps,
        churn=churn,
        seed=setting.seed,
        replicas=setting.replicas,
        gossip_s=setting.gossip_s,
        scrape_s=setting.scrape_s,
    )
    return scene, workload


def without_hosted(scene: Scene) -> Scene:
    """For the peers: none of their policies knows of prices, so none can tell when a hosted endpoint is worth it."""
    return msgspec.structs.replace(scene, hosted=())


def simulate_all(
    setting: Setting, makers: Mapping[str, Callable[[Place], Policy]], console: Console
) -> tuple[dict[str, Outcome], dict[str, Result]]:
    """Each policy on the same calls and mishaps."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("calls")
    outcomes: dict[str, Outcome] = {}
    results: dict[str, Result] = {}
    with on_terminal(*columns) as progress:
        task = progress.add_task("calls", total=None)
        scene, workload = scene_of(setting)
        warm_up_s = min(WARM_UP_S, workload.calls[-1].at_s / 4)
        progress.update(task, total=len(scene.calls))
        console.print(
            f"{setting.title}: {len(scene.calls)} calls, {workload.per_s:.3g}/s of {workload.capacity_per_s:.3g}/s"
        )
        for name, make in makers.items():
            progress.update(task, description=name, completed=0)

            def show(done: int) -> None:
                progress.update(task, completed=done)

            seen = without_hosted(scene) if name in PEERS else scene
            results[name] = simulate(seen, make, show)
            outcomes[name] = outcome(results[name], seen, warm_up_s)
    return outcomes, results


def makers_for(
    names: list[str], tier: str, max_ttft_s: float | None = None, values: Sequence[float] = ()
) -> dict[str, Callable[[Place], Policy]]:
    """The policies asked for; or Tidegate's alone, once for every value of waiting, where there are any."""
    if unknown := set(names) - {*_KNOWN}:
        raise typer.BadParameter(
            f"no such policy: {', '.join(sorted(unknown))}; there are {', '.join(_KNOWN)}"
        )
    if values:
        return {
            f"{value:g} USD/h": partial(Tidegate, tier=simulated_tier(tier, max_ttft_s, value))
            for value in values
        }
    ours_tier = simulated_tier(tier, max_ttft_s)
    return {name: PEERS[name] if name in PEERS else ours(name, ours_tier) for name in names}


def ours(name: str, tier: Tier) -> Callable[[Place], Policy]:
    """Tidegate, hiding churn as its name says."""
    hedges, resumes = OURS_HIDING[name]
    return partial(Tidegate, tier=tier, hedges=hedges, resumes=resumes)


def simulate_command(  # noqa: PLR0913 - each argument is an option of the command line
    *,
    workload: Annotated[str, typer.Option(help=f"One of {', '.join(_WORKLOADS)}.")] = "chat",
    trace: Annotated[Path | None, typer.Option(help="A trace in Mooncake's format, to replay.")] = None,
    load: Annotated[float, typer.Option(help="Share of what the fleet can do.", min=0.01)] = 0.75,
    fleet_name: Annotated[
        str, typer.Option("--fleet", help="unequal, equal, or mixed (with hosted).")
    ] = "unequal",
    churn: Annotated[str, typer.Option(help=f"One of {', '.join(fleet.CHURNS)}.")] = "20min",
    minutes: Annotated[float, typer.Option(help="Of simulated time.", min=0.5)] = 15.0,
    policies: Annotated[str, typer.Option(help="Which, by name, with commas.")] = _ALL,
    tier: Annotated[str, typer.Option(help=f"Of all calls: {', '.join(TIERS)}.")] = "default",
    max_ttft: Annotated[
        float | None, typer.Option(help="Its target, seconds, instead of the usual.", min=0.01)
    ] = None,
    value_of_waiting: Annotated[
        str | None, typer.Option(help="USD an hour, with commas: Tidegate alone, once for each.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Gateways that share the load.", min=1)] = 1,
    gossip_s: Annotated[
        float | None, typer.Option(help="Between batches that they tell each other; none: nothing.", min=0.01)
    ] = None,
    misdeclared: Annotated[
        float, typer.Option(help="Share of workers with a wrong GPU.", min=0, max=1)
    ] = 0.0,
    scrape_s: Annotated[float, typer.Option(help="Between scrapes, for peers that use metrics.")] = 0.05,
    seed: Annotated[int, typer.Option(help="The same seed, the same run.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write a table here.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write pictures into this folder.")] = None,
    plot_format: Annotated[str, typer.Option(help="svg or png.")] = "svg",
) -> None:
    """Compare routing policies over a modelled fleet, on a virtual clock."""
    setting = Setting(
        workload, trace, load, fleet_name, churn, minutes, seed, replicas, gossip_s, misdeclared, scrape_s
    )
    setting.check()
    one_of("--tier", tier, TIERS)
    values = [float(value) for value in value_of_waiting.split(",")] if value_of_waiting else []
    makers = makers_for([name.strip() for name in policies.split(",")], tier, max_ttft, values)
    compare(setting, makers, Outputs(json_file, markdown_file, plots, plot_format))


def compare(setting: Setting, makers: Mapping[str, Callable[[Place], Policy]], outputs: Outputs) -> None:
    """Simulate, print the table, and write what is asked for."""
    outputs.check()
    console = Console()
    outcomes, results = simulate_all(setting, makers, console)
    console.print(table(setting.title, outcomes))
    if outputs.json is not None:
        outputs.json.write_bytes(report(setting, outcomes))
    if outputs.markdown is not None:
        outputs.markdown.write_text(markdown(outcomes) + "\n")
    if outputs.plots is not None:
        for path in draw(outputs.plots, results, setting.title, outputs.plot_format):
            console.print(f"wrote {path}", markup=False, highlight=False)


def report(setting: Setting, outcomes: Mapping[str, Outcome]) -> bytes:
    """Everything measured, as JSON."""
    figures = {"setting": setting, "outcomes": outcomes}
    return msgspec.json.format(msgspec.json.encode(figures, enc_hook=str)) + b"\n"


def one_of(option: str, given: str, known: Iterable[str]) -> None:
    names = list(known)
    if given not in names:
        raise typer.BadParameter(f"{option}: {given} is none of {', '.join(names)}")


class Runs:
    """Simulations for the targets, each made once."""

    def __init__(self, minutes: float, trace: Path | None) -> None:
        self._minutes = minutes
        self._trace = trace
        self._scenes: dict[tuple[Scenario, int], Scene] = {}
        self._outcomes: dict[tuple[Scenario, int, str], Outcome] = {}

    def __call__(self, scenario: Scenario, seed: int, policy: str) -> Outcome:
        key = scenario, seed, policy
        if key not in self._outcomes:
            options = dict(scenario.options)
            target_s, value = (options.pop(name, None) for name in ("max_ttft", "value_of_waiting"))
            tier = simulated_tier(
                "default", *(None if each is None else float(each) for each in (target_s, value))
            )
            scene = self._scene(scenario, seed, options)
            warm_up_s = min(WARM_UP_S, scene.calls[-1].at_s / 4)
            if policy in OURS_HIDING:
                result = simulate(scene, ours(policy, tier))
            else:
                scene = without_hosted(scene)
                result = simulate(scene, PEERS[policy])
            self._outcomes[key] = outcome(result, scene, warm_up_s)
        return self._outcomes[key]

    def _scene(self, scenario: Scenario, seed: int, options: dict[str, str | float]) -> Scene:
        if (scenario, seed) not in self._scenes:
            trace = self._trace if options.get("workload") == "trace" else None
            given: dict[str, Any] = {"minutes": self._minutes, **options, "seed": seed, "trace": trace}
            setting = Setting(**given)
            self._scenes[scenario, seed], _ = scene_of(setting)
        return self._scenes[scenario, seed]


def _tell(columns: Sequence[str], rows: Sequence[Sequence[str]], markdown_file: Path | None) -> None:
    """Print a table, and write it down where that is asked for."""
    drawn = Table(*columns, box=SIMPLE)
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)
    if markdown_file is not None:
        markdown_file.write_text(markdown_table(columns, rows) + "\n")


def targets_command(
    *,
    trace: Annotated[
        Path | None, typer.Option(help="A trace in Mooncake's format; none: without it.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.", min=0)] = 1,
    minutes: Annotated[float, typer.Option(help="Of simulated time in each run.", min=0.5)] = 15.0,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write a table here.")] = None,
) -> None:
    """Ask of the simulation what routing is to reach; exit 1 if it does not."""
    asked = [each for each in targets.TARGETS if trace is not None or each.scenario != targets.TRACE]
    run = Runs(minutes, trace)
    with steps() as track:
        answers = [
            targets.ask(each, range(first_seed, first_seed + seeds), run) for each in track(asked, "targets")
        ]
    _tell(*targets.rows(answers), markdown_file)
    raise typer.Exit(0 if all(answer.met for answer in answers) else 1)


def churn_command(
    *,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    minutes: Annotated[float, typer.Option(help="Of simulated time in each run.", min=0.5)] = 15.0,
    load: Annotated[float, typer.Option(help="Share of what the fleet can do.", min=0.01)] = 0.75,
    wholes: Annotated[
        float, typer.Option(help="Share of the calls whose replies are wanted in one piece.", min=0, max=1)
    ] = 0.5,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write a table here.")] = None,
) -> None:
    """What hedging and resuming do for the clients of an unequal fleet, by how often its workers leave."""
    run = Runs(minutes, None)
    found = []
    with steps() as track:
        for churn, name in track([*product(hiding.CHURNS, OURS_HIDING)], "rows"):
            scenario = targets.Scenario((("churn", churn), ("load", load), ("wholes", wholes)))
            outcomes = [run(scenario, seed, name) for seed in range(1, seeds + 1)]
            found.append(hiding.row(churn, name, outcomes))
    _tell(hiding.COLUMNS, found, markdown_file)


def replicas_command(
    *,
    seeds: Annotated[int, typer.Option(help="How many.", min=1)] = 3,
    minutes: Annotated[float, typer.Option(help="Of simulated time in each run.", min=0.5)] = 15.0,
    load: Annotated[float, typer.Option(help="Share of what the fleet can do.", min=0.01)] = 0.75,
    markdown_file: Annotated[Path | None, typer.Option("--markdown", help="Write a table here.")] = None,
) -> None:
    """How nearly 4 and 16 gateways route as well as one, by how often they tell each other what they do."""
    run = Runs(minutes, None)
    found, outcomes = [], {}
    with steps() as track:
        for count, every_s in track([*replicas.ASKED], "rows"):
            options: tuple[tuple[str, str | float], ...] = (("load", load), ("replicas", count))
            scenario = targets.Scenario(options if every_s is None else (*options, ("gossip_s", every_s)))
            outcomes[count, every_s] = [run(scenario, seed, OURS) for seed in range(1, seeds + 1)]
            found.append(replicas.row(count, every_s, outcomes[count, every_s], outcomes[1, None]))
    _tell(replicas.COLUMNS, found, markdown_file)


def register(app: typer.Typer) -> None:
    """Add these subcommands to `app`."""
    app.command("simulate")(simulate_command)
    app.command("simulate-targets")(targets_command)
    app.command("simulate-churn")(churn_command)
    app.command("simulate-replicas")(replicas_command)
