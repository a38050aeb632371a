"""Each row of the table of failures, on sockets: who answers then, what the endpoint is left alone for, who is paid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import LAST, QUICK, STREAM, Failing, ask, attempts, chunk, event, failing, of_endpoint
from pool import endpoint, gateway
from scripted import Server, answers

from loadtest.simworker import errors
from loadtest.worker import Fault, SimWorker, WorkerSpec
from routing.ejection import AT_ONCE
from routing.failure import FAILURES

if TYPE_CHECKING:
    from pathlib import Path


def status(code: int, message: str, **more: Any) -> Fault:
    return Fault(kind="status", status=code, message=message, **more)


DEARER = {"input": 1, "output": 1}
"""So that the others are asked first."""
CHEAPEST = {"default": {"max_ttft_ms": 60_000, "waiting_usd_per_hour": 0}}
TOO_LONG = errors.prompt_too_long(2100, 64)
SHOWN: dict[str, Failing] = {
    "ConnectFailed": "refused",
    "ConnectTimeout": "unanswered",
    "ReplyBroken": Fault(kind="reset"),
    "StreamTruncated": STREAM + event(b"[DONE]") + LAST,
    "FirstByteTimeout": Fault(kind="hang"),
    "SilenceTimeout": Fault(kind="stall"),
    "ReplyMalformed": Fault(kind="garbage", part="head"),
    "ReplyOversized": Fault(kind="oversized", size_bytes=300_000),
    "EngineDead": Fault(kind="engine_died"),
    "OutOfMemory": status(500, "CUDA out of memory. Tried to allocate 2.00 GiB."),
    "ServerFault": Fault(kind="status"),
    "Overloaded": WorkerSpec(max_num_seqs=0, max_num_queued_reqs=0),
    "Leaving": status(500, str(errors.leaving())),
    "RateLimited": Fault(kind="status", status=429),
    "CallTooLarge": status(429, "Request too large for gpt-4o: Limit 30000, Requested 30601."),
    "KeyRefused": Fault(kind="status", status=401),
    "ModelMissing": WorkerSpec(model="other"),
    "Misconfigured": Fault(kind="status", status=405),
    "ContextTooShort": status(400, str(TOO_LONG), param="input_tokens"),
    "Unable": status(
        400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    ),
    "CallRejected": status(400, "max_tokens must be at least 1, got 0."),
}
ELSEWHERE = {
    "TlsFailed": "test_lane_tls",
    "LaneFull": "test_tried_again",
    "EndpointLeaves": "test_fleet_changes",
    "CallTimeout": "test_failover",
    "RunsSlowly": "test_lookout",
    "ReplyLate": "test_litellm_api",
    "Unsupported": "test_litellm_api",
    "Refused": "never raised itself",
    "AttemptFailed": "never raised by an endpoint",
}
"""Where those are shown that are not here."""


def test_every_row_is_shown_somewhere():
    assert SHOWN.keys() | ELSEWHERE.keys() == FAILURES.keys()
    assert SHOWN.keys() & ELSEWHERE.keys() == set()


@pytest.mark.parametrize("name", SHOWN)
async def test_a_failure_does_what_its_row_says(tmp_path: Path, name: str):
    row = FAILURES[name]
    async with SimWorker(QUICK) as good, failing(SHOWN[name]) as bad:
        models = {
            model: {"price": {"input": 1, "output": 2}, "endpoints": endpoints}
            for model, endpoints in (("llama", [bad, endpoint(good, "good", cost=DEARER)]), ("alone", [bad]))
        }
        async with gateway(
            tmp_path,
            models=models,
            limits={"reply_bytes": 100_000, "event_bytes": 100_000},
            timeouts={"connect_s": 1, "first_byte_s": 1, "silence_s": 1},
            health={"interval_s": 3600, "timeout_s": 60},
            queue={"max_wait_s": 0.1},
            tiers=CHEAPEST,
        ) as gw:
            asked = {"stream": True, "service_tier": "default"}
            if row.then == "return":
                with pytest.raises(openai.APIStatusError) as told:
                    await ask(gw.client(), **asked)
                assert told.value.code == row.code
                assert good.requests == ()
            else:
                headers, text = await ask(gw.client(), **asked)
                assert text
                assert headers["x-tidegate-endpoint"] == "good"
            outcome = "rejected" if row.code == "invalid_request" else row.code
            page = await gw.metrics()
            assert attempts(page)["bad", outcome] == 1
            assert of_endpoint(page, "ejections_total") == (row.leaves in AT_ONCE)
            assert of_endpoint(page, "available") == (row.leaves != "pause" and row.leaves not in AT_ONCE)

            # Of what was done in vain somebody is told, and nobody is charged.
            (booked,) = await gw.rows()
            assert [s.endpoint for s in await gw.shares() if s.purpose == row.wastes] == ["bad"] * bool(
                row.wastes
            )
            assert booked.attempts == (1 if row.then == "return" else 2)

            with pytest.raises(openai.APIStatusError) as told:
                await ask(gw.client(), **asked | {"model": "alone"})
            assert told.value.code == ("upstream_rate_limited" if name in LIMITED else row.code)


LIMITED = ("RateLimited", "CallTooLarge")


@pytest.mark.parametrize("mode", ["whole", "stream"])
async def test_a_prompt_too_long_for_one_worker_goes_to_those_with_a_longer_context_only(
    tmp_path: Path, mode: str
):
    prompt = [{"role": "user", "content": "tide " * 100}]
    async with (
        SimWorker(WorkerSpec(max_model_len=64)) as short,
        SimWorker(WorkerSpec(max_model_len=64)) as short_too,
        SimWorker(WorkerSpec(max_model_len=4096, decode_s_per_token=0)) as long,
    ):
        endpoints = [
            endpoint(short, "bad"),
            endpoint(short_too, "as-bad"),
            endpoint(long, "good", cost=DEARER),
        ]
        models = {"llama": {"price": {"input": 1, "output": 2}, "endpoints": endpoints}}
        async with gateway(tmp_path, models=models, tiers=CHEAPEST) as gw:
            headers, _ = await ask(
                gw.client(), stream=mode == "stream", messages=prompt, service_tier="default"
            )
            assert headers["x-tidegate-endpoint"] == "good"
            page = await gw.metrics()
            assert of_endpoint(page, "ejections_total") == 0
            assert sum(count for (name, _), count in attempts(page).items() if name != "good") <= 2
            (row,) = await gw.rows()
            assert row.outcome == "ok"


async def test_those_whose_context_is_known_to_be_no_longer_are_not_asked(tmp_path: Path):
    prompt = [{"role": "user", "content": "tide " * 100}]
    async with (
        SimWorker(WorkerSpec(max_model_len=64)) as short,
        SimWorker(WorkerSpec(max_model_len=64)) as other,
    ):
        # Declared as longer than they are, so that the plan has both.
        endpoints = [
            endpoint(short, "bad", context_tokens=4000),
            endpoint(other, "other", context_tokens=64, cost=DEARER),
        ]
        models = {"llama": {"price": {"input": 1, "output": 2}, "endpoints": endpoints}}
        async with gateway(tmp_path, models=models, tiers=CHEAPEST) as gw:
            with pytest.raises(openai.BadRequestError, match="maximum context length is 64") as told:
                await ask(gw.client(), messages=prompt, service_tier="default")
            assert (told.value.code, told.value.param) == ("invalid_request", "input_tokens")
            assert other.requests == ()


async def test_where_all_say_the_same_of_a_call_the_client_is_told_so(tmp_path: Path):
    says = status(400, 'tool_choice="required" requires --tool-call-parser to be set')
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two:
        for worker in (one, two):
            worker.order(says)
        async with gateway(tmp_path, one, two) as gw:
            with pytest.raises(openai.BadRequestError, match="requires --tool-call-parser") as told:
                await ask(gw.client())
            assert told.value.code == "invalid_request"
            (row,) = await gw.rows()
            assert (row.outcome, row.attempts, row.charge_nano_usd) == ("invalid_request", 2, 0)


async def test_one_that_could_have_done_it_is_the_last_word(tmp_path: Path):
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two:
        one.order(Fault(kind="status", status=500))
        two.order(status(400, str(TOO_LONG)))
        models = {
            "llama": {
                "price": {"input": 1, "output": 2},
                "endpoints": [endpoint(one, "one"), endpoint(two, "two", cost=DEARER)],
            }
        }
        async with gateway(tmp_path, models=models, tiers=CHEAPEST) as gw:
            with pytest.raises(openai.InternalServerError) as told:
                await ask(gw.client(), service_tier="default")
            assert (told.value.status_code, told.value.code) == (502, "upstream_error")


async def test_a_worker_without_the_model_is_out_for_that_model_only(tmp_path: Path):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as good:
        missing = endpoint(worker, "bad", model="not-there")
        models = {
            "llama": {
                "price": {"input": 1, "output": 2},
                "endpoints": [missing, endpoint(good, "good", cost=DEARER)],
            },
            "other": {"price": {"input": 1, "output": 2}, "endpoints": [endpoint(worker, "bad")]},
        }
        async with gateway(tmp_path, models=models, tiers=CHEAPEST) as gw:
            assert (await ask(gw.client(), service_tier="default"))[0]["x-tidegate-endpoint"] == "good"
            assert (await ask(gw.client(), model="other"))[0]["x-tidegate-endpoint"] == "bad"
            page = await gw.metrics()
            assert of_endpoint(page, "available") == 0
            assert of_endpoint(page, "available", model="other") == 1


async def test_an_error_in_a_stream_that_has_begun_is_sorted_as_well(tmp_path: Path):
    dying = (
        STREAM
        + chunk("high")
        + event(errors.ENGINE_DIED.removeprefix(b"data: ").strip())
        + event(b"[DONE]")
        + LAST
    )
    async with Server(answers(dying)) as server:
        bad = {"openai": f"http://127.0.0.1:{server.port}/v1", "name": "bad", "model": "sim"}
        models = {"llama": {"price": {"input": 1, "output": 2}, "endpoints": [bad]}}
        async with gateway(tmp_path, models=models) as gw:
            with pytest.raises(openai.APIError):
                await ask(gw.client(), stream=True)
            assert of_endpoint(await gw.metrics(), "ejections_total") == 1
