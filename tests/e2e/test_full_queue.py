"""Calls that wait for an endpoint: for whom there is no place, who leaves, and who is told at once."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import openai
from held import HeldWorker
from pool import LIMIT_S, gateway, until
from waiting_calls import (
    LONG,
    ONE_AT_A_TIME,
    PATIENT,
    RARELY,
    Callers,
    callers,
    depth,
    refused,
    shed,
)

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_tenant_with_its_share_of_calls_waiting_gets_a_429_and_others_none(tmp_path: Path):
    queue = {"calls": 3, "calls_per_tenant": 2}
    async with HeldWorker() as worker, callers(tmp_path, worker, queue=queue) as made:
        other = made.gw.client(await made.gw.new_key("lagoon"))
        await made.reaches(worker, "tide", "default", LONG)
        for name in ("a1", "a2"):
            await made.waits(name, "flex")
        error = await refused(await made.call("a3", "flex"))
        assert isinstance(error, openai.RateLimitError)
        assert (error.code, int(error.response.headers["retry-after"]) >= 1) == (
            "queue_full_for_tenant",
            True,
        )
        await made.waits("b1", "flex", client=other)
        worker.answer("tide", "a1", "a2", "b1")
        del made.calls["a3"]
        await made.all()
        assert (await made.gw.metrics())[shed("queue_full_for_tenant")] == 1


async def test_a_full_queue_sheds_the_last_call_of_whoever_has_most_in_the_lowest_tier(tmp_path: Path):
    sections = {**ONE_AT_A_TIME, **PATIENT, "queue": {"calls": 2, "max_wait_s": LIMIT_S}}
    async with HeldWorker() as worker, callers(tmp_path, worker, **sections) as made:
        await made.reaches(worker, "now", "default")
        for name in ("a1", "a2"):
            await made.waits(name, "flex")
        error = await refused(await made.call("a3", "flex"))
        assert (error.status_code, error.code) == (503, "overloaded")
        other = made.gw.client(await made.gw.new_key("lagoon"))
        await made.call("b1", "flex", client=other)
        error = await refused(made.calls["a2"])
        assert (error.status_code, error.code) == (503, "overloaded")
        for name in ("a2", "a3"):
            del made.calls[name]
        await made.waits("more", "default")
        lost = (await asyncio.wait((made.calls["a1"], made.calls["b1"]), return_when="FIRST_COMPLETED"))[0]
        assert [(await refused(call)).code for call in lost] == ["overloaded"]
        assert (await made.gw.metrics())[shed("queue_full")] == 3


async def test_a_client_that_leaves_the_queue_is_gone_from_it_at_once(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "tide", "default", LONG)
        call = await made.waits("ebb", "flex")
        call.cancel()
        await made.until_metric(depth("flex"), 0)
        worker.answer("tide")
        await made.calls["tide"]
        tide, ebb = await made.gw.rows(2)
        assert (tide.outcome, ebb.outcome, ebb.status, ebb.attempts) == ("ok", "client_left", 499, 0)
        assert (ebb.charge_nano_usd, ebb.prompt_tokens) == (0, 0)
        assert worker.reached == ["tide"]


async def test_sigterm_tells_waiting_calls_at_once_and_lets_running_ones_finish(tmp_path: Path):
    async with HeldWorker() as worker, AsyncExitStack() as clients:
        async with gateway(tmp_path, worker, health=RARELY, timeouts={"drain_s": LIMIT_S}) as gw:
            client = openai.AsyncOpenAI(base_url=f"{gw.url}/v1", api_key=gw.key, max_retries=0)
            await clients.enter_async_context(client)
            made = Callers(gw, client)
            await made.reaches(worker, "tide", "default", LONG)
            call = await made.waits("ebb", "flex")
            signal.raise_signal(signal.SIGTERM)
            error = await refused(call)
            assert (error.status_code, error.code) == (503, "shutting_down")
            worker.answer("tide")
            assert (await made.calls["tide"])[1] == "high"


async def test_flex_is_told_at_once_where_nothing_can_serve(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await worker.__aexit__(None, None, None)
        for code in ("upstream_connect_failed", "no_endpoint_available"):
            error = await refused(await made.call("ebb", "flex"))
            assert error.code == code


async def test_a_flood_of_flex_holds_up_no_other_call(tmp_path: Path):
    spec = WorkerSpec(prefill_tokens_per_s=20_000, max_num_seqs=64)
    async with SimWorker(spec) as worker, callers(tmp_path, worker) as made:
        for number in range(30):
            await made.call(f"flex-{number}", "flex", f"{number}: " + "tide " * 1500)

        async def queued() -> bool:
            return (await made.gw.metrics())[depth("flex")] > 10

        await until(queued)
        for number in range(5):
            await (await made.call(f"default-{number}", "default"))
        page = await made.gw.metrics()
        assert page[depth("flex")] > 0
        done = {name for name, call in made.calls.items() if call.done()}
        assert {name for name in made.calls if name.startswith("default")} <= done
        await made.all()
        assert len(await made.gw.rows(35)) == 35
