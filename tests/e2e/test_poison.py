"""Calls under which workers crash: after how many they are stopped, and what is left of the pool."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import QUICK, ask, of_endpoint
from pool import PRICE, endpoint, gateway, until

from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from pathlib import Path

POISON: dict[str, Any] = {"messages": [{"role": "user", "content": "the kraken"}], "service_tier": "default"}
CALM: dict[str, Any] = {"service_tier": "default"}
RARELY = {"interval_s": 3600, "timeout_s": 60}


def crashing(kind: str = "reset", **more: Any) -> Fault:
    return Fault(kind=kind, match="kraken", **more)


async def four(stack: AsyncExitStack, *faults: Fault) -> list[SimWorker]:
    workers = [await stack.enter_async_context(SimWorker(QUICK)) for _ in range(4)]
    for worker in workers:
        worker.order(*faults)
    return workers


def served(workers: list[SimWorker]) -> dict[str, Any]:
    """Four workers, asked in this order."""
    costs = [{"input": cost, "output": cost} for cost in range(len(workers))]
    endpoints = [
        endpoint(worker, f"worker-{n}", cost=cost)
        for n, (worker, cost) in enumerate(zip(workers, costs, strict=True))
    ]
    return {
        "models": {"llama": {"price": PRICE, "endpoints": endpoints}},
        "tiers": {"default": {"max_ttft_ms": 60_000, "waiting_usd_per_hour": 0}},
        "health": RARELY,
        "limits": {"attempts": 4},
    }


def asked(workers: list[SimWorker]) -> list[bool]:
    """Who has seen such a call. One that is lost on a reused connection is sent once more, on a new one."""
    return [any(b"kraken" in request.body for request in worker.requests) for worker in workers]


@pytest.mark.parametrize("mode", ["whole", "stream"])
@pytest.mark.parametrize(
    "fault",
    [
        crashing(),
        crashing("engine_died"),
        crashing("status", status=500, message="CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
    ids=["the connection breaks", "the engine dies", "out of memory"],
)
async def test_a_call_under_which_two_workers_crash_is_not_tried_at_a_third(
    tmp_path: Path, fault: Fault, mode: str
):
    async with AsyncExitStack() as stack:
        workers = await four(stack, fault)
        async with gateway(tmp_path, **served(workers)) as gw:
            with pytest.raises(openai.UnprocessableEntityError, match="2 workers crashed") as told:
                await ask(gw.client(), stream=mode == "stream", **POISON)
            assert told.value.code == "poisonous_call"
            assert asked(workers) == [1, 1, 0, 0]

            # They were not at fault: nobody is left alone for it.
            page = await gw.metrics()
            assert [of_endpoint(page, "available", f"worker-{n}") for n in range(4)] == [1, 1, 1, 1]
            assert (await ask(gw.client(), **CALM))[0]["x-tidegate-endpoint"] == "worker-0"
            row, _ = await gw.rows(2)
            assert (row.outcome, row.status, row.attempts, row.charge_nano_usd) == (
                "poisonous_call",
                422,
                2,
                0,
            )


async def test_repeated_at_once_it_is_not_tried_at_all(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = await four(stack, crashing())
        async with gateway(tmp_path, **served(workers)) as gw:
            for stream in (False, True, False):
                with pytest.raises(openai.UnprocessableEntityError):
                    await ask(gw.client(), stream=stream, user=f"stream: {stream}", **POISON)
            assert asked(workers) == [1, 1, 0, 0]

            # Another tenant's is his own, and any other call is served.
            for worker in workers:
                worker.order()
            other = gw.client(await gw.new_key("mill"))
            assert (await ask(other, **POISON))[1]
            assert (await ask(gw.client(), **POISON | {"max_tokens": 7}))[1]


async def test_where_other_workers_go_down_as_well_it_takes_a_third(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = await four(stack, Fault(kind="reset", match="siren"))
        async with gateway(tmp_path, **served(workers)) as gw:
            siren = [{"role": "user", "content": "the siren"}]
            for worker in workers[1:]:
                worker.order(crashing())
            assert (await ask(gw.client(), **CALM | {"messages": siren}))[0][
                "x-tidegate-endpoint"
            ] == "worker-1"
            with pytest.raises(openai.UnprocessableEntityError, match="3 workers crashed"):
                await ask(gw.client(), **POISON)
            assert asked(workers) == [0, 1, 1, 1]


async def test_workers_that_were_sick_before_prove_nothing(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = await four(stack)
        for worker in workers[:2]:
            worker.order(Fault(kind="status", status=500, match="calm"), crashing())
        async with gateway(tmp_path, **served(workers)) as gw:
            calm = [{"role": "user", "content": "calm"}]
            assert (await ask(gw.client(), **CALM | {"messages": calm}))[0][
                "x-tidegate-endpoint"
            ] == "worker-2"
            headers, text = await ask(gw.client(), **POISON)
            assert text
            assert headers["x-tidegate-endpoint"] == "worker-2"


async def test_many_such_calls_at_once_leave_the_pool_serving(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = await four(stack, crashing())
        async with gateway(tmp_path, **served(workers)) as gw:
            client = gw.client()
            calls = [ask(client, **POISON) for _ in range(12)]
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(each, openai.APIStatusError) for each in found)

            async def serving() -> bool:
                return (await gw.http.get("/health/ready")).status_code == 200

            await until(serving)  # where all have crashed at once, nobody gets calls for a second
            assert (await ask(client, **CALM))[1]
