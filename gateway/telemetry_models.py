"""What the calls of each model have added up to, by our names and, where wanted, by OpenTelemetry's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

from gateway.gen_ai import operation_of
from routing.distribution import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from gateway.gen_ai import Semconv
    from gateway.ledger import UsageRow

TTFT_BUCKETS_S = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)
DURATION_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
TOKEN_BUCKETS_S = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5, 1)
TOKEN_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
"""As OpenTelemetry has them, as far as a context goes."""
PROVIDER = "tidegate"
"""Whom the calls were made to, as seen by those who made them."""


class ModelTally:
    """What the calls of one model have added up to."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.charge_nano_usd = 0
        self.cost_nano_usd = 0
        self.estimated_calls = 0
        self.ttft_s = Distribution(TTFT_BUCKETS_S)
        self.duration_s = Distribution(DURATION_BUCKETS_S)
        self.per_token_s = Distribution(TOKEN_BUCKETS_S)

    def add(self, row: UsageRow) -> None:
        self.prompt_tokens += row.prompt_tokens
        self.cached_tokens += row.cached_tokens
        self.completion_tokens += row.completion_tokens
        self.charge_nano_usd += row.charge_nano_usd
        self.cost_nano_usd += row.cost_nano_usd
        self.estimated_calls += row.estimated
        if row.ttft_ms is not None:
            self.ttft_s.add(row.ttft_ms / 1000)
            if row.outcome == "ok" and row.completion_tokens > 1:
                self.per_token_s.add(per_token_s(row.duration_ms - row.ttft_ms, row.completion_tokens))
        self.duration_s.add(row.duration_ms / 1000)


def per_token_s(ms_since_first: float, completion_tokens: int) -> float:
    """For each token after the first."""
    return max(0.0, ms_since_first) / (1000 * (completion_tokens - 1))


def by_model(tallies: dict[str, ModelTally]) -> Iterable[Metric]:
    """What all models' calls have added up to."""
    tokens = CounterMetricFamily(
        "tidegate_tokens_total",
        "Tokens metered: prompt (cached ones included), cached, completion.",
        labels=["model", "kind"],
    )
    money = CounterMetricFamily(
        "tidegate_money_nano_usd_total",
        "Nano-USD: charge is owed by tenants, cost is what serving took.",
        labels=["model", "kind"],
    )
    estimated = CounterMetricFamily(
        "tidegate_calls_estimated_total",
        "Calls whose tokens the gateway counted because the endpoint did not report them.",
        labels=["model"],
    )
    ttft = HistogramMetricFamily(
        "tidegate_ttft_seconds", "Streams: from the call's arrival to its first token.", labels=["model"]
    )
    duration = HistogramMetricFamily(
        "tidegate_call_seconds", "From the call's arrival to its end.", labels=["model"]
    )
    per_token = HistogramMetricFamily(
        "tidegate_time_per_output_token_seconds",
        "Streams that were whole: time for each token after the first.",
        labels=["model"],
    )
    for model, tally in list(tallies.items()):
        tokens.add_metric([model, "prompt"], tally.prompt_tokens)
        tokens.add_metric([model, "cached"], tally.cached_tokens)
        tokens.add_metric([model, "completion"], tally.completion_tokens)
        money.add_metric([model, "charge"], tally.charge_nano_usd)
        money.add_metric([model, "cost"], tally.cost_nano_usd)
        estimated.add_metric([model], tally.estimated_calls)
        tally.ttft_s.add_to(ttft, [model])
        tally.duration_s.add_to(duration, [model])
        tally.per_token_s.add_to(per_token, [model])
    yield from (tokens, money, estimated, ttft, duration, per_token)


class GenAiTally:
    """The calls of one model by one API, as OpenTelemetry counts them."""

    def __init__(self) -> None:
        self.input_tokens = Distribution(TOKEN_BUCKETS)
        self.output_tokens = Distribution(TOKEN_BUCKETS)
        self.ttft_s = Distribution(TTFT_BUCKETS_S)
        self.per_token_s = Distribution(TOKEN_BUCKETS_S)
        self.duration_s: dict[str, Distribution] = {}
        """By outcome."""


class GenAiMetrics:
    """Calls by OpenTelemetry's names of one generation, as its exporters write them for Prometheus."""

    def __init__(self, semconv: Semconv) -> None:
        provider = "gen_ai_provider_name" if semconv == "latest" else "gen_ai_system"
        self._labels = ["gen_ai_operation_name", provider, "gen_ai_request_model", "gen_ai_response_model"]
        self._tallies: dict[tuple[str, str], GenAiTally] = {}

    def ended(self, row: UsageRow) -> None:
        """Count a call that has ended."""
        tally = self._tallies.get((row.api, row.model))
        if tally is None:
            tally = self._tallies[row.api, row.model] = GenAiTally()
        tally.input_tokens.add(row.prompt_tokens)
        tally.output_tokens.add(row.completion_tokens)
        if row.ttft_ms is not None and row.outcome == "ok":
            tally.ttft_s.add(row.ttft_ms / 1000)
            if row.completion_tokens > 1:
                tally.per_token_s.add(per_token_s(row.duration_ms - row.ttft_ms, row.completion_tokens))
        tally.duration_s.setdefault(row.outcome, Distribution(DURATION_BUCKETS_S)).add(row.duration_ms / 1000)

    def collect(self) -> Iterable[Metric]:
        tokens = HistogramMetricFamily(
            "gen_ai_client_token_usage",
            "Tokens of a call, by type: input, output.",
            labels=[*self._labels, "gen_ai_token_type"],
        )
        duration = HistogramMetricFamily(
            "gen_ai_server_request_duration_seconds",
            "From a call's arrival to its end.",
            labels=[*self._labels, "error_type"],
        )
        ttft = HistogramMetricFamily(
            "gen_ai_server_time_to_first_token_seconds",
            "Streams that were whole: from the call's arrival to its first token.",
            labels=self._labels,
        )
        per_token = HistogramMetricFamily(
            "gen_ai_server_time_per_output_token_seconds",
            "Streams that were whole: time for each token after the first.",
            labels=self._labels,
        )
        for (api, model), tally in list(self._tallies.items()):
            labels = [operation_of(api), PROVIDER, model, model]
            tally.input_tokens.add_to(tokens, [*labels, "input"])
            tally.output_tokens.add_to(tokens, [*labels, "output"])
            for outcome, spread in list(tally.duration_s.items()):
                spread.add_to(duration, [*labels, "" if outcome == "ok" else outcome])
            tally.ttft_s.add_to(ttft, labels)
            tally.per_token_s.add_to(per_token, labels)
        yield from (tokens, duration, ttft, per_token)
