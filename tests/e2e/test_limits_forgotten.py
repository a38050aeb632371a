"""A Redis that has lost its data while what a dead gateway has spent is in no database yet, but in its journal alone."""

from __future__ import annotations

import asyncio
import fcntl
from contextlib import ExitStack
from typing import TYPE_CHECKING

from gateway_process import database_url, gateway_beside
from pool import LIMIT_S
from test_shared_limits import call, cost_of_one, key_with_budget, ledger_in, models, settled, spec

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.redis_server import Server


LATER = {"budget_held", "limits_unavailable"}


async def test_nothing_more_of_a_budget_is_given_out_before_the_journal_of_a_dead_gateway_is_read(
    tmp_path: Path, redis: Server
):
    """Somebody has adopted it, and is not done yet: here, the test."""
    shared = {"journal": {"folder": f"{tmp_path}/journal"}, "shared_state": redis.url}
    async with SimWorker(spec()) as worker:
        one, held = await cost_of_one(worker)
        key = key_with_budget(database_url(tmp_path), held)
        async with gateway_beside(tmp_path, models(worker), **shared) as gateway:
            begun = asyncio.Event()
            calling = asyncio.create_task(call(gateway, key, begun))
            async with asyncio.timeout(LIMIT_S):
                await begun.wait()
            with ExitStack() as stack:
                gateway.kill()
                for path in (tmp_path / "journal").iterdir():
                    fcntl.flock(stack.enter_context(path.open()), fcntl.LOCK_EX)
                assert (await calling).code == "broken"
                with redis.client() as client:
                    client.flushall()
                async with gateway_beside(tmp_path, models(worker), **shared) as other:
                    # For longer than a store gives nothing that has begun anew.
                    assert (await call(other, key)).code in LATER
                    stack.close()
                    async with asyncio.timeout(LIMIT_S):
                        while (code := (await call(other, key)).code) in LATER:  # noqa: ASYNC110 - another process does it
                            await asyncio.sleep(0.1)
                    await settled(other)
    assert code == "insufficient_quota"
    rows = ledger_in(database_url(tmp_path)).rows
    assert [row.outcome for row in rows] == ["gateway_died"]
    assert 0 < sum(row.charge_nano_usd for row in rows) <= one <= held
