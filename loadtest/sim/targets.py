"""What routing is to reach in simulation, as ratios to the peers on the same calls and mishaps.

A target is a question to a few runs: by how much is our 99th percentile below that of another policy, or how many calls
are in time. Each is asked for several seeds; ratios are averaged as ratios are, by the geometric mean.
"""

from __future__ import annotations

from math import exp, log
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.sim.outcome import Outcome

OURS = "tidegate"

HEDGING, RESUMING, HIDING = "tidegate+hedge", "tidegate+resume", "tidegate+both"
"""Tidegate hiding churn: by second attempts, by going on elsewhere with what broke off, or by both as the gateway does."""

Measure = Literal[
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_p999_s",
    "ttft_mean_s",
    "within_slo",
    "spilled",
    "lost",
    "wasted",
    "hedged",
]


class Scenario(Struct, frozen=True):
    """What is simulated: the options of `simulate` that are not at their defaults."""

    options: tuple[tuple[str, str | float], ...] = ()


class Target(Struct, frozen=True):
    text: str
    scenario: Scenario
    measure: Measure
    most: float | None = None
    least: float | None = None
    against: tuple[str, ...] = ()
    """Policies the best of which it is a ratio to; none: the figure itself."""
    ours: str = OURS
    """Which Tidegate."""
    reference: Scenario | None = None
    """Where Tidegate is to be compared with itself under other circumstances."""


CHAT = Scenario()
SLOW_SCRAPE = Scenario((("scrape_s", 1.0),))
STEADY = Scenario((("fleet", "equal"), ("churn", "none")))
LITTLE = Scenario((("workload", "little"), ("fleet", "equal"), ("churn", "none")))
MISDECLARED = Scenario((("misdeclared", 0.4),))
GOSSIP = Scenario((("replicas", 4), ("gossip_s", 0.5)))
FULL = Scenario((("load", 0.95),))
SPILL = Scenario((("fleet", "mixed"), ("load", 0.95), ("max_ttft", 2.0), ("value_of_waiting", 0.0)))
TRACE = Scenario((("workload", "trace"), ("minutes", 60.0)))

_PEERS = ("sglang", "dynamo", "llm-d", "aibrix", "production-stack", "smetric", "least-tokens")

TARGETS = (
    Target("chat, unequal, 75 %: p99 to sglang's", CHAT, "ttft_p99_s", most=0.1, against=("sglang",)),
    Target("the same to llm-d's, metrics 50 ms old", CHAT, "ttft_p99_s", most=0.6, against=("llm-d",)),
    Target("the same, metrics 1 s old", SLOW_SCRAPE, "ttft_p99_s", most=0.6, against=("llm-d",)),
    Target(
        "chat, equal: p99 to production-stack's", STEADY, "ttft_p99_s", 0.75, against=("production-stack",)
    ),
    Target("the same to llm-d's", STEADY, "ttft_p99_s", most=0.75, against=("llm-d",)),
    Target(
        "little sharing, equal: p99 to least tokens'", LITTLE, "ttft_p99_s", 1.1, against=("least-tokens",)
    ),
    Target("the same to round robin's", LITTLE, "ttft_p99_s", most=0.7, against=("round-robin",)),
    Target("trace, unequal, 75 %: p99 to the best peer's", TRACE, "ttft_p99_s", most=0.5, against=_PEERS),
    Target("the same, mean", TRACE, "ttft_mean_s", most=0.65, against=_PEERS),
    Target("chat, 40 % declared wrongly: p99 to right ones", MISDECLARED, "ttft_p99_s", 1.2, reference=CHAT),
    Target("chat, 4 gateways, gossip every 0.5 s: p99 to one", GOSSIP, "ttft_p99_s", 1.2, reference=CHAT),
    Target("chat, 75 %, churn hidden: calls lost", CHAT, "lost", most=0.0, ours=HIDING),
    Target("the same: tokens wasted", CHAT, "wasted", most=0.03, ours=HIDING),
    Target("the same: calls hedged", CHAT, "hedged", most=0.02, ours=HIDING),
    Target("chat, 95 %: calls hedged", FULL, "hedged", most=0.02, ours=HIDING),
    Target(
        "the same: p50 to that without hedging", FULL, "ttft_p50_s", 1.0, ours=HIDING, against=(RESUMING,)
    ),
    Target("the same, p95", FULL, "ttft_p95_s", 1.0, ours=HIDING, against=(RESUMING,)),
    Target("the same, p99", FULL, "ttft_p99_s", 1.0, ours=HIDING, against=(RESUMING,)),
    Target("spill, chat, 95 %: calls in time", SPILL, "within_slo", least=0.98),
    Target("the same: calls spilled", SPILL, "spilled", most=0.05),
)


class Answer(Struct, frozen=True):
    target: Target
    figures: tuple[float, ...]
    """For each seed."""

    @property
    def figure(self) -> float:
        if self.target.against or self.target.reference is not None:
            return exp(sum(log(each) for each in self.figures) / len(self.figures))
        return sum(self.figures) / len(self.figures)

    @property
    def met(self) -> bool:
        target, figure = self.target, self.figure
        most = target.most is None or figure <= target.most
        return most and (target.least is None or figure >= target.least)


def ask(target: Target, seeds: Sequence[int], run: Callable[[Scenario, int, str], Outcome]) -> Answer:
    def measured(scenario: Scenario, seed: int, policy: str) -> float:
        return float(getattr(run(scenario, seed, policy), target.measure))

    def figure(seed: int) -> float:
        ours = measured(target.scenario, seed, target.ours)
        if target.reference is not None:
            return ours / measured(target.reference, seed, target.ours)
        if target.against:
            return ours / min(measured(target.scenario, seed, peer) for peer in target.against)
        return ours

    return Answer(target, tuple(figure(seed) for seed in seeds))


def rows(answers: Sequence[Answer]) -> tuple[list[str], list[list[str]]]:
    columns = ["", "to reach", "measured", "by seed", "met"]
    found = []
    for answer in answers:
        target = answer.target
        bound = f"at most {target.most:g}" if target.most is not None else f"at least {target.least:g}"
        each = " ".join(f"{figure:.3g}" for figure in answer.figures)
        found.append([target.text, bound, f"{answer.figure:.3g}", each, "yes" if answer.met else "no"])
    return columns, found
