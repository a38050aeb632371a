"""Usage rows for tests, and the least that can take them from the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from gateway.ledger import Share, UsageRow
from gateway.usage_totals import Grouping, Measures, Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.store import Store


class Collected:
    """Takes rows and keeps every one, so that a row handed over twice shows."""

    def __init__(self) -> None:
        self.rows: list[UsageRow] = []

    def record(self, rows: Sequence[UsageRow]) -> int:
        self.rows += rows
        return len(rows)

    @property
    def call_ids(self) -> list[str]:
        return [row.call_id for row in self.rows]


def a_row(call_id: str, **changes: object) -> UsageRow:
    row = UsageRow(
        call_id=call_id,
        time_ms=1_700_000_000_000,
        request_id="r",
        tenant="acme",
        key_id="key_1",
        model="llama",
        endpoint="w1",
        tier="default",
        api="chat",
        stream=True,
        status=200,
        outcome="ok",
        attempts=1,
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=20,
        estimated=False,
        ttft_ms=12.5,
        duration_ms=99.25,
        charge_nano_usd=3,
        cost_nano_usd=2,
    )
    return structs.replace(row, **changes)


def a_share(endpoint: str, purpose: str, **changes: object) -> Share:
    share = Share(
        endpoint=endpoint,
        model="llama",
        purpose=purpose,
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=20,
        estimated=False,
        charge_nano_usd=3,
        cost_nano_usd=2,
        waste_nano_usd=0,
    )
    return structs.replace(share, **changes)


def summed(store: Store, by: Grouping, since_ms: int = 0, until_ms: int = 2**62) -> dict[str, Measures]:
    """What was used, in the order of what it cost."""
    return {total.group[0]: total.sums for total in store.usage(Question(since_ms, until_ms, (by,)))}
