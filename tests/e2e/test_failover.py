"""What becomes of a call whose endpoint fails before it has said anything: another one's answer, or a clear error."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
import pytest_asyncio
from failing import (
    ASKED,
    LAST,
    QUICK,
    STREAM,
    Failing,
    ask,
    attempts,
    chunk,
    event,
    failing,
    model,
    models,
    of_endpoint,
    part,
    said_by,
    whole,
)
from pool import endpoint, gateway, until

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from gateway.ledger import UsageRow

LEAVING = b'{"error":{"message":"cannot schedule new futures after shutdown"}}'
ENGINE_DIED = event(b'{"error":{"message":"EngineCore encountered an issue."}}') + event(b"[DONE]")
EITHER: dict[str, tuple[Failing, str]] = {
    "connection refused": ("refused", "upstream_connect_failed"),
    "no answer to a connection": ("unanswered", "upstream_connect_timeout"),
    "closed before its reply": (b"", "upstream_broken"),
    "reset before its reply": (Fault(kind="reset"), "upstream_broken"),
    "500": (Fault(kind="status"), "upstream_error"),
    "502": (Fault(kind="status", status=502), "upstream_error"),
    "engine died": (Fault(kind="engine_died"), "upstream_error"),
    "429": (Fault(kind="status", status=429), "upstream_busy"),
    "503": (Fault(kind="status", status=503), "upstream_busy"),
    "queue full": (WorkerSpec(max_num_seqs=0, max_num_queued_reqs=0), "upstream_busy"),
    "about to leave": (whole(LEAVING, b"500 X"), "upstream_busy"),
    "401": (Fault(kind="status", status=401), "upstream_misconfigured"),
    "no such model": (WorkerSpec(model="other"), "upstream_misconfigured"),
    "no HTTP": (Fault(kind="garbage", part="head"), "upstream_malformed"),
    "endless header": (Fault(kind="oversized", part="head", size_bytes=300_000), "upstream_oversized"),
    "endless body": (Fault(kind="oversized", size_bytes=300_000), "upstream_oversized"),
    "silence after its head": (Fault(kind="stall"), "upstream_silence_timeout"),
}
STREAMED: dict[str, tuple[Failing, str]] = {
    "hangs": (Fault(kind="hang"), "upstream_first_byte_timeout"),
    "no stream": (whole(b"{}"), "upstream_malformed"),
    "no JSON": (STREAM + event(b"{the tide"), "upstream_malformed"),
    "broken before its first chunk": (STREAM + part(b": still here\n\n"), "upstream_broken"),
    "ended before its first chunk": (STREAM + part(b": still here\n\n") + LAST, "upstream_truncated"),
    "only [DONE]": (STREAM + event(b"[DONE]") + LAST, "upstream_truncated"),
    "an error behind its first chunk": (STREAM + chunk("high") + ENGINE_DIED + LAST, "upstream_error"),
    "given up at once": (STREAM + chunk(finish_reason="abort") + event(b"[DONE]") + LAST, "upstream_error"),
}
REPLIED: dict[str, tuple[Failing, str]] = {
    "no JSON": (Fault(kind="garbage"), "upstream_malformed"),
    "half of its JSON": (Fault(kind="truncated", clean=True), "upstream_malformed"),
    "broken in its reply": (Fault(kind="truncated"), "upstream_broken"),
    "reset in its reply": (Fault(kind="reset", after_chunks=1), "upstream_broken"),
    "silence in its reply": (Fault(kind="stall", after_chunks=1), "upstream_silence_timeout"),
    "unfinished": (
        whole(b'{"choices":[{"index":0,"message":{},"finish_reason":null}]}'),
        "upstream_malformed",
    ),
    "given up": (whole(b'{"choices":[{"index":0,"message":{},"finish_reason":"abort"}]}'), "upstream_error"),
}
CASES = {("whole", kind): case for kind, case in (EITHER | REPLIED).items()} | {
    ("stream", kind): case for kind, case in (EITHER | STREAMED).items()
}


class Seen(NamedTuple):
    """What a call, and the books after it, have shown."""

    answer: Any
    """Headers and text, or the exception in place of them."""
    rows: list[UsageRow]
    attempts: Mapping[tuple[str, str], float]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, dict[Any, Seen]]]:
    """What a good worker says, and what came of one call in each case. Many are made at once, as some wait for a timeout.

    Each case has a model of its own, with an endpoint that fails so, and then the good worker.
    """
    async with AsyncExitStack() as stack:
        good = await stack.enter_async_context(
            SimWorker(WorkerSpec(decode_s_per_token=0, seed=1, max_num_seqs=99))
        )
        served = {
            _name(*case): model(await stack.enter_async_context(failing(how)), endpoint(good, "good"))
            for case, (how, _) in CASES.items()
        }
        gw = await stack.enter_async_context(
            gateway(
                tmp_path_factory.mktemp("failover"),
                models=served,
                limits={"reply_bytes": 100_000, "event_bytes": 100_000},
                timeouts={"connect_s": 4, "first_byte_s": 4, "silence_s": 4},
                health={"interval_s": 3600, "timeout_s": 60},
            )
        )
        client = gw.client()
        some = asyncio.Semaphore(
            8
        )  # more at once could keep the good worker's answer waiting for too long as well

        async def answer(mode: str, kind: str) -> Any:
            async with some:
                return await ask(client, stream=mode == "stream", model=_name(mode, kind))

        found = await asyncio.gather(*(answer(*case) for case in CASES), return_exceptions=True)
        rows = await gw.rows(len(CASES))
        page = await gw.metrics()
        seen = {}
        for case, answer in zip(CASES, found, strict=True):
            name = _name(*case)
            seen[case] = Seen(answer, [row for row in rows if row.model == name], attempts(page, name))
        yield await said_by(good), seen


def _name(mode: str, kind: str) -> str:
    return f"{mode}-{list(EITHER | STREAMED | REPLIED).index(kind)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1]}")
def test_another_worker_answers_where_one_fails_before_its_first_byte(case: tuple[str, str], answers: Any):
    expected, cases = answers
    seen = cases[case]
    headers, text = seen.answer
    assert text == expected
    assert headers["x-tidegate-endpoint"] == "good"
    assert headers["x-tidegate-attempts"] == "2"
    assert seen.attempts == {("bad", CASES[case][1]): 1, ("good", "ok"): 1}
    (row,) = seen.rows
    assert (row.outcome, row.status, row.endpoint, row.attempts) == ("ok", 200, "good", 2)
    assert (row.completion_tokens, row.estimated) == (8, False)
    assert row.cost_nano_usd == 2000 * (row.prompt_tokens + 8)  # the good worker's alone
    assert row.charge_nano_usd == 1000 * row.prompt_tokens - 500 * row.cached_tokens + 2000 * 8


async def test_an_endpoint_is_left_alone_for_as_long_as_it_asks(tmp_path: Path):
    async with SimWorker(QUICK) as busy, SimWorker(QUICK) as good:
        busy.order(Fault(kind="status", status=503, retry_after_s=40))
        served = models(endpoint(busy, "bad"), endpoint(good, "good"))
        served["alone"] = model(endpoint(busy, "bad"))
        async with gateway(tmp_path, models=served) as gw:
            client = gw.client()
            assert of_endpoint(await gw.metrics(), "available") == 1
            tries = [(await ask(client))[0]["x-tidegate-attempts"] for _ in range(3)]
            assert tries == ["2", "1", "1"]
            assert len(busy.requests) == 1
            page = await gw.metrics()
            assert of_endpoint(page, "available") == 0
            assert of_endpoint(page, "ejections_total") == 0

            with pytest.raises(openai.InternalServerError) as refused:
                await ask(client, model="alone", service_tier="default")  # flex would wait
            assert (refused.value.status_code, refused.value.code) == (503, "upstream_busy")
            assert refused.value.response.headers["retry-after"] == "40"
            with pytest.raises(openai.InternalServerError) as refused:
                await ask(client, model="alone", service_tier="default")
            assert (refused.value.status_code, refused.value.code) == (503, "no_endpoint_available")
            assert 10 < int(refused.value.response.headers["retry-after"]) <= 40
            assert len(busy.requests) == 2


async def test_a_pause_ends_when_its_time_is_over(tmp_path: Path):
    async with SimWorker(QUICK) as busy, SimWorker(QUICK) as good:
        busy.order(Fault(kind="status", status=429, retry_after_s=1.5, count=1))
        async with gateway(tmp_path, models=models(endpoint(busy, "bad"), endpoint(good, "good"))) as gw:
            client = gw.client()
            asked_s = time.monotonic()
            await ask(client)

            async def back() -> bool:
                return of_endpoint(await gw.metrics(), "available") == 1

            await until(back)
            assert time.monotonic() - asked_s >= 1.5
            assert (await ask(client))[0]["x-tidegate-endpoint"] == "bad"


OWN_FAULTS: list[tuple[int, type[openai.APIStatusError], str]] = [
    (400, openai.BadRequestError, "A fault was ordered."),
    (404, openai.NotFoundError, "A fault was ordered."),
    (413, openai.APIStatusError, "A fault was ordered."),
    (422, openai.UnprocessableEntityError, "A fault was ordered."),
]


@pytest.mark.parametrize("mode", ["whole", "stream"])
async def test_what_is_the_clients_own_fault_is_told_at_once_and_not_held_against_the_worker(
    tmp_path: Path, mode: str
):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as other:
        async with gateway(tmp_path, models=models(endpoint(worker, "bad"), endpoint(other, "good"))) as gw:
            client = gw.client()
            for status, exception, says in OWN_FAULTS:
                worker.order(Fault(kind="status", status=status, count=1))
                with pytest.raises(exception, match=says) as refused:
                    await ask(client, stream=mode == "stream")
                error = refused.value
                assert error.status_code == status
                assert (error.type, error.code) == ("invalid_request_error", "invalid_request")
            assert other.requests == ()
            assert (await ask(client))[0]["x-tidegate-endpoint"] == "bad"

            *rejected, _ = await gw.rows(5)
            assert [row.status for row in rejected] == [400, 404, 413, 422]
            for row in rejected:
                assert (row.outcome, row.attempts) == ("invalid_request", 1)
                assert (row.prompt_tokens, row.charge_nano_usd, row.cost_nano_usd) == (0, 0, 0)
            page = await gw.metrics()
            assert of_endpoint(page, "available") == 1
            assert of_endpoint(page, "ejections_total") == 0
            assert attempts(page) == {("bad", "rejected"): 4, ("bad", "ok"): 1}


@pytest.mark.parametrize("mode", ["whole", "stream"])
async def test_a_status_that_no_standard_knows_is_told_as_it_is(tmp_path: Path, mode: str):
    odd = whole(b'{"error":{"message":"Too many hops."}}', b"463 Odd")
    async with failing(odd) as endpoint, gateway(tmp_path, models=models(endpoint)) as gw:
        with pytest.raises(openai.APIStatusError, match="Too many hops") as refused:
            await ask(gw.client(), stream=mode == "stream")
        assert (refused.value.status_code, refused.value.code) == (463, "invalid_request")


HURRIED = {"tiers": {"flex": {"max_ttft_ms": 5000}}}
"""Flex that does not wait for as long as these endpoints ask for."""


async def test_the_last_failure_is_told_where_all_endpoints_fail(tmp_path: Path):
    async with SimWorker(QUICK) as first, SimWorker(QUICK) as last:
        first.order(Fault(kind="reset"))
        last.order(Fault(kind="status", status=503, retry_after_s=7))
        served = models(endpoint(first, "bad"), endpoint(last, "last"))
        async with gateway(tmp_path, models=served, **HURRIED) as gw:
            reply = await gw.http.post(
                "/v1/chat/completions", json=ASKED, headers={"authorization": f"Bearer {gw.key}"}
            )
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")
            assert reply.json() == {
                "error": {
                    "message": "2 endpoints were tried; the last: A fault was ordered.",
                    "type": "service_unavailable",
                    "param": None,
                    "code": "upstream_busy",
                }
            }
            (row,) = await gw.rows()
            assert (row.outcome, row.status, row.attempts, row.endpoint) == ("upstream_busy", 503, 2, "")
            assert (row.prompt_tokens, row.charge_nano_usd, row.cost_nano_usd) == (0, 0, 0)


async def test_a_pool_whose_rate_is_limited_raises_what_sdks_back_off_on(tmp_path: Path):
    async with SimWorker(QUICK) as first, SimWorker(QUICK) as last:
        for worker in (first, last):
            worker.order(Fault(kind="status", status=429, retry_after_s=7))
        served = models(endpoint(first, "bad"), endpoint(last, "last"))
        async with gateway(tmp_path, models=served, **HURRIED) as gw:
            with pytest.raises(openai.RateLimitError, match="2 endpoints were tried") as limited:
                await ask(gw.client())
            assert (limited.value.code, limited.value.type) == ("upstream_rate_limited", "rate_limit_error")
            assert limited.value.response.headers["retry-after"] == "7"
            (row,) = await gw.rows()
            assert (row.outcome, row.status, row.charge_nano_usd) == ("upstream_rate_limited", 429, 0)


async def test_no_more_endpoints_work_on_a_call_than_the_limit_allows(tmp_path: Path):
    async with AsyncExitStack() as stack:
        refused = await stack.enter_async_context(failing("refused"))
        workers = [await stack.enter_async_context(SimWorker(QUICK)) for _ in range(4)]
        for worker in workers:
            worker.order(Fault(kind="status", status=500))
        listed = [endpoint(worker, f"worker-{number}") for number, worker in enumerate(workers, start=1)]
        gw = await stack.enter_async_context(
            gateway(tmp_path, models=models(refused, *listed), limits={"attempts": 2})
        )
        with pytest.raises(openai.InternalServerError, match="3 endpoints were tried") as failed:
            await ask(gw.client())
        # To be refused a connection is no work for anybody, so it does not count.
        assert (failed.value.status_code, failed.value.code) == (502, "upstream_error")
        assert [len(worker.requests) for worker in workers] == [1, 1, 0, 0]
        (row,) = await gw.rows()
        assert (row.outcome, row.attempts, row.charge_nano_usd) == ("upstream_error", 3, 0)


async def test_a_call_whose_time_is_over_is_not_tried_elsewhere(tmp_path: Path):
    async with SimWorker(QUICK) as stuck, SimWorker(QUICK) as good:
        stuck.order(Fault(kind="hang"))
        served = models(endpoint(stuck, "bad"), endpoint(good, "good"))
        async with gateway(tmp_path, models=served, timeouts={"total_s": 0.5}) as gw:
            client = gw.client()
            with pytest.raises(openai.InternalServerError) as failed:
                await ask(client)
            assert (failed.value.status_code, failed.value.code) == (504, "call_timeout")
            assert good.requests == ()
            (row,) = await gw.rows()
            assert (row.outcome, row.attempts, row.charge_nano_usd) == ("call_timeout", 1, 0)
            # A long answer is no sign of a sick worker.
            assert of_endpoint(await gw.metrics(), "available") == 1
