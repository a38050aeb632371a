"""Every metric's name, labels and meaning in one place.

Labels are bounded by the configuration (models, endpoints, tiers) or by a table in the code (outcomes): nothing that a
client sends becomes a label. Counting is done on the way of a call, so the children of each metric are looked up once
and kept; what can be read from the fleet is read when it is scraped.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

    from backends.fleet import Fleet
    from gateway.journal import Journal
    from gateway.ledger import UsageRow

TTFT_BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
DURATION_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
OVERHEAD_BUCKETS_S = (0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.05, 0.25)


class Telemetry:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        calls = Counter(
            "tidegate_calls_total",
            "Calls ended, by outcome.",
            ["model", "tier", "outcome"],
            registry=registry,
        )
        tokens = Counter(
            "tidegate_tokens_total",
            "Tokens metered: prompt (cached ones included), cached, completion.",
            ["model", "kind"],
            registry=registry,
        )
        money = Counter(
            "tidegate_money_nano_usd_total",
            "Nano-USD: charge is owed by tenants, cost is what serving took.",
            ["model", "kind"],
            registry=registry,
        )
        estimated = Counter(
            "tidegate_calls_estimated_total",
            "Calls whose tokens the gateway counted because the endpoint did not report them.",
            ["model"],
            registry=registry,
        )
        ttft = Histogram(
            "tidegate_ttft_seconds",
            "Streams: from the call's arrival to its first token.",
            ["model"],
            buckets=TTFT_BUCKETS_S,
            registry=registry,
        )
        duration = Histogram(
            "tidegate_call_seconds",
            "From the call's arrival to its end.",
            ["model"],
            buckets=DURATION_BUCKETS_S,
            registry=registry,
        )
        attempts = Counter(
            "tidegate_attempts_total",
            "Attempts at endpoints, by outcome.",
            ["model", "endpoint", "outcome"],
            registry=registry,
        )
        self.overhead = Histogram(
            "tidegate_overhead_seconds",
            "Time a call spent in the gateway rather than waiting for an endpoint, up to its first byte.",
            buckets=OVERHEAD_BUCKETS_S,
            registry=registry,
        )
        self.refused = Counter(
            "tidegate_requests_refused_total",
            "Requests that ended before they were a call, by error code.",
            ["code"],
            registry=registry,
        )
        self._calls = lru_cache(4096)(calls.labels)
        self._tokens = lru_cache(4096)(tokens.labels)
        self._money = lru_cache(4096)(money.labels)
        self._estimated = lru_cache(4096)(estimated.labels)
        self._ttft = lru_cache(4096)(ttft.labels)
        self._duration = lru_cache(4096)(duration.labels)
        self.attempt = lru_cache(4096)(attempts.labels)

    def ended(self, row: UsageRow) -> None:
        """Count a call that has ended."""
        model = row.model
        self._calls(model, row.tier, row.outcome).inc()
        if row.prompt_tokens:
            self._tokens(model, "prompt").inc(row.prompt_tokens)
        if row.cached_tokens:
            self._tokens(model, "cached").inc(row.cached_tokens)
        if row.completion_tokens:
            self._tokens(model, "completion").inc(row.completion_tokens)
        if row.charge_nano_usd:
            self._money(model, "charge").inc(row.charge_nano_usd)
        if row.cost_nano_usd:
            self._money(model, "cost").inc(row.cost_nano_usd)
        if row.estimated:
            self._estimated(model).inc()
        if row.ttft_ms is not None:
            self._ttft(model).observe(row.ttft_ms / 1000)
        self._duration(model).observe(row.duration_ms / 1000)

    def page(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class FleetCollector(Collector):
    """What the fleet and the journal are like at the moment of a scrape."""

    def __init__(self, fleet: Fleet, journal: Journal, running: Callable[[], int]) -> None:
        self._fleet = fleet
        self._journal = journal
        self._running = running

    def collect(self) -> Iterable[Metric]:
        labels = ["model", "endpoint"]
        available = GaugeMetricFamily(
            "tidegate_endpoint_available",
            "1 where the endpoint gets calls, 0 where it is left alone.",
            labels=labels,
        )
        inflight = GaugeMetricFamily("tidegate_endpoint_inflight", "Calls under way there.", labels=labels)
        connections = GaugeMetricFamily(
            "tidegate_endpoint_connections", "Connections open to it.", labels=labels
        )
        speed = GaugeMetricFamily(
            "tidegate_endpoint_prefill_tokens_per_second", "Prefill speed, as learned.", labels=labels
        )
        ejections = CounterMetricFamily(
            "tidegate_endpoint_ejections_total", "Times it was ejected for failed calls.", labels=labels
        )
        checks = CounterMetricFamily(
            "tidegate_endpoint_failed_checks_total", "Health checks that failed.", labels=labels
        )
        now_s = time.monotonic()
        for member in self._fleet.members:
            names = [member.endpoint.model, member.endpoint.name]
            load = member.load(now_s)
            available.add_metric(names, 0 if load.unavailable else 1)
            inflight.add_metric(names, member.inflight)
            connections.add_metric(names, member.lane.connections)
            speed.add_metric(names, load.work_per_s)
            ejections.add_metric(names, member.ejection.ejections)
            checks.add_metric(names, member.ejection.failed_checks)
        yield from (available, inflight, connections, speed, ejections, checks)
        yield GaugeMetricFamily("tidegate_calls_running", "Calls under way.", value=self._running())
        yield GaugeMetricFamily(
            "tidegate_journal_backlog_rows",
            "Usage rows not yet in the database.",
            value=self._journal.backlog,
        )
        yield CounterMetricFamily(
            "tidegate_journal_failed_writes_total",
            "Writes to the journal that failed.",
            value=self._journal.failed_writes,
        )
