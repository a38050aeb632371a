"""Workers as processes that are killed, stalled, slowed down and taken away under many calls: what clients notice of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.chaos import Plan, notes, run_chaos
from loadtest.mishaps import schedule
from loadtest.proxies import Tidegate

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Plan(
    seconds=18, clients=40, workers=8, every_s=2, questions=24, tokens=(20, 50), decode_s_per_token=0.04
)


async def test_clients_get_the_right_answers_whatever_befalls_the_workers(tmp_path: Path):
    told: list[str] = []
    outcome = await run_chaos(SHORT, [Tidegate(SHORT.gateway_timeouts)], tmp_path, told.append)
    (result,) = outcome.results
    report = "\n".join(notes(outcome))
    assert result.calls >= SHORT.clients
    assert sum(result.mishaps.values()) == len(
        schedule(SHORT.seed, SHORT.seconds, SHORT.workers, SHORT.every_s)
    )
    assert result.left_behind == (), report
    assert result.failures == 0, report
