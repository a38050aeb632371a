"""The metrics of what routing expects, beside what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from backends.fleet import Fleet


def foresight_of(fleet: Fleet) -> Iterable[Metric]:
    """By model, for all that have been in the fleet."""
    ratio = HistogramMetricFamily(
        "tidegate_ttft_estimate_ratio",
        "Time to first token of an attempt, by what its plan expected: below 1 it came sooner.",
        labels=["model"],
    )
    seconds = CounterMetricFamily(
        "tidegate_ttft_estimate_seconds_total",
        "Times to first token added up: expected, observed, and how far apart the two were (error).",
        labels=["model", "kind"],
    )
    tokens = CounterMetricFamily(
        "tidegate_prefix_tokens_total",
        "Prompt tokens that were predicted to be in an endpoint's cache, that it reported, and that were both (matched).",
        labels=["model", "kind"],
    )
    for model in fleet.models:
        seen = fleet.pool(model).foresight
        seen.ttft_ratio.add_to(ratio, [model])
        seconds.add_metric([model, "expected"], seen.expected_ttft_s)
        seconds.add_metric([model, "observed"], seen.observed_ttft_s)
        seconds.add_metric([model, "error"], seen.ttft_error_s)
        tokens.add_metric([model, "predicted"], seen.predicted_tokens)
        tokens.add_metric([model, "reported"], seen.reported_tokens)
        tokens.add_metric([model, "matched"], seen.matched_tokens)
    yield from (ratio, seconds, tokens)
