"""What hiding churn is worth: one line for each way to do it, at each level of churn, over several seeds."""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.sim.outcome import Outcome

CHURNS = ("slow", "60min", "20min")
"""Of `fleet.CHURNS`: only slow at times, or with mean sessions as long as that."""

COLUMNS = [
    "churn",
    "policy",
    "TTFT p50",
    "p99",
    "p99.9",
    "E2E p99",
    "lost",
    "hedged",
    "resumed",
    "moved",
    "anew",
    "wasted",
]


def row(churn: str, name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """Percentiles in seconds, their geometric mean over the seeds; of shares, the mean."""
    p50_s = _geometric([each.ttft_p50_s for each in outcomes])
    p99_s = _geometric([each.ttft_p99_s for each in outcomes])
    p999_s = _geometric([each.ttft_p999_s for each in outcomes])
    e2e_p99_s = _geometric([each.e2e_p99_s for each in outcomes])
    count = len(outcomes)
    shares = (
        sum(each.lost for each in outcomes) / count,
        sum(each.hedged for each in outcomes) / count,
        sum(each.resumed for each in outcomes) / count,
        sum(each.moved for each in outcomes) / count,
        sum(each.anew for each in outcomes) / count,
        sum(each.wasted for each in outcomes) / count,
    )
    return [
        churn,
        name,
        *(f"{each:.3g}" for each in (p50_s, p99_s, p999_s, e2e_p99_s)),
        *(f"{each:.2%}" for each in shares),
    ]


def _geometric(values: Sequence[float]) -> float:
    return exp(sum(map(log, values)) / len(values))
