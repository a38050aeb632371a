"""Replies in one piece that take seconds: their worker is asked for a stream, and the client cannot tell."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from failing import ASKED, MESSAGES, attempts, models, of_endpoint
from gateway_process import rows_in
from pool import LIMIT_S, endpoint, gateway, until

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pool import Gateway

LONG: dict[str, Any] = {**ASKED, "max_tokens": 400, "service_tier": "default"}
"""Expected to take seconds by the guess of what a card can do; a simulated worker of this speed takes less."""
SPEEDY = WorkerSpec(decode_s_per_token=0.0005)
RARELY = {"interval_s": 3600, "timeout_s": 60}


def was_stream(worker: SimWorker) -> list[bool]:
    """Of the calls that reached the worker, whether they asked for a stream."""
    return [bool(json.loads(request.body).get("stream")) for request in worker.requests if request.body]


async def whole(gw: Gateway, path: str = "/v1/chat/completions", **body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {gw.key}"}
    return await gw.http.post(path, json={"model": "llama", **body}, headers=headers)


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 400}),
    "chat with logprobs": (
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "max_tokens": 300,
            "logprobs": True,
            "top_logprobs": 2,
            "return_token_ids": True,
        },
    ),
    "a completion": ("/v1/completions", {"prompt": "High water", "max_tokens": 400, "logprobs": 1}),
    "a stop string": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 400, "stop": ["moon"]}),
}


@pytest.mark.parametrize("call", CALLS)
async def test_a_long_reply_is_made_of_a_stream_and_equal_to_what_the_worker_says_itself(
    tmp_path: Path, call: str
):
    path, body = CALLS[call]
    async with SimWorker(SPEEDY) as worker, gateway(tmp_path, worker) as gw:
        async with httpx2.AsyncClient(base_url=worker.url, timeout=LIMIT_S) as client:
            for _ in range(2):  # so that its prefix cache knows the prompt
                direct = await client.post(path, json={"model": "sim", **body})
        reply = await whole(gw, path, **body)
        assert was_stream(worker)[-1]
        assert reply.headers["content-type"] == "application/json"
        found, expected = reply.json(), direct.json()
        assert list(found) == list(expected)
        same = {"id": 0, "created": 0, "model": 0}
        assert found | same == expected | same
        assert found["model"] == "llama"
        (row,) = await gw.rows()
        assert (row.stream, row.ttft_ms, row.outcome, row.status) == (False, None, "ok", 200)
        usage = expected["usage"]
        assert (row.prompt_tokens, row.completion_tokens) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        )
        assert float(reply.headers["x-tidegate-cost-usd"]) == pytest.approx(row.charge_nano_usd / 1e9)


async def test_the_time_that_a_long_reply_takes_its_worker_is_not_overhead(tmp_path: Path):
    async with SimWorker(WorkerSpec(decode_s_per_token=0.002)) as worker, gateway(tmp_path, worker) as gw:
        reply = await whole(gw, messages=MESSAGES, max_tokens=400, ignore_eos=True)
        assert was_stream(worker)[-1]
        (row,) = await gw.rows()
        assert float(reply.headers["x-tidegate-overhead-ms"]) < row.duration_ms / 2  # of at least 800


SHORT: dict[str, dict[str, Any]] = {
    "that are short": {"max_tokens": 8},
    "with tools": {"tools": [{"type": "function", "function": {"name": "tide"}}]},
    "with a field that nobody knows": {"novelty": 1},
    "with several choices": {"n": 2},
}


@pytest.mark.parametrize("calls", SHORT)
async def test_calls_are_left_as_they_are(tmp_path: Path, calls: str):
    async with SimWorker(SPEEDY) as worker, gateway(tmp_path, worker) as gw:
        body = {"messages": MESSAGES, "max_tokens": 400} | SHORT[calls]
        assert (await whole(gw, **body)).status_code == 200
        assert was_stream(worker)[-1] is False


async def test_the_tier_that_served_is_in_a_long_reply_where_it_was_asked_for(tmp_path: Path):
    async with SimWorker(SPEEDY) as worker, gateway(tmp_path, worker) as gw:
        reply = await gw.client().chat.completions.create(**LONG)
        assert reply.service_tier == "default"
        assert was_stream(worker)[-1]


@pytest.mark.parametrize("kind", ["reset", "truncated", "engine_died"])
async def test_a_long_reply_that_breaks_off_is_answered_whole_by_another_worker(tmp_path: Path, kind: Any):
    async with SimWorker(SPEEDY) as first, SimWorker(SPEEDY) as second:
        sections = {"models": models(endpoint(first, "first"), endpoint(second, "second")), "health": RARELY}
        async with gateway(tmp_path, **sections) as gw:
            first.order(Fault(kind=kind, after_chunks=20))
            reply = await gw.client().chat.completions.with_raw_response.create(**LONG)
            undisturbed = await gw.client().chat.completions.create(**LONG)
            answer = reply.parse()
            assert answer.choices[0].message.content == undisturbed.choices[0].message.content
            assert answer.usage.completion_tokens == undisturbed.usage.completion_tokens
            assert reply.headers["x-tidegate-attempts"] == "2"
            row, _ = await gw.rows(2)
            assert (row.completion_tokens, row.outcome) == (answer.usage.completion_tokens, "ok")


async def test_where_nobody_can_answer_a_long_call_it_fails_with_a_status_and_not_with_half_a_reply(
    tmp_path: Path,
):
    async with SimWorker(SPEEDY) as worker, gateway(tmp_path, worker, health=RARELY) as gw:
        worker.order(Fault(kind="reset", after_chunks=2))
        with pytest.raises(openai.APIStatusError) as failed:
            await gw.client().chat.completions.create(**LONG)
        assert failed.value.status_code in (502, 503)
        (row,) = await gw.rows()
        assert row.charge_nano_usd == 0


async def test_a_long_call_whose_worker_is_silent_is_raced(tmp_path: Path):
    async with SimWorker(SPEEDY) as first, SimWorker(SPEEDY) as second:
        sections = {"models": models(endpoint(first, "first"), endpoint(second, "second")), "health": RARELY}
        async with gateway(tmp_path, **sections) as gw:
            first.order(Fault(kind="hang", path="/v1/chat"))
            reply = await gw.client().chat.completions.with_raw_response.create(**LONG)
            assert (reply.headers["x-tidegate-hedged"], reply.headers["x-tidegate-endpoint"]) == (
                "true",
                "second",
            )
            assert attempts(await gw.metrics()) == {("first", "abandoned"): 1, ("second", "ok"): 1}


async def test_a_client_that_leaves_a_long_call_ends_the_workers_work(tmp_path: Path):
    slow = WorkerSpec(decode_s_per_token=0.05)
    async with SimWorker(slow) as worker, gateway(tmp_path, worker, health=RARELY) as gw:
        call = asyncio.create_task(gw.client().chat.completions.create(**LONG))
        await until(lambda: writes(worker))
        call.cancel()
        await asyncio.wait((call,))

        async def at_rest() -> bool:
            return of_endpoint(await gw.metrics(), "inflight", "worker-1") == 0 and not worker.engine.running

        await until(at_rest)
        (row,) = await gw.rows()
        assert row.outcome == "client_left"


async def writes(worker: SimWorker) -> bool:
    return worker.engine.generated_tokens > 3


SLOW = WorkerSpec(decode_s_per_token=0.05)
ENDLESS: dict[str, Any] = {**LONG, "ignore_eos": True}


async def test_a_long_call_whose_time_runs_out_is_not_charged_for_what_its_client_never_got(tmp_path: Path):
    async with SimWorker(SLOW) as worker:
        async with gateway(tmp_path, worker, health=RARELY, timeouts={"total_s": 2}) as gw:
            reply = await whole(gw, **ENDLESS)
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "call_timeout")
            (row,) = await gw.rows()
            assert (row.outcome, row.charge_nano_usd, row.completion_tokens) == ("call_timeout", 0, 0)
            (share,) = await gw.shares()
            assert (share.endpoint, share.purpose, share.charge_nano_usd) == ("worker-1", "late", 0)
            assert share.completion_tokens > 3


async def test_a_long_call_that_the_gateways_end_cuts_short_is_not_charged(tmp_path: Path):
    async with SimWorker(SLOW) as worker, httpx2.AsyncClient(timeout=LIMIT_S) as client:
        async with gateway(tmp_path, worker, health=RARELY, timeouts={"drain_s": 1}) as gw:
            asked = {"json": ENDLESS, "headers": {"authorization": f"Bearer {gw.key}"}}
            call = asyncio.create_task(client.post(f"{gw.url}/v1/chat/completions", **asked))
            await until(lambda: writes(worker))
        reply = await call
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
    (row,) = rows_in(tmp_path)
    assert (row.outcome, row.charge_nano_usd, row.completion_tokens) == ("shutting_down", 0, 0)


async def test_a_long_call_that_is_refused_when_it_should_go_on_is_not_charged(tmp_path: Path):
    async with SimWorker(SPEEDY) as first, SimWorker(SPEEDY) as second:
        sections = {"models": models(endpoint(first, "first"), endpoint(second, "second")), "health": RARELY}
        async with gateway(tmp_path, **sections) as gw:
            first.order(Fault(kind="reset", after_chunks=20))
            second.order(Fault(kind="reset", after_chunks=3))
            reply = await whole(gw, **ENDLESS)
            assert (reply.status_code, reply.json()["error"]["code"]) == (422, "poisonous_call")
            (row,) = await gw.rows()
            assert (row.outcome, row.charge_nano_usd) == ("poisonous_call", 0)
