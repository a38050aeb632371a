"""How long a node stays, and at which hours, from the stays that are on record. Pure: the time is an argument."""

from __future__ import annotations

from datetime import UTC, datetime
from statistics import mean, median
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.node_store import Session

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LOOK_BACK_MS = 30 * DAY_MS


class History(BaseModel):
    stays: int = Field(description="Within the last thirty days, the one that lasts included.")
    mean_stay_s: float | None
    median_stay_s: float | None
    endings: dict[str, int] = Field(description="How its stays ended, and how often so.")
    hours: list[float] = Field(
        description="For each hour of the day (UTC), which share of it the node was there, since it was first seen."
    )


def history(sessions: Sequence[Session], now_ms: int) -> History:
    """That of one node."""
    spans = [(each.started_ms, min(now_ms, each.ended_ms or now_ms)) for each in sessions]
    lengths_s = [(end - start) / 1000 for start, end in spans]
    endings: dict[str, int] = {}
    for each in sessions:
        if each.ending is not None:
            endings[each.ending] = endings.get(each.ending, 0) + 1
    return History(
        stays=len(sessions),
        mean_stay_s=round(mean(lengths_s), 1) if lengths_s else None,
        median_stay_s=round(median(lengths_s), 1) if lengths_s else None,
        endings=endings,
        hours=_hours(spans, now_ms),
    )


def _hours(spans: Sequence[tuple[int, int]], now_ms: int) -> list[float]:
    if not spans:
        return [0.0] * 24
    since_ms = max(min(start for start, _ in spans), now_ms - LOOK_BACK_MS)
    there, all_of_it = [0] * 24, [0] * 24
    for hour, length in _by_hour(since_ms, now_ms):
        all_of_it[hour] += length
    for start, end in spans:
        for hour, length in _by_hour(max(start, since_ms), end):
            there[hour] += length
    return [round(part / whole, 3) if whole else 0.0 for part, whole in zip(there, all_of_it, strict=True)]


def _by_hour(start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """The span cut at full hours: the hour of the day, and how long."""
    pieces = []
    while start_ms < end_ms:
        until_ms = min(end_ms, (start_ms // HOUR_MS + 1) * HOUR_MS)
        pieces.append((datetime.fromtimestamp(start_ms / 1000, UTC).hour, until_ms - start_ms))
        start_ms = until_ms
    return pieces
