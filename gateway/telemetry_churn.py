"""The metrics of what is done to hide churn from clients."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from gateway.families import counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric


class Churn(Collector):
    """Counted since the start."""

    def __init__(self) -> None:
        self.hedges: Counter[tuple[str, str]] = Counter()
        """Second attempts, by model and outcome."""
        self.not_hedged: Counter[tuple[str, str]] = Counter()
        """Calls that were late and got none, by model and the reason that came up first."""
        self.resumed: Counter[tuple[str, str, str]] = Counter()
        """Streams that broke after their first byte, or were to be taken elsewhere, by model, cause and outcome."""
        self.not_moved: Counter[tuple[str, str]] = Counter()
        """Streams that ran slowly and stayed where they were, by model and the reason that came up first."""

    def collect(self) -> Iterable[Metric]:
        yield counter(
            "tidegate_hedges_total",
            "Second attempts beside a late one: won, lost, failed, or abandoned with their call.",
            ["model", "outcome"],
            self.hedges,
        )
        yield counter(
            "tidegate_hedges_suppressed_total",
            "Late calls that got no second attempt at first, for: guard, price, queue or budget.",
            ["model", "reason"],
            self.not_hedged,
        )
        yield counter(
            "tidegate_resumes_total",
            "Streams that broke after their first byte, by the failure's code, were moved since they ran slowly (slow) or were "
            "taken from an endpoint that has to leave (leaving), and how they went on: from the token (tokens), from the text "
            "(text), or not (error; one that was to be moved stays: failed). ended: it had all its tokens, and nobody was asked.",
            ["model", "cause", "outcome"],
            self.resumed,
        )
        yield counter(
            "tidegate_moves_suppressed_total",
            "Streams that ran slowly and were not moved at first, for: guard, price, queue or budget.",
            ["model", "reason"],
            self.not_moved,
        )
