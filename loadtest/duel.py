"""Gateways that differ little, side by side: what an option costs, or what a change of the code does.

A shared machine's speed changes by a third from one second to the next, more than such differences are. So all of them
run at once, each is asked for a second while the others idle, in turn, and ratios are taken within a turn, between
seconds that lie next to each other. Their median over many turns holds still where a bench's rounds do not, and their
quartiles say how still.
"""

from __future__ import annotations

import sys
from statistics import quantiles
from typing import TYPE_CHECKING

from msgspec import Struct
from rich.table import Table

from loadtest import bench, procfs, wrk
from loadtest.proxies import DidNotStartError, Tidegate, pinned
from loadtest.report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadtest.proxies import Proxy, Running

KINDS = {False: "JSON reply", True: "burst stream"}
"""By whether it streams."""
_SLICE_S = 1.0


class Checkout(Tidegate):
    """Tidegate as another folder has it, with the packages of this environment."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.name = folder.absolute().name
        # -P: else the folder that this was started in would come before it.
        self.program = (sys.executable, "-P", "-m", "gateway")
        self.environment = {"PYTHONPATH": str(folder.resolve())}


class Quartiles(Struct, frozen=True):
    low: float
    middle: float
    high: float


class Duel(Struct, frozen=True):
    """Processor time of each reply in microseconds, by kind of reply and by server, turn by turn."""

    cpu_us: dict[str, dict[str, list[float]]]
    conditions: str

    def times_us(self, kind: str, name: str) -> Quartiles:
        return quartiles(self.cpu_us[kind][name])

    def ratios(self, kind: str, name: str) -> Quartiles:
        """To the first server's time in the same turn."""
        of_kind = self.cpu_us[kind]
        first = next(iter(of_kind.values()))
        return quartiles([own / other for own, other in zip(of_kind[name], first, strict=True)])


def quartiles(values: Sequence[float]) -> Quartiles:
    """Of one value: itself, three times."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*quantiles(values, n=4, method="inclusive"))


def run_duel(place: bench.Site, proxies: Sequence[Proxy], turns: int, say: Callable[[str], None]) -> Duel:
    """All turns of all kinds. Raises DidNotStartError, also where a server answers otherwise than the mock does."""
    cpu_us: dict[str, dict[str, list[float]]] = {}
    with bench.held(place, proxies) as targets, pinned(place.plan.load_core):
        for stream, kind in KINDS.items():
            for target in targets:
                bench.check(target, stream=stream)
                _slice_us(place, target, stream=stream)  # a first time that does not count
            turn_by_turn = cpu_us[kind] = {target.name: [] for target in targets}
            for turn in range(turns):
                say(f"{kind}, turn {turn + 1} of {turns}")
                for target in targets:
                    turn_by_turn[target.name].append(_slice_us(place, target, stream=stream))
    return Duel(
        cpu_us,
        f"All at once on one core, load and mock on another, {turns} turns of {_SLICE_S:g} s each, "
        f"wrk -t1 -c{bench.CONNECTIONS}, {place.plan.endpoints} endpoints. Processor time in us: lower quartile, median; "
        f"x: against {targets[0].name} in the same turn, median (quartiles).",
    )


def _slice_us(place: bench.Site, target: Running, *, stream: bool) -> float:
    script = bench.write_script(place, target, stream=stream)
    used_s = procfs.cpu_s(target.pid)
    result = wrk.run(script, target.url, connections=bench.CONNECTIONS, seconds=_SLICE_S)
    if result.problem:
        raise DidNotStartError(f"{target.name}: {result.problem}")
    return (procfs.cpu_s(target.pid) - used_s) / result.requests * 1e6


def rows(duel: Duel) -> tuple[list[str], list[list[str]]]:
    """The table as text: its head, and a row a server."""
    head = ["", *(title for kind in duel.cpu_us for title in (f"us of a {kind}", "x"))]
    body = []
    for name in next(iter(duel.cpu_us.values())):
        row = [name]
        for kind in duel.cpu_us:
            time, ratio = duel.times_us(kind, name), duel.ratios(kind, name)
            row += [
                f"{time.low:,.0f}, {time.middle:,.0f}",
                f"{ratio.middle:.2f} ({ratio.low:.2f} to {ratio.high:.2f})",
            ]
        body.append(row)
    return head, body


def table(duel: Duel) -> Table:
    head, body = rows(duel)
    shown = Table(caption=duel.conditions, caption_justify="left")
    for number, title in enumerate(head):
        shown.add_column(title, justify="right" if number else "left", no_wrap=not number)
    for row in body:
        shown.add_row(*row)
    return shown


def markdown(duel: Duel) -> str:
    return markdown_table(*rows(duel)) + f"\n\n{duel.conditions}\n"
