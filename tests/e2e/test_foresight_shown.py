"""How well plans saw ahead, on /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pool import INSTANT, gateway

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "Know every berth, every buoy and every tide by heart. " * 60


async def test_predicted_and_reported_cache_hits_and_expected_and_observed_first_tokens_are_shown(
    tmp_path: Path,
):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        client = gw.client()
        for _ in range(3):
            stream = await client.chat.completions.create(
                model="llama",
                messages=[{"role": "user", "content": PROMPT}],
                max_tokens=5,
                stream=True,
                stream_options={"include_usage": True},
            )
            async for _ in stream:
                pass
        rows = await gw.rows(3)
        page = await gw.metrics()

    def prefix(kind: str) -> float:
        return page[f'tidegate_prefix_tokens_total{{kind="{kind}",model="llama"}}']

    assert prefix("reported") == sum(row.cached_tokens for row in rows) > 0
    assert 0 < prefix("matched") <= min(prefix("predicted"), prefix("reported"))
    assert page['tidegate_ttft_estimate_ratio_count{model="llama"}'] == 3

    def seconds(kind: str) -> float:
        return page[f'tidegate_ttft_estimate_seconds_total{{kind="{kind}",model="llama"}}']

    assert seconds("observed") > 0
    assert seconds("error") >= abs(seconds("observed") - seconds("expected")) - 1e-9
    assert page["tidegate_ledger_lag_seconds"] == 0  # `rows` has waited for the last one
