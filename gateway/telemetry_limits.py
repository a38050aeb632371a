"""The metrics of limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.families import counter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

    from gateway.limits import Limits


class LimitsCollector(Collector):
    """What limits have refused, and how they stand at the moment of a scrape."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def collect(self) -> Iterable[Metric]:
        limits, accounts = self._limits, self._limits.accounts
        yield counter(
            "tidegate_limits_refused_total",
            "Calls refused for a limit: requests, tokens, calls, budget, held (by calls under way) or away (the store is).",
            ["reason"],
            {(reason,): count for reason, count in limits.refused.items()},
        )
        yield CounterMetricFamily(
            "tidegate_limits_let_go_total",
            "Calls that no limit was held for, since the store was away.",
            value=limits.let_go,
        )
        yield CounterMetricFamily(
            "tidegate_limits_charges_cut_total",
            "Charges that were more than had been held for the call, and were cut to that.",
            value=accounts.charges_cut,
        )
        yield GaugeMetricFamily(
            "tidegate_limits_holds", "Calls under way that hold something of a limit.", value=accounts.holds
        )
        yield GaugeMetricFamily(
            "tidegate_limits_owed_nano_usd",
            "Charges against budgets that are not known to be in the database.",
            value=accounts.owed_nano_usd,
        )
        yield GaugeMetricFamily(
            "tidegate_limits_drift_nano_usd",
            "By how much shared accounts of budgets were ahead of the ledger when they were last compared, and put right: 0.",
            value=accounts.drift_nano_usd,
        )
        yield GaugeMetricFamily(
            "tidegate_limits_store_away", "1 where limits cannot be looked up.", value=accounts.away
        )
