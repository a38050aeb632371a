"""What a simulated run amounts to, in the figures that policies are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from rich.box import SIMPLE
from rich.table import Table

from loadtest.report import markdown_table, percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadtest.sim.scene import Done, Result, Scene

SLO_S = 2.0
SLO_TOKENS_PER_S = 4000.0
"""A first token is in time within 2 s and a second more for every 4,000 tokens of prompt."""


class Outcome(Struct, frozen=True):
    """Times in seconds. A call without a first token counts as one that waited as long as the run did; times to first token
    are those of streams, where there are any.
    """

    calls: int
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    ttft_mean_s: float
    e2e_p50_s: float
    within_slo: float
    hit_rate: float
    """Of the prompt tokens that workers were sent, the share found in their caches."""
    spilled: float
    """Share of the calls that a hosted endpoint served."""
    broken: float
    """Share that broke off after the first token, which only a resume could save."""
    failed: float
    """Share without a first token."""
    usd_per_1000: float
    """Paid for a thousand calls."""
    weighted_s: float
    """2 x time to first token + end to end, mean: the seconds that `routing` counts."""
    ttft_p999_s: float = 0.0
    hedged: float = 0.0
    """Share that got a second attempt beside the first."""
    resumed: float = 0.0
    """How often a broken answer went on elsewhere, to all calls."""
    moved: float = 0.0
    """Streams that ran slowly and went on elsewhere, to all calls."""
    anew: float = 0.0
    """Replies in one piece that took too long and were had elsewhere, to all calls."""
    e2e_p99_s: float = 0.0
    wasted: float = 0.0
    """Of the tokens that workers read and made, the share that was for nobody, or read again."""

    @property
    def lost(self) -> float:
        """Share that the client saw fail."""
        return self.broken + self.failed


def in_time(done: Done) -> bool:
    limit_s = SLO_S + done.prompt_tokens / SLO_TOKENS_PER_S
    return done.ttft_s is not None and done.ttft_s <= limit_s


def outcome(result: Result, scene: Scene, warm_up_s: float) -> Outcome:
    """The figures over all calls but those that came in the first `warm_up_s`, while caches filled."""
    done = [each for each in result.done if each.at_s >= warm_up_s]
    if not done:
        raise ValueError("no call came after the warm-up")
    worst_s = scene.calls[-1].at_s
    streams = [each for each in done if not each.whole] or done
    ttfts = sorted(worst_s if each.ttft_s is None else each.ttft_s for each in streams)
    e2es = sorted(each.e2e_s for each in done if each.e2e_s is not None)
    workers = len(scene.nodes)
    at_workers = [each for each in done if 0 <= each.endpoint < workers]
    count, toll = len(done), result.toll
    return Outcome(
        calls=count,
        ttft_p50_s=percentile(ttfts, 0.5),
        ttft_p95_s=percentile(ttfts, 0.95),
        ttft_p99_s=percentile(ttfts, 0.99),
        ttft_mean_s=sum(ttfts) / len(ttfts),
        e2e_p50_s=percentile(e2es, 0.5) if e2es else worst_s,
        within_slo=sum(map(in_time, streams)) / len(streams),
        hit_rate=sum(each.cached_tokens for each in at_workers)
        / max(1, sum(each.prompt_tokens for each in at_workers)),
        spilled=sum(each.endpoint >= workers for each in done) / count,
        broken=sum(each.ttft_s is not None and each.e2e_s is None for each in done) / count,
        failed=sum(each.ttft_s is None for each in done) / count,
        usd_per_1000=1000 * sum(each.cost_usd for each in done) / count,
        weighted_s=2 * sum(ttfts) / len(ttfts) + sum(e2es) / max(1, len(e2es)),
        ttft_p999_s=percentile(ttfts, 0.999),
        hedged=toll.hedges / len(result.done),
        resumed=toll.resumes / len(result.done),
        moved=toll.moves / len(result.done),
        anew=toll.anew / len(result.done),
        e2e_p99_s=percentile(e2es, 0.99) if e2es else worst_s,
        wasted=toll.wasted_tokens / max(1, toll.worked_tokens),
    )


def _cells(found: Outcome) -> dict[str, str]:
    times = {
        "TTFT p50": found.ttft_p50_s,
        "p95": found.ttft_p95_s,
        "p99": found.ttft_p99_s,
        "mean": found.ttft_mean_s,
        "E2E p50": found.e2e_p50_s,
    }
    shares = {
        "in SLO": found.within_slo,
        "hits": found.hit_rate,
        "spilled": found.spilled,
        "broken": found.broken,
        "failed": found.failed,
    }
    return {
        **{name: f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}" for name, seconds in times.items()},
        **{name: f"{share:.3f}" for name, share in shares.items()},
        "USD/1000": f"{found.usd_per_1000:.3f}",
    }


_RARE = ("spilled", "broken", "failed")
"""Not shown where nobody has any."""


def _rows(outcomes: Mapping[str, Outcome]) -> tuple[list[str], list[list[str]]]:
    """The columns worth showing, and a row for each policy."""
    cells = {name: _cells(found) for name, found in outcomes.items()}
    columns = [
        column
        for column in next(iter(cells.values()))
        if column not in _RARE or any(getattr(found, column) > 0.0 for found in outcomes.values())
    ]
    return ["policy", *columns], [[name, *(row[column] for column in columns)] for name, row in cells.items()]


def table(title: str, outcomes: Mapping[str, Outcome]) -> Table:
    drawn = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    columns, rows = _rows(outcomes)
    for column in columns:
        drawn.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def markdown(outcomes: Mapping[str, Outcome]) -> str:
    return markdown_table(*_rows(outcomes))


def cdf(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Points of the share of `values` that are at most so great."""
    ordered = sorted(values)
    return ordered, [(place + 1) / len(ordered) for place in range(len(ordered))]
