"""Counts as Prometheus wants them: one family of a metric, made when it is scraped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily

if TYPE_CHECKING:
    from collections import Counter


def counter(
    name: str,
    meaning: str,
    labels: list[str],
    counts: dict[tuple[str, ...], int] | Counter[tuple[str, str]] | Counter[tuple[str, str, str]],
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, count in list(counts.items()):
        family.add_metric(list(values), count)
    return family
