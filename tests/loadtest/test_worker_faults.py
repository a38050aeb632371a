import asyncio
import json
import time
from typing import Any

import httpx2
import pytest
from sim_client import CAPTURES, asking, chat, eventually, fast_worker, needs_captures, posted

from loadtest.worker import Fault, SimWorker

STREAM = asking(stream=True, max_tokens=8, ignore_eos=True)
WHOLE = asking(max_tokens=8)


async def received(worker: SimWorker, body: dict[str, Any], seconds: float = 5.0) -> tuple[bytes, str]:
    """All the bytes that came, and how it ended: "fin", "reset" or, after `seconds`, "silence"."""
    data = b""
    async with posted(worker, body) as (reader, _):
        try:
            async with asyncio.timeout(seconds):
                while chunk := await reader.read(65536):
                    data += chunk
        except TimeoutError:
            return data, "silence"
        except ConnectionResetError:
            return data, "reset"
        return data, "fin"


def events(data: bytes) -> list[Any]:
    return [
        json.loads(line[6:])
        for line in data.split(b"\n")
        if line.startswith(b'data: {"id"') and line.endswith(b"}")
    ]


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_hang_sends_nothing_and_does_not_hang_up(body: dict[str, Any]):
    async with fast_worker(faults=(Fault("hang"),)) as (worker, _):
        assert await received(worker, body, 0.05) == (b"", "silence")


@pytest.mark.parametrize(("after", "expected"), [(0, 0), (3, 3)])
async def test_reset_comes_after_so_many_chunks(after: int, expected: int):
    async with fast_worker(faults=(Fault("reset", after_chunks=after),), decode_s_per_token=0.002) as (
        worker,
        _,
    ):
        data, end = await received(worker, STREAM)
        assert end == "reset"
        assert len(events(data)) == expected
        await eventually(lambda: not worker.engine.running)


async def test_stall_is_silence_after_so_many_chunks():
    async with fast_worker(faults=(Fault("stall", after_chunks=2),)) as (worker, _):
        data, end = await received(worker, STREAM, 0.1)
        assert (len(events(data)), end) == (2, "silence")
        assert not worker.engine.running


async def test_a_stalled_whole_reply_stops_after_its_head():
    async with fast_worker(faults=(Fault("stall"),)) as (worker, _):
        data, end = await received(worker, WHOLE, 0.1)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (data.endswith(b"\r\n\r\n"), end) == (True, "silence")


@pytest.mark.parametrize("path", ["stream", "whole"])
async def test_drip_sends_the_right_reply_byte_by_byte(path: str):
    async with fast_worker() as (worker, client):
        plain = await chat(client, max_tokens=2)
        worker.order(Fault("drip", delay_s=0.0002))
        body = asking(max_tokens=2, stream=path == "stream")
        text = (await client.post("/v1/chat/completions", json=body)).text
        if path == "whole":
            assert json.loads(text)["choices"] == plain["choices"]
        else:
            assert text.endswith("data: [DONE]\n\n")


async def test_garbage_is_no_http_or_no_json():
    async with fast_worker(faults=(Fault("garbage", part="head", count=1), Fault("garbage"))) as (_, client):
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/v1/chat/completions", json=WHOLE)
        reply = await client.post("/v1/chat/completions", json=WHOLE)
        with pytest.raises(ValueError, match=r"codec|Expecting"):
            reply.json()
        assert reply.status_code == 200
        assert b"data:" not in (await client.post("/v1/chat/completions", json=STREAM)).content


async def test_a_status_is_answered_with_retry_after_where_told():
    faults = (
        Fault("status", status=503, retry_after_s=2, count=1),
        Fault("status", status=429, count=1),
        Fault("status"),
    )
    async with fast_worker(faults=faults) as (worker, client):
        replies = [await client.post("/v1/chat/completions", json=STREAM) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [503, 429, 500]
        assert [reply.headers.get("retry-after") for reply in replies] == ["2", None, None]
        assert replies[0].json()["error"]["code"] == 503
        assert worker.engine.generated_tokens == 0


async def test_truncated_ends_without_a_finish_reason():
    async with fast_worker(faults=(Fault("truncated", after_chunks=3),)) as (worker, client):
        data, end = await received(worker, STREAM)
        assert (len(events(data)), end) == (3, "fin")
        assert not data.endswith(b"0\r\n\r\n")
        worker.order(Fault("truncated", after_chunks=100, clean=True))
        text = (await client.post("/v1/chat/completions", json=STREAM)).text
        assert '"finish_reason":"' not in text
        assert "[DONE]" not in text
        worker.order(Fault("truncated"))
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/v1/chat/completions", json=WHOLE)


@needs_captures
async def test_a_dead_engine_ends_a_stream_as_captured():
    captured = (CAPTURES / "stream_engine_killed.txt").read_text().rstrip().split("\n\n")[-2:]
    async with fast_worker(faults=(Fault("engine_died", after_chunks=4),)) as (_, client):
        got = (await client.post("/v1/chat/completions", json=STREAM)).text.rstrip().split("\n\n")
        assert got[-2:] == captured
        assert len(got) == 6
        assert (await client.post("/v1/chat/completions", json=WHOLE)).status_code == 500


async def test_slow_multiplies_reading_and_decoding_of_that_request_alone():
    options = {"decode_s_per_token": 0.002, "batch_slowdown": 0.0}
    async with fast_worker(faults=(Fault("slow", factor=10, match="treacle"),), **options) as (_, client):

        async def took_s(text: str) -> float:
            started = time.monotonic()
            await chat(client, text, max_tokens=11, ignore_eos=True)
            return time.monotonic() - started

        quick, slow = await asyncio.gather(took_s("water"), took_s("treacle"))
        assert quick < 0.1
        assert slow > 0.18


async def test_oversized_floods_body_or_head():
    size = 3_000_000
    async with fast_worker(faults=(Fault("oversized", size_bytes=size),)) as (worker, _):
        for body in (WHOLE, STREAM):
            data, _ = await received(worker, body)
            assert len(data) > size
        worker.order(Fault("oversized", part="head", size_bytes=size))
        data, _ = await received(worker, WHOLE)
        assert len(data) > size
        assert b"\r\n\r\n" not in data


async def test_a_fault_strikes_only_what_it_matches_and_as_often_as_told():
    async with fast_worker() as (_, client):
        ordered = await client.post(
            "/faults", json=[{"kind": "status", "status": 503, "count": 2, "match": "moon"}]
        )
        assert ordered.status_code == 200
        texts = ("sun", "moon", "sun", "moon", "moon")
        replies = [await client.post("/v1/chat/completions", json=asking(text)) for text in texts]
        assert [reply.status_code for reply in replies] == [200, 503, 200, 503, 200]
        assert (await client.get("/faults")).json() == {"faults": [], "struck": 2}


async def test_a_fault_may_be_as_likely_as_told():
    async with fast_worker(faults=(Fault("status", probability=0.3),)) as (_, client):
        replies = [await client.post("/v1/chat/completions", json=WHOLE) for _ in range(200)]
        assert 35 < sum(reply.status_code == 500 for reply in replies) < 85


async def test_one_request_may_order_its_own_fault():
    async with fast_worker() as (_, client):
        body = asking(sim_fault={"kind": "status", "status": 429})
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 429
        assert (await client.post("/v1/chat/completions", json=WHOLE)).status_code == 200
        unknown = asking(sim_fault={"kind": "typo"})
        assert (await client.post("/v1/chat/completions", json=unknown)).status_code == 400


async def test_health_may_be_made_to_fail_too_and_misspelt_faults_are_refused():
    async with fast_worker() as (_, client):
        await client.post("/faults", json={"kind": "status", "status": 503, "path": "/health"})
        assert (await client.get("/health")).status_code == 503
        assert (await client.post("/faults", json={"kind": "status", "staus": 503})).status_code == 400
        await client.post("/faults", json=[])
        assert (await client.get("/health")).status_code == 200
