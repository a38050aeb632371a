"""Two replicas of two processes behind a balancer, restarted one after the other under load, and Redis, PostgreSQL and workers
as well: no client sees anything of it, and the ledger has what clients were told and workers have counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from loadtest.endurance import Plan
from loadtest.endure import CannotRun, run_endurance
from loadtest.endure_report import notes

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Plan(
    seconds=4,
    steps=((0.5, "redis emptied"), (1.0, "postgresql"), (1.5, "replicas")),
    clients=16,
    workers=3,
    kill_every_s=2,
    database_away_s=1,
    unready_s=4,
    budget_usd=0.0001,
    chats=8,
    tokens=(5, 25),
    decode_s_per_token=0.02,
)


async def test_nothing_is_lost_whatever_is_restarted_stopped_or_killed(tmp_path: Path):
    try:
        outcome = await run_endurance(SHORT, tmp_path, lambda *_: None)
    except CannotRun as missing:
        pytest.skip(str(missing))
    assert outcome.wrong == (), "\n".join(notes(outcome))
    assert outcome.carried_out["replicas"] == outcome.carried_out["postgresql"] == 1
    assert outcome.carried_out["redis emptied"] == 1
    assert outcome.answered > SHORT.clients
    assert outcome.reckoning.tokens.clients == outcome.reckoning.tokens.ledger > 0
