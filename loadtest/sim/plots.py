"""Pictures of simulated runs: how times to first token are spread, and how much is under way over time.

matplotlib is an extra (`plots`) and is imported only to draw.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from loadtest.sim.outcome import cdf

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loadtest.sim.scene import Result


class NoMatplotlibError(Exception):
    """Drawing was asked for, and matplotlib is not installed."""

    def __init__(self) -> None:
        super().__init__("plots need matplotlib: pip install 'tidegate[plots]'")


def require() -> None:
    """Raise `NoMatplotlibError` where nothing can be drawn."""
    if find_spec("matplotlib") is None:
        raise NoMatplotlibError


def draw(folder: Path, results: Mapping[str, Result], title: str, suffix: str) -> list[Path]:
    """Write the two pictures into `folder`, as `suffix` ("svg", "png") says; gives their paths."""
    require()
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra, and slow to import

    folder.mkdir(parents=True, exist_ok=True)
    spread, over_time = Figure(figsize=(8, 5)), Figure(figsize=(8, 5))
    left, right = spread.add_subplot(), over_time.add_subplot()
    for name, result in results.items():
        ttfts = [done.ttft_s for done in result.done if done.ttft_s is not None]
        if ttfts:
            left.plot(*cdf(ttfts), label=name)
        right.plot(
            [sample.at_s / 60 for sample in result.samples],
            [sample.inflight for sample in result.samples],
            label=name,
        )
    left.set(title=title, xscale="log", xlabel="time to first token, s", ylabel="share of calls")
    right.set(title=title, yscale="symlog", xlabel="minutes", ylabel="calls under way")
    paths = []
    for name, figure, axes in (("ttft", spread, left), ("load", over_time, right)):
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        path = folder / f"{name}.{suffix}"
        figure.savefig(path, bbox_inches="tight")
        paths.append(path)
    return paths
