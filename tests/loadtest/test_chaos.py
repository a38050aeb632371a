from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from scripted import Server, answers
from usage_rows import a_row

from gateway.store import Store
from loadtest.chaos import _books
from loadtest.mishaps import KINDS, schedule
from loadtest.sample import OK
from loadtest.witness import Question, ask, compared, question
from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_S = 60
QUICK = WorkerSpec(decode_s_per_token=0)
ASKED = Question("high water", 12, stream=True)


@given(st.integers(0, 999), st.integers(4, 12), st.floats(20, 120), st.floats(0.5, 10))
def test_nobody_is_struck_twice_at_a_time_and_some_are_always_left_alone(
    seed: int, workers: int, seconds: float, every_s: float
):
    found = schedule(seed, seconds, workers, every_s)
    for mishap in found:
        assert 0 < mishap.at_s < seconds
        at_once = [each for each in found if each.at_s <= mishap.at_s < each.at_s + each.for_s]
        struck = [number for each in at_once for number in each.workers]
        assert len(struck) == len(set(struck)) <= workers - 2
        assert len(mishap.workers) == (workers // 2 if mishap.kind == "half" else 1)


def test_a_schedule_is_long_enough_for_every_kind_and_a_seed_decides_it():
    found = schedule(1, 120, 8, 4)
    assert {mishap.kind for mishap in found} == {*KINDS}
    assert found == schedule(1, 120, 8, 4) != schedule(2, 120, 8, 4)


@given(st.integers(0, 999))
def test_in_two_minutes_every_kind_comes_at_least_twice_whatever_the_seed(seed: int):
    counts = Counter(mishap.kind for mishap in schedule(seed, 120, 8, 4))
    assert min(counts[kind] for kind in KINDS) >= 2


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_question_has_the_same_answer_at_every_worker(stream: bool):  # noqa: FBT001 - a parameter
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two:
        asked = question(Random(1), (20, 40), stream=stream)  # noqa: S311 - no secret
        first = await ask(f"{one.url}/v1", "none", "sim", asked, LIMIT_S)
        second = await ask(f"{two.url}/v1", "none", "sim", asked, LIMIT_S)
    assert first.outcome == OK
    assert first.reply.usage is not None
    assert first.reply.usage[2] == asked.max_tokens
    assert compared(second, first.reply) == OK


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault(kind="reset"), "connection: ConnectionResetError"),
        (Fault(kind="truncated", clean=True), "cut off"),
        (Fault(kind="engine_died", after_chunks=2), "error event 500"),
        (Fault(kind="status", status=503), "status 503 503"),
    ],
)
async def test_what_goes_wrong_is_seen(fault: Fault, outcome: str):
    async with SimWorker(QUICK) as worker:
        worker.order(fault)
        seen = await ask(f"{worker.url}/v1", "none", "sim", ASKED, LIMIT_S)
    assert seen.outcome == outcome


def stream_of(*chunks: dict[str, Any]) -> bytes:
    body = (
        b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def chunk(text: str, end: str | None = None, *, name: str = "c", role: bool = False) -> dict[str, Any]:
    delta = {"content": text} | ({"role": "assistant"} if role else {})
    return {"id": name, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}


USAGE = {
    "id": "c",
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}},
}


@pytest.mark.parametrize(
    ("chunks", "outcome"),
    [
        ([chunk("a", role=True), chunk("b", "stop"), USAGE], OK),
        ([chunk("a", role=True), chunk("b", "stop", role=True), USAGE], "1 ids, 2 roles, 1 ends"),
        ([chunk("a", role=True), chunk("b", "stop", name="d"), USAGE], "2 ids, 1 roles, 1 ends"),
        ([chunk("a", role=True), chunk("b"), USAGE], "1 ids, 1 roles, 0 ends"),
        ([chunk("a", role=True), chunk("b", "stop")], "no usage"),
    ],
)
async def test_a_stream_has_to_be_one(chunks: list[dict[str, Any]], outcome: str):
    async with Server(answers(stream_of(*chunks))) as server:
        seen = await ask(f"http://127.0.0.1:{server.port}/v1", "none", "sim", ASKED, LIMIT_S)
    assert seen.outcome == outcome
    if outcome == OK:
        assert seen.reply.text == "ab"
        right = seen.reply
        assert compared(seen, structs.replace(right, text="a")) == "another text"
        assert compared(seen, structs.replace(right, finish_reasons=["length"])) == "another finish_reason"
        assert (
            compared(seen, structs.replace(right, usage=(5, 0, 2))) == OK
        )  # cached or not is the cache's business
        assert compared(seen, structs.replace(right, usage=(5, 0, 3))) == "another usage"


async def test_books_that_lack_a_call_or_charge_another_amount_are_found(tmp_path: Path):
    async with SimWorker(QUICK) as worker:
        found = await ask(f"{worker.url}/v1", "none", "sim", ASKED, LIMIT_S)
    calls = [
        structs.replace(found, headers={"x-request-id": name})
        for name in ("right", "dear", "missing", "failed")
    ]
    prompt, _, completion = found.reply.usage
    right = 50 * prompt + 100 * completion
    rows = [
        a_row("1", tenant="bench", request_id="right", charge_nano_usd=right),
        a_row("2", tenant="bench", request_id="dear", charge_nano_usd=right + 1),
        a_row("3", tenant="bench", request_id="failed", charge_nano_usd=right, outcome="upstream_broken"),
    ]
    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        store.record(rows)
    assert _books(tmp_path, calls) == [
        "1 calls charged wrongly",
        "1 answered calls without a row",
        "1 answered calls booked as upstream_broken",
    ]
