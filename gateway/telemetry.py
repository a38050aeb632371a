"""Every metric's name, labels and meaning in one place; those of limits and of churn are beside it, in `telemetry_...`.

Labels are bounded by the configuration (models, endpoints, tiers) or by a table in the code (outcomes): nothing that a
client sends becomes a label. What is counted on the way of a call is counted in plain integers, which costs a tenth of
prometheus-client's locked floats; that library makes the page of it when it is scraped.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.families import counter
from gateway.ledger import PAID_BY_GATEWAY
from gateway.logs import Prompts, log_call
from gateway.redaction import Redaction
from gateway.telemetry_churn import Churn
from gateway.telemetry_models import GenAiMetrics, ModelTally, by_model
from gateway.telemetry_routing import foresight_of
from routing.distribution import Distribution

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from prometheus_client.core import Metric

    from backends.fleet import Fleet
    from gateway.admission import Admission
    from gateway.config_telemetry import LogSection
    from gateway.decision_log import DecisionLog
    from gateway.journal import Journal
    from gateway.ledger import Share, UsageRow

OVERHEAD_BUCKETS_S = (0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.05, 0.25)
SCRAPED = {
    "kv_usage": "Share of a worker's KV cache that calls under way hold",
    "waiting": "Calls that wait there",
    "foreign_running": "Calls there, running or waiting, that did not come from this gateway",
    "kv_tokens": "Room in its KV cache, in tokens",
}
"""Figures of a `backends.scrape.Scraped` that are shown, and what they are."""


class Telemetry(Collector):
    """What calls have added up to since the start."""

    def __init__(self, gen_ai: GenAiMetrics | None = None, log: LogSection | None = None) -> None:
        """`gen_ai`: calls are shown by OpenTelemetry's names as well; `log` says whether they are logged."""
        self._logs_calls = log is not None and log.calls
        self.prompts = Prompts(Redaction(() if log is None else log.redact))
        self.registry = CollectorRegistry()
        self._gen_ai = gen_ai
        self.registry.register(self)
        self.of_all: Callable[[], Awaitable[Collector]] | None = None
        """Where there are several processes: what they have all counted."""
        self.churn = Churn()
        self.registry.register(self.churn)
        self.overhead_s = Distribution(OVERHEAD_BUCKETS_S)
        self.refused: Counter[str] = Counter()
        """Requests that ended before they were a call, by error code."""
        self._models: dict[str, ModelTally] = {}
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._wasted_tokens: Counter[tuple[str, str, str]] = Counter()
        self._wasted_nano_usd: Counter[tuple[str, str, str]] = Counter()

    def ended(self, row: UsageRow) -> None:
        """Count a call that has ended."""
        self._calls[row.model, row.tier, row.outcome] += 1
        tally = self._models.get(row.model)
        if tally is None:
            tally = self._models[row.model] = ModelTally()
        tally.add(row)
        if self._gen_ai is not None:
            self._gen_ai.ended(row)
        if self._logs_calls:
            log_call(row)
        for share in row.shares:
            if share.purpose != "answer":
                self._wasted(share)

    def _wasted(self, share: Share) -> None:
        cause, bears = share.purpose, "gateway" if share.purpose in PAID_BY_GATEWAY else "node"
        self._wasted_tokens[share.model, cause, "prompt"] += share.prompt_tokens
        self._wasted_tokens[share.model, cause, "completion"] += share.completion_tokens
        self._wasted_nano_usd[share.model, cause, bears] += share.waste_nano_usd

    def page(self, collector: Collector | None = None) -> bytes:
        """All of it, or of what another one has, in Prometheus' text format."""
        return generate_latest(self.registry if collector is None else collector)

    def collect(self) -> Iterable[Metric]:
        yield counter(
            "tidegate_calls_total", "Calls ended, by outcome.", ["model", "tier", "outcome"], self._calls
        )
        # Always there, from 0 on: what has just appeared has no increase, and one defect is to be seen.
        defects = sum(count for (_, _, outcome), count in self._calls.items() if outcome == "internal_error")
        yield CounterMetricFamily(
            "tidegate_defects_total",
            "Calls that have met a defect of the gateway; the log has its trace.",
            value=defects,
        )
        yield counter(
            "tidegate_requests_refused_total",
            "Requests that ended before they were a call, by error code.",
            ["code"],
            {(code,): count for code, count in self.refused.items()},
        )
        overhead = HistogramMetricFamily(
            "tidegate_overhead_seconds",
            "Time a call spent in the gateway rather than waiting for an endpoint, up to its first byte.",
            labels=[],
        )
        self.overhead_s.add_to(overhead, [])
        yield overhead
        yield from chain(by_model(self._models), self._of_waste())
        if self._gen_ai is not None:
            yield from self._gen_ai.collect()

    def _of_waste(self) -> Iterable[Metric]:
        yield counter(
            "tidegate_waste_tokens_total",
            "Tokens read and written that reached no client, by cause: prompt, completion.",
            ["model", "cause", "kind"],
            self._wasted_tokens,
        )
        yield counter(
            "tidegate_waste_nano_usd_total",
            "Nano-USD that they were worth, and who bears them: gateway (the endpoint is paid), node (it is not).",
            ["model", "cause", "borne_by"],
            self._wasted_nano_usd,
        )


class FleetCollector(Collector):
    """What the fleet, the journal, the decision log and the edge are like at the moment of a scrape."""

    def __init__(
        self, fleet: Fleet, journal: Journal, decisions: DecisionLog | None, running: Callable[[], int]
    ) -> None:
        self._fleet = fleet
        self._journal = journal
        self._decisions = decisions
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
        attempts = CounterMetricFamily(
            "tidegate_attempts_total",
            "Attempts that ended, by outcome.",
            labels=[*labels, "outcome"],
        )
        keys = GaugeMetricFamily(
            "tidegate_endpoint_keys",
            "Its keys: usable, paused for their rate, or set aside as not accepted or out of quota.",
            labels=[*labels, "state"],
        )
        now_s = time.monotonic()
        for member in self._fleet.members:
            names = [member.endpoint.model, member.endpoint.name]
            load = member.load(now_s)
            available.add_metric(names, 0 if load.unavailable else 1)
            inflight.add_metric(names, member.inflight)
            connections.add_metric(names, member.backend.connections)
            speed.add_metric(names, load.work_per_s)
            ejections.add_metric(names, member.ejection.ejections)
            checks.add_metric(names, member.ejection.failed_checks)
            for outcome, count in member.attempts.items():
                attempts.add_metric([*names, outcome], count)
            if member.keys:
                for state, count in member.keys.counts(now_s).items():
                    keys.add_metric([*names, state], count)
        yield from (available, inflight, connections, speed, ejections, checks, attempts, keys)
        yield GaugeMetricFamily("tidegate_calls_running", "Calls under way.", value=self._running())
        yield GaugeMetricFamily("tidegate_tasks", "Tasks of asyncio that have not ended.", value=_tasks())
        yield from chain(self._of_probes(), self._of_scrapes(now_s), self._of_kv_events())
        yield from chain(self._of_journal(), self._of_decisions(), foresight_of(self._fleet))

    def _of_probes(self) -> Iterable[Metric]:
        probes = CounterMetricFamily(
            "tidegate_probes_total",
            "Probes of workers that join, by outcome: ok, unreachable, no_models, model_missing or no_answer.",
            labels=["model", "endpoint", "outcome"],
        )
        for member in self._fleet.members:
            for outcome, count in member.probes.items():
                probes.add_metric([member.endpoint.model, member.endpoint.name, outcome], count)
        yield probes

    def _of_decisions(self) -> Iterable[Metric]:
        decisions = self._decisions
        yield CounterMetricFamily(
            "tidegate_decision_log_lines_total",
            "Decisions written to the decision log.",
            value=0 if decisions is None else decisions.written,
        )
        yield CounterMetricFamily(
            "tidegate_decision_log_dropped_total",
            "Decisions that were to be written and were not: too many waited, or the disk took none.",
            value=0 if decisions is None else decisions.dropped,
        )

    def _of_scrapes(self, now_s: float) -> Iterable[Metric]:
        gauges = {
            name: GaugeMetricFamily(
                f"tidegate_endpoint_{name}", f"{meaning}, as last scraped.", labels=["model", "endpoint"]
            )
            for name, meaning in SCRAPED.items()
        }
        for member in self._fleet.members:
            scraped = member.scraped
            if scraped is not None and scraped.fresh(now_s):
                for name, gauge in gauges.items():
                    value = getattr(scraped, name)
                    if value is not None:
                        gauge.add_metric([member.endpoint.model, member.endpoint.name], value)
        yield from gauges.values()

    def _of_kv_events(self) -> Iterable[Metric]:
        labels = ["model", "endpoint"]
        mismatch = CounterMetricFamily(
            "tidegate_kv_events_mismatch_total",
            "Times a worker's KV events were found not to match the prompts sent there.",
            labels=labels,
        )
        gaps = CounterMetricFamily(
            "tidegate_kv_events_gaps_total", "Times KV events were missed for good.", labels=labels
        )
        held = GaugeMetricFamily(
            "tidegate_kv_events_held_tokens",
            "Tokens in a worker's prefix cache, where its KV events tell.",
            labels=labels,
        )
        believed = GaugeMetricFamily(
            "tidegate_kv_events_believed", "1 where KV events have been seen to match.", labels=labels
        )
        for member in self._fleet.members:
            events, names = member.kv_events, [member.endpoint.model, member.endpoint.name]
            if events is not None:
                mismatch.add_metric(names, events.check.mismatches)
                gaps.add_metric(names, events.gaps)
                believed.add_metric(names, events.check.believed)
                if events.held.tokens is not None:
                    held.add_metric(names, events.held.tokens)
        yield from (mismatch, gaps, believed, held)

    def _of_journal(self) -> Iterable[Metric]:
        journal = self._journal
        yield GaugeMetricFamily(
            "tidegate_journal_waiting_bytes",
            "Usage rows in the journal that are not yet in the database.",
            value=journal.unmoved_bytes,
        )
        yield GaugeMetricFamily(
            "tidegate_ledger_lag_seconds",
            "How old the oldest usage row may be that is not yet in the database; 0 where none waits.",
            value=journal.lag_s,
        )
        yield GaugeMetricFamily(
            "tidegate_journal_backlog_rows",
            "Usage rows in memory because the disk takes none.",
            value=journal.backlog,
        )
        yield CounterMetricFamily(
            "tidegate_journal_failed_writes_total",
            "Writes to the journal that failed.",
            value=journal.failed_writes,
        )
        yield CounterMetricFamily(
            "tidegate_journal_lost_rows_total",
            "Usage rows that fitted neither disk nor memory; they are in the log.",
            value=journal.lost_rows,
        )


class AdmissionCollector(Collector):
    """Who waits for an endpoint at the moment of a scrape, and what has become of those who did."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    def collect(self) -> Iterable[Metric]:
        admission = self._admission
        waiting = GaugeMetricFamily(
            "tidegate_queue_calls", "Calls that wait for an endpoint.", labels=["tier"]
        )
        waits = HistogramMetricFamily(
            "tidegate_queue_wait_seconds", "How long calls waited that were sent in the end.", labels=["tier"]
        )
        for tier, distribution in admission.waits_s.items():
            waiting.add_metric([tier], admission.queue.depth[tier])
            distribution.add_to(waits, [tier])
        yield from (waiting, waits)
        yield counter(
            "tidegate_queue_shed_total",
            "Calls refused for want of a place: queue_full_for_tenant, queue_full or waited_too_long.",
            ["reason"],
            {(reason,): count for reason, count in admission.shed.items()},
        )
        yield counter(
            "tidegate_flex_sent_back_total",
            "Times that a flex call gave way before its first byte and waited again.",
            ["model"],
            {(model,): count for model, count in admission.sent_back.items()},
        )


def _tasks() -> int:
    """0 outside of a loop, where the page may be asked for its names."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return 0
