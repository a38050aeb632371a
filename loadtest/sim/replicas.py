"""How nearly several gateways that share a load route as well as one: one line for each number and each way to gossip."""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.sim.outcome import Outcome

ASKED: tuple[tuple[int, float | None], ...] = (
    (1, None),
    *((count, every_s) for count in (4, 16) for every_s in (0.05, 0.5, None)),
)
"""Gateways, and the seconds between two batches that each tells the others."""

COLUMNS = ["gateways", "gossip", "TTFT p50", "p99", "p99 to one", "mean", "in time", "hits"]


def row(count: int, every_s: float | None, outcomes: Sequence[Outcome], one: Sequence[Outcome]) -> list[str]:
    """Percentiles in seconds, their geometric mean over the seeds; of shares, the mean. `one` is a gateway alone."""
    p50_s, p99_s = (
        _geometric([getattr(each, name) for each in outcomes]) for name in ("ttft_p50_s", "ttft_p99_s")
    )
    to_one = p99_s / _geometric([each.ttft_p99_s for each in one])
    mean_s = _geometric([each.ttft_mean_s for each in outcomes])
    shares = (
        sum(getattr(each, name) for each in outcomes) / len(outcomes) for name in ("within_slo", "hit_rate")
    )
    gossip = "none" if every_s is None else f"every {every_s:g} s"
    return [
        str(count),
        "" if count == 1 else gossip,
        *(f"{each:.3g}" for each in (p50_s, p99_s, to_one, mean_s)),
        *(f"{each:.1%}" for each in shares),
    ]


def _geometric(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))
