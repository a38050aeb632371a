"""The metrics of usage events."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from backends.rounds import rounds
from gateway.database import StoreAway
from gateway.event_store import Standing, standings
from gateway.families import counter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractAsyncContextManager

    from prometheus_client.core import Metric

    from gateway.events import Sender
    from gateway.store import Store

log = logging.getLogger(__name__)

LOOK_S = 15.0


class EventsCollector(Collector):
    """How it stands with the webhooks that this gateway is configured to tell."""

    def __init__(self, store: Store) -> None:
        self.senders: list[Sender] = []
        self._store = store
        self._standings: Mapping[str, Standing] = {}

    def collect(self) -> Iterable[Metric]:
        yield counter(
            "tidegate_events_sent_total",
            "Usage events that a webhook has taken from this gateway.",
            ["webhook"],
            {(each.name,): each.sent for each in self.senders},
        )
        yield counter(
            "tidegate_events_refused_total",
            "Usage events that a webhook would not take, and that were set aside.",
            ["webhook"],
            {(each.name,): each.refused for each in self.senders},
        )
        yield counter(
            "tidegate_events_failures_total",
            "Requests to a webhook that failed and are made again, by status, or timeout, unreachable, not_json.",
            ["webhook", "reason"],
            {(each.name, why): n for each in self.senders for why, n in each.failures.items()},
        )
        gauges = {
            "waiting": "Calls and transactions that a webhook has still to be told of.",
            "lag_seconds": "How long the first of them has been waiting.",
            "set_aside": "Usage events set aside now: see `tidegate events refused`.",
        }
        families = {
            name: GaugeMetricFamily(f"tidegate_events_{name}", meaning, labels=["webhook"])
            for name, meaning in gauges.items()
        }
        for webhook, standing in self._standings.items():
            since_ms = standing.now_ms if standing.oldest_ms is None else standing.oldest_ms
            families["waiting"].add_metric([webhook], standing.waiting)
            families["lag_seconds"].add_metric([webhook], max(0, standing.now_ms - since_ms) / 1000)
            families["set_aside"].add_metric([webhook], standing.set_aside)
        yield from families.values()

    def looking(self) -> AbstractAsyncContextManager[None]:
        return rounds(lambda _: self.look(), LOOK_S, "looking at what webhooks wait for")

    async def look(self) -> None:
        """How much waits."""
        try:
            found = await asyncio.to_thread(standings, self._store)
        except StoreAway as failure:
            log.warning("how it stands with webhooks cannot be seen: %s", failure)
            return
        mine = {sender.name for sender in self.senders}
        self._standings = {each.webhook: each for each in found if each.webhook in mine}
