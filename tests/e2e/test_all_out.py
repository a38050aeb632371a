"""What becomes of calls where all workers of a model fail at once: those that are back a moment later serve them, and where
nobody is, clients hear so at once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import openai
from failing import ASKED, QUICK, ask, of_endpoint, said_by
from pool import gateway, until

from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from pathlib import Path

    from openai import AsyncOpenAI
    from pool import Gateway

WORKERS = 3
NAMES = [f"worker-{number}" for number in range(1, WORKERS + 1)]
HELD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "held"}],
    "max_tokens": 40,
    "extra_body": {"ignore_eos": True},
    "service_tier": "default",
}
PATIENT = {
    "queue": {"max_wait_s": 60},
    "tiers": {"default": {"max_ttft_ms": 60_000}, "priority": {"max_ttft_ms": 60_000}},
    "health": {"interval_s": 3600},
}
"""Calls wait for a minute where there is anybody to wait for."""
AT_ONCE_S = 30.0


async def texts(client: AsyncOpenAI, number: int, **more: Any) -> list[str]:
    """Those of so many calls at once, every other one a stream."""
    asked = (ask(client, stream=place % 2 == 0, **more) for place in range(number))
    return [text for _, text in await asyncio.gather(*asked)]


async def ejections(gw: Gateway) -> list[float]:
    page = await gw.metrics()
    return [of_endpoint(page, "ejections_total", name) for name in NAMES]


async def test_no_call_fails_where_all_workers_lose_their_connections_at_once(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(SimWorker(QUICK)) for _ in range(WORKERS)]
        async with SimWorker(QUICK) as undisturbed:
            expected, tale = await said_by(undisturbed), await said_by(undisturbed, **HELD)
        for worker in workers:
            worker.order(Fault(kind="stall", after_chunks=3, match="held"))
        gw = await stack.enter_async_context(gateway(tmp_path, *workers, **PATIENT))
        client = gw.client()
        streams: list[asyncio.Task[str]] = []
        while not all(worker.requests for worker in workers):
            streams.append(await begun(client))

        for worker in workers:
            worker.cut()
        coming = [
            asyncio.create_task(texts(client, 10, service_tier=tier)) for tier in ("default", "priority")
        ]
        assert await asyncio.gather(*streams) == [tale] * len(streams)
        assert [text for each in coming for text in await each] == [expected] * 20
        assert min(await ejections(gw)) >= 1
        assert {row.outcome for row in await gw.rows(len(streams) + 20)} == {"ok"}


async def begun(client: AsyncOpenAI) -> asyncio.Task[str]:
    """A stream that has shown something. It goes on with the ids of its tokens, of which no fault takes notice."""
    reply = await client.chat.completions.create(**{**ASKED, **HELD, "stream": True})
    said = [(await anext(reply)).choices[0].delta.content or ""]

    async def rest() -> str:
        return "".join(said + [piece.choices[0].delta.content or "" async for piece in reply])

    return asyncio.create_task(rest())


async def test_replies_in_one_piece_that_a_lone_worker_breaks_off_come_when_it_is_back(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, worker, **PATIENT) as gw:
        client, expected = gw.client(), await said_by(worker)
        worker.order(Fault(kind="stall", match="tides"))
        calls = [asyncio.create_task(ask(client, service_tier="default")) for _ in range(10)]

        async def all_came() -> bool:
            return len(worker.requests) == 11

        await until(all_came)
        worker.order()
        worker.cut()
        for headers, text in await asyncio.gather(*calls):
            assert text == expected
            assert headers["x-tidegate-attempts"] == "2"
        assert {row.outcome for row in await gw.rows(10)} == {"ok"}


async def test_a_reply_in_one_piece_that_a_lone_worker_breaks_off_each_time_fails_soon(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, worker, **PATIENT) as gw:
        worker.order(Fault(kind="reset"))
        error = await failure_of(ask(gw.client(), service_tier="default"))
        assert (error.status_code, error.code) == (502, "upstream_broken")
        assert 2 <= len(worker.requests) <= 5


async def test_where_all_workers_have_failed_twice_calls_wait_for_the_first_that_is_back(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(SimWorker(QUICK)) for _ in range(2)]
        for worker in workers:
            worker.order(Fault(kind="status", status=500, count=2, match="ebb"))
        gw = await stack.enter_async_context(gateway(tmp_path, *workers, **PATIENT))
        client = gw.client()
        ebb = [{"role": "user", "content": "ebb"}]
        for _ in range(2):
            error = await failure_of(ask(client, messages=ebb, service_tier="default"))
            assert error.code == "upstream_error"
        expected = await said_by(workers[0])
        assert await texts(client, 20, service_tier="default") == [expected] * 20


async def test_who_waits_for_workers_that_turn_out_to_be_gone_hears_so_at_once(tmp_path: Path):
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(SimWorker(QUICK)) for _ in range(2)]
        for worker in workers:
            worker.order(Fault(kind="status", status=500))
        gw = await stack.enter_async_context(gateway(tmp_path, *workers, **PATIENT))
        client = gw.client()
        for _ in range(2):
            assert (await failure_of(ask(client, service_tier="default"))).code == "upstream_error"
        for worker in workers:
            await worker.__aexit__(None, None, None)
        begun_s = time.monotonic()
        asked = (
            failure_of(ask(client, stream=place % 2 == 0, service_tier="default")) for place in range(20)
        )
        errors = await asyncio.gather(*asked)
        assert time.monotonic() - begun_s < AT_ONCE_S
        assert {error.code for error in errors} <= {"upstream_connect_failed", "no_endpoint_available"}
        for error in errors:
            if error.code == "no_endpoint_available":
                assert "ejected: it could not be reached" in error.message
                assert 1 <= int(error.response.headers["retry-after"]) <= 60


async def failure_of(asked: Any) -> openai.APIStatusError:
    try:
        await asked
    except openai.APIStatusError as error:
        return error
    raise AssertionError("it was answered")
