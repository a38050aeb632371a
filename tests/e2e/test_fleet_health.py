"""Endpoints that are taken out and come back, as clients and the page of metrics show it."""

from __future__ import annotations

import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import QUICK, ask, failing, models, of_endpoint
from pool import endpoint, gateway, until

from loadtest.process import worker_process
from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from openai import AsyncOpenAI
    from pool import Gateway

OFTEN = {"interval_s": 0.05, "timeout_s": 20}
RARELY = {"interval_s": 3600, "timeout_s": 60}
FIRST_BYTE_S = 60


async def available(gw: Gateway, name: str, *, is_so: bool = True) -> None:
    """Wait until the page of metrics says that the endpoint gets calls, or that it gets none."""

    async def shown() -> bool:
        return of_endpoint(await gw.metrics(), "available", name) == is_so

    await until(shown)


async def answers_first(client: AsyncOpenAI, name: str) -> None:
    """Wait until a call is answered there at its first attempt."""

    async def did() -> bool:
        headers, _ = await ask(client)
        return (headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == (name, "1")

    await until(did)


async def test_calls_that_fail_eject_an_endpoint_and_it_comes_back(tmp_path: Path):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as other:
        worker.order(Fault(kind="status", status=500))
        served = models(endpoint(worker, "bad"), endpoint(other, "good"))
        async with gateway(tmp_path, models=served, health=RARELY) as gw:
            client = gw.client()
            headers, _ = await ask(client)
            assert headers["x-tidegate-attempts"] == "2"
            page = await gw.metrics()  # once may be the call's own fault
            assert (of_endpoint(page, "available"), of_endpoint(page, "ejections_total")) == (1, 0)

            headers, _ = await ask(client)
            assert headers["x-tidegate-attempts"] == "2"
            assert of_endpoint(await gw.metrics(), "ejections_total") == 1
            await answers_first(client, "good")

            worker.order()
            await available(gw, "bad")
            await answers_first(client, "bad")

            before = of_endpoint(await gw.metrics(), "ejections_total")
            worker.order(Fault(kind="status", status=500, count=1))
            assert (await ask(client))[0]["x-tidegate-attempts"] == "2"
            page = await gw.metrics()  # one failure is forgiven again, now that a call has succeeded there
            assert (of_endpoint(page, "available"), of_endpoint(page, "ejections_total")) == (1, before)
            assert of_endpoint(page, "available", "good") == 1
            assert {row.outcome for row in await gw.rows()} == {"ok"}


async def test_one_refused_connection_ejects(tmp_path: Path):
    async with failing("refused") as nobody, SimWorker(QUICK) as other:
        async with gateway(tmp_path, models=models(nobody, endpoint(other, "good"))) as gw:
            client = gw.client()
            assert (await ask(client))[0]["x-tidegate-attempts"] == "2"
            assert of_endpoint(await gw.metrics(), "ejections_total") == 1
            await answers_first(client, "good")


async def test_health_checks_take_a_sick_worker_out_and_bring_it_back(tmp_path: Path):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as other:
        served = models(endpoint(worker, "bad"), endpoint(other, "good"))
        async with gateway(tmp_path, models=served, health=OFTEN) as gw:
            client = gw.client()
            await available(gw, "bad")
            worker.order(Fault(kind="status", status=500, path="/health"))
            await available(gw, "bad", is_so=False)
            assert of_endpoint(await gw.metrics(), "failed_checks_total") >= 1
            assert (await gw.http.get("/health/ready")).status_code == 200
            headers, _ = await ask(client)
            assert (headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == ("good", "1")

            other.order(Fault(kind="status", status=503, path="/health"))
            await available(gw, "good", is_so=False)
            assert (await gw.http.get("/health/ready")).status_code == 503

            worker.order()
            await available(gw, "bad")
            assert (await gw.http.get("/health/ready")).status_code == 200
            headers, _ = await ask(client)
            assert (headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == ("bad", "1")
            page = await gw.metrics()
            assert of_endpoint(page, "ejections_total") == of_endpoint(page, "ejections_total", "good") == 0


async def test_a_worker_that_freezes_is_out_until_it_thaws(tmp_path: Path):
    health = {"interval_s": 0.05, "timeout_s": 2}
    async with worker_process(model="sim", decode_s_per_token=0) as frozen:
        async with gateway(tmp_path, frozen, health=health, timeouts={"first_byte_s": FIRST_BYTE_S}) as gw:
            client = gw.client()
            await ask(client)
            frozen.stop()
            await available(gw, "worker-1", is_so=False)
            with pytest.raises(
                openai.InternalServerError, match="/health did not answer within 2 s"
            ) as refused:
                await ask(client)
            assert refused.value.code == "no_endpoint_available"
            frozen.resume()
            await available(gw, "worker-1")
            await ask(client)


@pytest.mark.parametrize("mode", ["whole", "stream"])
async def test_where_nobody_can_serve_the_client_hears_so_at_once(tmp_path: Path, mode: str):
    errors: list[openai.APIStatusError] = []
    took_s: list[float] = []

    async with SimWorker(QUICK) as sick, failing("refused") as nobody:
        sick.order(Fault(kind="status", status=500, path="/health"))
        served = models(endpoint(sick, "sick"), nobody)
        timeouts = {"first_byte_s": FIRST_BYTE_S}
        async with gateway(tmp_path, models=served, timeouts=timeouts, ready=False) as gw:
            client = gw.client()

            async def no_endpoint_is_left() -> bool:
                asked_s = time.monotonic()
                with pytest.raises(openai.InternalServerError) as failed:
                    await ask(client, stream=mode == "stream")
                took_s.append(time.monotonic() - asked_s)
                errors.append(failed.value)
                return failed.value.code == "no_endpoint_available"

            await available(gw, "sick", is_so=False)
            # Each call that is refused a connection ejects the other one, for longer every time.
            await until(no_endpoint_is_left)
            assert errors[0].code == "upstream_connect_failed"
            last = errors[-1]
            assert (last.status_code, last.type) == (503, "service_unavailable")
            assert "sick: health check failed: /health answered 500" in last.message
            assert "bad: ejected: it could not be reached" in last.message
            assert 1 <= int(last.response.headers["retry-after"]) <= 60
            assert took_s[-1] < FIRST_BYTE_S / 20
            row = (await gw.rows(len(errors)))[-1]
            assert (row.outcome, row.status, row.attempts, row.endpoint) == (
                "no_endpoint_available",
                503,
                0,
                "",
            )
            assert (row.prompt_tokens, row.charge_nano_usd) == (0, 0)
            assert sick.requests == ()


@asynccontextmanager
async def near_and_far(tmp_path: Path) -> AsyncIterator[tuple[Gateway, SimWorker, SimWorker]]:
    """Two workers that differ in all that a call can ask for."""
    async with SimWorker(QUICK) as near, SimWorker(QUICK) as far:
        listed = [
            endpoint(near, "near", region="eu-west", cost={"input": 0.02, "output": 0.04}),
            endpoint(far, "far", region="us-east", cost={"input": 0.05, "output": 0.1}, trust="verified"),
        ]
        # Charged no more than any call here insists on: what is told apart is the endpoints' cost.
        price = {"input": 0.01, "output": 0.03}
        async with gateway(tmp_path, models={"llama": {"price": price, "endpoints": listed}}) as gw:
            yield gw, near, far


MISSES: list[tuple[dict[str, Any], str, str]] = [
    ({"only": ["nowhere"]}, "the call allows only nowhere", "the call allows only nowhere"),
    ({"ignore": ["near", "far"]}, "the call ignores it", "the call ignores it"),
    (
        {"trust": "provider"},
        "its trust is community, asked for at least provider",
        "its trust is verified, asked for at least provider",
    ),
    ({"regions": ["moon"]}, "is in eu-west, asked for moon", "is in us-east, asked for moon"),
    (
        {"max_price": {"input": 0.01}},
        "input costs 0.02 USD per million tokens, asked for at most 0.01",
        "input costs 0.05 USD per million tokens, asked for at most 0.01",
    ),
    (
        {"max_price": {"output": 0.03}},
        "output costs 0.04 USD per million tokens, asked for at most 0.03",
        "output costs 0.1 USD per million tokens, asked for at most 0.03",
    ),
    (
        {"trust": "verified", "regions": ["eu-west"]},
        "its trust is community, asked for at least verified",
        "is in us-east, asked for eu-west",
    ),
    (
        {"max_ttft_ms": 0.001},
        r"expected first token in [0-9.e-]+ s, asked for at most 1e-06 s",
        r"expected first token in [0-9.e-]+ s, asked for at most 1e-06 s",
    ),
    (
        {"min_tokens_per_s": 1e9},
        r"expected [0-9.e+]+ tokens per second, asked for at least 1e\+09",
        r"expected [0-9.e+]+ tokens per second, asked for at least 1e\+09",
    ),
]
MET: list[tuple[dict[str, Any], str]] = [
    ({"only": ["far"]}, "far"),
    ({"ignore": ["near"]}, "far"),
    ({"trust": "verified"}, "far"),
    ({"regions": ["moon", "us-east"]}, "far"),
    ({"max_price": {"input": 0.02, "output": 0.04}, "max_ttft_ms": 60_000}, "near"),
]


async def test_where_no_endpoint_meets_what_a_call_insists_on_the_client_hears_what_each_one_misses(
    tmp_path: Path,
):
    async with near_and_far(tmp_path) as (gw, near, far):
        client = gw.client()
        for routing, missed_near, missed_far in MISSES:
            with pytest.raises(openai.BadRequestError) as refused:
                await ask(client, extra_body={"routing": routing})
            error = refused.value
            assert (error.type, error.code) == ("invalid_request_error", "demands_not_met")
            # The nearest miss comes first; see tests/routing/test_misses.py.
            either = f"near: {missed_near}; far: {missed_far}|far: {missed_far}; near: {missed_near}"
            assert re.fullmatch(
                f"No endpoint of llama can serve this call. ({either})", error.body["message"]
            )
        assert near.requests == far.requests == ()
        for row in await gw.rows(len(MISSES)):
            assert (row.outcome, row.status, row.attempts, row.charge_nano_usd) == (
                "demands_not_met",
                400,
                0,
                0,
            )

        for routing, name in MET:
            headers, _ = await ask(client, extra_body={"routing": routing})
            assert headers["x-tidegate-endpoint"] == name


async def test_a_call_that_insists_on_an_endpoint_that_is_down_may_come_back_later(tmp_path: Path):
    async with near_and_far(tmp_path) as (gw, near, far):
        far.order(Fault(kind="status", status=503, retry_after_s=30))
        client = gw.client()
        only = {"extra_body": {"routing": {"only": ["far"]}}, "service_tier": "default"}  # flex would wait
        for code in ("upstream_busy", "no_endpoint_available"):
            with pytest.raises(openai.InternalServerError) as refused:
                await ask(client, **only)
            assert (refused.value.status_code, refused.value.code) == (503, code)
            assert 10 < int(refused.value.response.headers["retry-after"]) <= 30
        assert near.requests == ()
