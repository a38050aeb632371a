"""Calls that wait for an endpoint, and flex calls that give way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from failing import attempts, hosted, model
from held import HeldWorker
from pool import endpoint
from waiting_calls import (
    LONG,
    ONE_AT_A_TIME,
    PATIENT,
    SENT_BACK,
    Callers,
    callers,
    depth,
    left,
    reached,
    refused,
    shed,
)

from gateway.admission import MOST_TIMES_SENT_BACK
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("how", ["stream", "whole"])
async def test_flex_waits_while_a_worker_reads_the_prompts_of_others_and_then_goes(tmp_path: Path, how: str):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "tide", "default", LONG)
        flex = await made.waits("ebb", "flex", stream=how == "stream")
        assert worker.reached == ["tide"]
        worker.answer("tide", "ebb")
        headers, text = await flex
        assert text == "high"
        assert headers["x-tidegate-tier"] == "flex"
        assert float(headers["x-tidegate-queued-ms"]) > float(headers["x-tidegate-overhead-ms"])
        assert "x-tidegate-queued-ms" not in (await made.calls["tide"])[0]
        page = await made.gw.metrics()
        assert (page[depth("flex")], page['tidegate_queue_wait_seconds_count{tier="flex"}']) == (0, 1)
        assert [row.outcome for row in await made.gw.rows(2)] == ["ok", "ok"]


async def test_flex_goes_at_once_where_a_worker_has_nothing_to_do(tmp_path: Path):
    async with HeldWorker() as busy, HeldWorker() as idle, callers(tmp_path, busy, idle) as made:
        only = {"extra_body": {"routing": {"only": ["worker-1"]}}}
        await made.reaches(busy, "tide", "default", LONG, **only)
        idle.answer("ebb")
        headers, _ = await (await made.call("ebb", "flex"))
        assert headers["x-tidegate-endpoint"] == "worker-2"
        assert "x-tidegate-queued-ms" not in headers


@pytest.mark.parametrize("how", ["stream", "whole"])
async def test_flex_gives_way_before_its_first_byte_and_goes_again(tmp_path: Path, how: str):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "ebb", "flex", LONG, stream=how == "stream")
        await made.reaches(worker, "tide", "default", LONG)
        await made.until_metric(depth("flex"), 1)
        await left(worker, "ebb")
        assert worker.reached == ["ebb", "tide"]
        worker.answer("tide", "ebb")
        headers, _ = await made.calls["ebb"]
        assert (headers["x-tidegate-attempts"], "x-tidegate-queued-ms" in headers) == ("2", True)
        assert worker.reached == ["ebb", "tide", "ebb"]
        page = await made.gw.metrics()
        assert page[SENT_BACK] == 1
        assert attempts(page) == {("worker-1", "abandoned"): 1, ("worker-1", "ok"): 2}
        assert page['tidegate_endpoint_available{endpoint="worker-1",model="llama"}'] == 1
        ebb, tide = await made.gw.rows(2)
        assert (ebb.tier, ebb.outcome, ebb.attempts, tide.attempts) == ("flex", "ok", 2, 1)
        assert ebb.charge_nano_usd == 1000 * ebb.prompt_tokens + 2000 * ebb.completion_tokens


async def test_of_several_flex_calls_the_youngest_gives_way(tmp_path: Path):
    async with HeldWorker() as one, HeldWorker() as two:
        async with callers(tmp_path, one, two, **ONE_AT_A_TIME, **PATIENT) as made:
            for worker, name, where in ((two, "older", "worker-2"), (one, "younger", "worker-1")):
                only = {"extra_body": {"routing": {"only": [where]}}}
                await made.reaches(worker, name, "flex", **only)
            await made.call("tide", "default")
            await left(one, "younger")
            await reached(one, 2)
            assert (one.reached, two.left) == (["younger", "tide"], [])


async def test_flex_gives_way_so_many_times_and_then_keeps_its_place(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "ebb", "flex")
        for turn in range(MOST_TIMES_SENT_BACK):
            await made.reaches(worker, f"tide-{turn}", "default")
            await made.until_metric(depth("flex"), 1)
            worker.answer(f"tide-{turn}")
            await reached(worker, 2 * turn + 3)
        await made.waits("last", "default")
        worker.answer("ebb", "last")
        await made.all()
        assert worker.reached[-2:] == ["ebb", "last"]
        await left(worker, *["ebb"] * MOST_TIMES_SENT_BACK)
        assert (await made.gw.metrics())[SENT_BACK] == MOST_TIMES_SENT_BACK


async def test_flex_whose_stream_has_begun_gives_way_to_nobody(tmp_path: Path):
    async with SimWorker(WorkerSpec()) as worker, callers(tmp_path, worker) as made:
        endless = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
        stream = await made.gw.client().chat.completions.create(
            model="llama",
            messages=[{"role": "user", "content": "Why?"}],
            service_tier="flex",
            stream=True,
            **endless,
        )
        await anext(stream)
        await (await made.call("tide", "default", "tide " * 2000))
        await anext(stream)
        await stream.close()
        assert SENT_BACK not in await made.gw.metrics()


async def test_flex_that_is_no_stream_gives_way_only_as_long_as_its_prompt_may_be_read(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "ebb", "flex", stream=False)
        await asyncio.sleep(0.2)  # by far longer than a prompt of one word takes
        await made.reaches(worker, "tide", "default", LONG)
        await made.reaches(worker, "wave", "default")
        assert worker.left == []
        worker.answer("ebb", "tide", "wave")
        await made.all()
        assert SENT_BACK not in await made.gw.metrics()


async def test_flex_that_waits_is_passed_by_calls_of_other_tiers(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "tide", "default", LONG)
        await made.waits("ebb", "flex")
        worker.answer("wave", "foam")
        await (await made.call("wave", "default"))
        await (await made.call("foam", "priority"))
        assert worker.reached == ["tide", "wave", "foam"]
        assert (await made.gw.metrics())[depth("flex")] == 1


async def test_waiting_calls_go_by_tier(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "now", "default")
        for name in ("flex", "default", "priority"):
            await made.waits(name, name)
        worker.answer("now", "flex", "default", "priority")
        await made.all()
        assert worker.reached == ["now", "priority", "default", "flex"]


async def test_the_flex_floods_of_two_tenants_take_turns(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME) as made:
        other = made.gw.client(await made.gw.new_key("lagoon"))
        await made.reaches(worker, "now", "default")
        for name in ("a1", "a2", "a3", "a4"):
            await made.waits(name, "flex")
        for name in ("b1", "b2"):
            await made.waits(name, "flex", client=other)
        worker.answer(*made.calls)
        await made.all()
        assert worker.reached == ["now", "a1", "b1", "a2", "b2", "a3", "a4"]


async def test_a_call_that_is_not_flex_waits_a_moment_for_a_worker_that_is_only_busy(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "now", "default")
        await made.waits("next", "default")
        worker.answer("now", "next")
        headers, _ = await made.calls["next"]
        assert float(headers["x-tidegate-queued-ms"]) > 0


async def test_a_call_that_is_not_flex_waits_no_longer_than_it_may(tmp_path: Path):
    sections = {**ONE_AT_A_TIME, "queue": {"max_wait_s": 1}}
    async with HeldWorker() as worker, callers(tmp_path, worker, **sections) as made:
        await made.reaches(worker, "now", "default")
        error = await refused(await made.call("next", "default"))
        assert (error.status_code, error.code) == (503, "overloaded")
        assert int(error.response.headers["retry-after"]) >= 1
        assert (await made.gw.metrics())[shed("waited_too_long")] == 1
        assert worker.reached == ["now"]


async def test_flex_in_the_way_at_the_limit_of_connections_gives_way(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "ebb", "flex")
        await made.call("tide", "default")
        await reached(worker, 2)
        await left(worker, "ebb")
        assert worker.reached == ["ebb", "tide"]
        worker.answer("ebb", "tide")
        await made.all()


async def test_flex_waits_no_longer_than_its_target(tmp_path: Path):
    tiers = {"flex": {"max_ttft_ms": 100}}
    async with HeldWorker() as worker, callers(tmp_path, worker, tiers=tiers) as made:
        await made.reaches(worker, "tide", "default", LONG)
        error = await refused(await made.call("ebb", "flex"))
        assert (error.status_code, error.code) == (503, "overloaded")
        assert [row.outcome for row in await _after(made, "tide", worker)] == ["ok", "overloaded"]


async def _after(made: Callers, name: str, worker: HeldWorker) -> Any:
    worker.answer(name)
    await made.calls[name]
    return await made.gw.rows(len(made.calls))


async def test_a_call_that_fits_only_where_there_is_no_room_is_in_nobodys_way(tmp_path: Path):
    async with HeldWorker() as small, HeldWorker() as large:
        listed = model(endpoint(small, "small", context_tokens=1000), endpoint(large, "large"))
        async with callers(tmp_path, models={"llama": listed}) as made:
            await made.reaches(large, "tide", "default", LONG)
            await made.waits("long", "flex", LONG)
            await made.reaches(small, "short", "flex")
            small.answer("short")
            assert await made.endpoint_of("short") == "small"
            large.answer("tide", "long")
            assert await made.endpoint_of("long") == "large"


async def test_the_time_of_a_call_includes_its_wait(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, timeouts={"total_s": 2}) as made:
        await made.reaches(worker, "tide", "default", LONG)
        await made.waits("ebb", "flex")
        for name in ("tide", "ebb"):
            error = await refused(made.calls[name])
            assert (error.status_code, error.code) == (504, "call_timeout")


ONLY_WORKER = {"extra_body": {"routing": {"only": ["worker-1"]}}}


def with_provider(worker: HeldWorker, provider: HeldWorker) -> dict[str, Any]:
    listed = model(endpoint(worker), hosted(int(provider.url.rpartition(":")[2]), "provider"))
    return {"models": {"llama": listed}}


async def test_flex_waits_for_a_busy_worker_rather_than_go_to_a_dearer_provider(tmp_path: Path):
    async with HeldWorker() as worker, HeldWorker() as provider:
        async with callers(tmp_path, **with_provider(worker, provider)) as made:
            await made.reaches(worker, "tide", "default", LONG, **ONLY_WORKER)
            await made.waits("ebb", "flex")
            worker.answer("tide", "ebb")
            assert await made.endpoint_of("ebb") == "worker-1"
            assert provider.reached == []


async def test_flex_goes_to_a_provider_where_the_workers_would_be_too_late(tmp_path: Path):
    async with HeldWorker() as worker, HeldWorker() as provider:
        tiers = {"flex": {"max_ttft_ms": 2000}}
        async with callers(tmp_path, **with_provider(worker, provider), tiers=tiers) as made:
            await made.reaches(worker, "tide", "default", LONG, **ONLY_WORKER)
            provider.answer("ebb")
            await made.call("ebb", "flex")
            assert await made.endpoint_of("ebb") == "provider"


async def test_flex_at_the_end_of_its_patience_goes_to_a_provider_rather_than_nowhere(tmp_path: Path):
    sections = {**ONE_AT_A_TIME, "tiers": {"flex": {"max_ttft_ms": 1500}}}
    async with HeldWorker() as worker, HeldWorker() as provider:
        async with callers(tmp_path, **with_provider(worker, provider), **sections) as made:
            await made.reaches(worker, "tide", "default", **ONLY_WORKER)
            provider.answer("ebb")
            headers, _ = await (await made.call("ebb", "flex"))
            assert headers["x-tidegate-endpoint"] == "provider"
            assert float(headers["x-tidegate-queued-ms"]) >= 1000
            assert worker.reached == ["tide"]
