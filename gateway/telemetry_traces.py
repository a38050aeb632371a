"""Whether calls are traced, and the metrics of that: what has become of their spans."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from gateway.gen_ai import generation
from gateway.telemetry_models import GenAiMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from gateway.config_telemetry import TelemetrySection
    from gateway.tracing import Tracing

log = logging.getLogger(__name__)

INSTALL = "pip install 'tidegate[otel]'"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class SpanCounts(Collector):
    """What has become of spans."""

    def __init__(self) -> None:
        self.sent = 0
        self.too_many = 0
        self.not_taken = 0

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "tidegate_spans_sent_total", "Spans that a collector has taken.", value=self.sent
        )
        dropped = CounterMetricFamily(
            "tidegate_spans_dropped_total",
            "Spans that were dropped: queue_full (too many waited), or not_taken (the collector was away or refused them).",
            labels=["reason"],
        )
        dropped.add_metric(["queue_full"], self.too_many)
        dropped.add_metric(["not_taken"], self.not_taken)
        yield dropped


def wanted(section: TelemetrySection, environ: Mapping[str, str]) -> bool:
    """Whether there is a collector, and nobody has switched OpenTelemetry off."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return section.otlp is not None or any(environ.get(name) for name in _ENDPOINTS)


def gen_ai_metrics(section: TelemetrySection, environ: Mapping[str, str]) -> GenAiMetrics | None:
    """What shows calls by OpenTelemetry's names as well, where that is wanted."""
    return GenAiMetrics(generation(section.semconv, environ)) if section.gen_ai_metrics else None


def is_installed() -> bool:
    """Asked without importing it."""
    found = importlib.util.find_spec("opentelemetry")
    return found is not None and importlib.util.find_spec("opentelemetry.exporter.otlp") is not None


@contextmanager
def traces(
    section: TelemetrySection, environ: Mapping[str, str], registry: CollectorRegistry
) -> Iterator[Tracing | None]:
    """What traces calls while the block runs, or None where there is no collector."""
    counts = SpanCounts()
    registry.register(counts)
    if not wanted(section, environ):
        yield None
    elif not is_installed():
        log.warning("there are no traces: they take the extra otel (%s)", INSTALL)
        yield None
    else:
        with importlib.import_module("gateway.tracing_export").tracing(section, counts) as tracing:
            yield tracing
