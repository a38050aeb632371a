"""Calls that everybody refused for want of room: they wait as one does that comes a moment later, and are tried again."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import QUICK, ask, attempts, model, models, whole
from held import REPLY
from pool import LIMIT_S, endpoint, gateway, until
from scripted import OK, Server

from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scripted import Peer

RARELY = {"interval_s": 3600, "timeout_s": 60}
PATIENT: dict[str, Any] = {
    "health": RARELY,
    "queue": {"max_wait_s": LIMIT_S},
    "tiers": {"default": {"max_ttft_ms": 1000 * LIMIT_S, "waiting_usd_per_hour": 0}},
}
"""Where price decides, so endpoints are asked in the order in which they are listed, and nobody gives way."""
DEFAULT = {"service_tier": "default"}


def busy(times: int | None, *, status: int = 503, for_s: float = 0.1) -> Fault:
    return Fault(kind="status", status=status, count=times, retry_after_s=for_s)


def users(worker: SimWorker) -> Sequence[str]:
    return [json.loads(request.body)["user"] for request in worker.requests]


@pytest.mark.parametrize("tier", ["default", "flex"])
@pytest.mark.parametrize("how", ["whole", "stream"])
@pytest.mark.parametrize("status", [429, 503])
async def test_a_call_that_all_refuse_for_want_of_room_waits_and_is_tried_again(
    tmp_path: Path, tier: str, status: int, how: str
):
    async with SimWorker(QUICK) as first, SimWorker(QUICK) as second:
        for worker in (first, second):
            worker.order(busy(1, status=status))
        async with gateway(tmp_path, first, second, **PATIENT) as gw:
            headers, text = await ask(gw.client(), stream=how == "stream", service_tier=tier)
            assert text
            assert headers["x-tidegate-attempts"] == "3"
            assert float(headers["x-tidegate-queued-ms"]) > 0
            assert headers["x-tidegate-tier"] == tier
            (row,) = await gw.rows()
            assert (row.outcome, row.status, row.attempts, row.completion_tokens) == ("ok", 200, 3, 8)
            assert row.charge_nano_usd == 1000 * row.prompt_tokens - 500 * row.cached_tokens + 2000 * 8
            counted = attempts(await gw.metrics())
            assert sum(count for (_, outcome), count in counted.items() if outcome == "upstream_busy") == 2


async def test_one_that_failed_otherwise_is_not_asked_again(tmp_path: Path):
    async with SimWorker(QUICK) as broken, SimWorker(QUICK) as full:
        broken.order(Fault(kind="status", status=500))
        full.order(busy(2))
        served = models(endpoint(broken, "broken"), endpoint(full, "full"))
        async with gateway(tmp_path, models=served, **PATIENT) as gw:
            headers, _ = await ask(gw.client(), **DEFAULT)
            assert (headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == ("full", "4")
            assert (len(broken.requests), len(full.requests)) == (1, 3)


async def test_a_call_is_not_tried_again_for_ever(tmp_path: Path):
    async with SimWorker(QUICK) as worker:
        worker.order(busy(None))
        async with gateway(tmp_path, worker, limits={"attempts": 2}, **PATIENT) as gw:
            with pytest.raises(openai.InternalServerError) as refused:
                await ask(gw.client(), **DEFAULT)
            assert (refused.value.status_code, refused.value.code) == (503, "upstream_busy")
            assert len(worker.requests) == 3
            (row,) = await gw.rows()
            assert (row.outcome, row.attempts, row.charge_nano_usd) == ("upstream_busy", 3, 0)


async def test_nor_once_as_many_endpoints_have_failed_it_as_may(tmp_path: Path):
    async with SimWorker(QUICK) as broken, SimWorker(QUICK) as full:
        full.order(busy(None))
        broken.order(Fault(kind="status", status=500))
        served = models(endpoint(full, "full"), endpoint(broken, "broken"))
        async with gateway(tmp_path, models=served, limits={"attempts": 1}, **PATIENT) as gw:
            with pytest.raises(openai.InternalServerError) as failed:
                await ask(gw.client(), **DEFAULT)
            assert failed.value.code == "upstream_error"
            assert (len(full.requests), len(broken.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("asked", "sections"),
    [
        ({"extra_body": {"routing": {"max_ttft_ms": 20_000}}}, {}),
        ({}, {"queue": {"max_wait_s": 20}}),
        ({}, {"tiers": {"default": {"max_ttft_ms": 20_000}}}),
        ({}, {"timeouts": {"total_s": 20}}),
    ],
    ids=["demand", "queue", "tier", "call"],
)
async def test_a_call_that_has_no_time_for_that_is_refused_at_once(
    tmp_path: Path, asked: dict[str, Any], sections: dict[str, Any]
):
    async with SimWorker(QUICK) as worker:
        worker.order(busy(None, for_s=40))
        async with gateway(tmp_path, worker, **{**PATIENT, **sections}) as gw:
            with pytest.raises(openai.InternalServerError) as refused:
                await ask(gw.client(), **DEFAULT, **asked)
            assert (refused.value.code, refused.value.response.headers["retry-after"]) == (
                "upstream_busy",
                "40",
            )
            assert len(worker.requests) == 1


async def test_a_call_that_was_let_go_and_refused_keeps_its_place(tmp_path: Path):
    sections = {**PATIENT, "limits": {"connections_per_endpoint": 1, "attempts": 20}}
    async with SimWorker(QUICK) as worker, gateway(tmp_path, worker, **sections) as gw:
        worker.order(busy(None, for_s=1))
        calls = []
        for name in ("one", "two"):
            calls.append(asyncio.create_task(ask(gw.client(), user=name, **DEFAULT)))

            async def waits() -> bool:
                return (await gw.metrics())['tidegate_queue_calls{tier="default"}'] == len(calls)

            await until(waits)
        before = len(worker.requests)

        async def tried() -> bool:
            return len(worker.requests) >= before + 2

        await until(tried)
        worker.order()
        await asyncio.gather(*calls)
        *again, last = users(worker)
        assert (set(again), last) == ({"one"}, "two")


async def test_fallbacks_are_asked_before_anybody_is_waited_for(tmp_path: Path):
    async with SimWorker(QUICK) as full, SimWorker(QUICK) as other:
        served = {"first": model(endpoint(full, "full")), "second": model(endpoint(other, "other"))}
        aliases = {"smart": {"default": "first", "fallbacks": ["second"]}}
        async with gateway(tmp_path, models=served, aliases=aliases, **PATIENT) as gw:
            full.order(busy(1, for_s=1))
            headers, _ = await ask(gw.client(), model="smart", **DEFAULT)
            assert headers["x-tidegate-model"] == "second"
            assert "x-tidegate-queued-ms" not in headers

            other.order(busy(1, for_s=30))
            headers, _ = await ask(gw.client(), model="smart", **DEFAULT)
            assert headers["x-tidegate-model"] == "first"
            ok, later = await gw.rows(2)
            assert (ok.model, later.model, later.outcome) == ("second", "first", "ok")


async def test_a_call_waits_for_the_connection_that_a_look_at_the_worker_takes(tmp_path: Path):
    holds, held, looked = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def worker(peer: Peer) -> None:
        while True:
            if await peer.request():
                await peer.send(whole(json.dumps(REPLY).encode()))
                continue
            if holds.is_set() and peer.requests[-1][0].startswith(b"GET /metrics"):
                held.set()
                await looked.wait()
            await peer.send(OK)

    sections = {**PATIENT, "health": {"interval_s": 0.2, "timeout_s": LIMIT_S, "scrape_interval_s": 0.05}}
    sections["limits"] = {"connections_per_endpoint": 1, "attempts": 20}
    async with Server(worker) as server:
        listed = models({"worker": f"http://127.0.0.1:{server.port}", "model": "sim"})
        async with gateway(tmp_path, models=listed, **sections) as gw:
            holds.set()
            async with asyncio.timeout(LIMIT_S):
                await held.wait()
            call = asyncio.create_task(ask(gw.client(), **DEFAULT))

            async def waits() -> bool:
                return (await gw.metrics())['tidegate_queue_calls{tier="default"}'] == 1

            await until(waits)
            looked.set()
            headers, text = await call
            assert text == "high"
            assert float(headers["x-tidegate-queued-ms"]) > 0
