import asyncio
import json
import time

import httpx2
from sim_client import CAPTURES, asking, chat, eventually, fast_worker, needs_captures, posted

from loadtest.worker import WorkerSpec

LONG = "the water rises and falls again " * 200


async def took_s(client: httpx2.AsyncClient, text: str = "short", **fields: object) -> float:
    started = time.monotonic()
    await chat(client, text, **fields)
    return time.monotonic() - started


async def test_a_cached_prefix_needs_no_prefill_and_is_reported():
    async with fast_worker(prefill_tokens_per_s=10_000.0) as (_, client):
        cold = await took_s(client, LONG, max_tokens=1)
        warm = await took_s(client, LONG, max_tokens=1)
        usage = (await chat(client, LONG, max_tokens=1))["usage"]
    assert cold > usage["prompt_tokens"] / 10_000 > 0.05
    assert warm < cold / 3
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached == (usage["prompt_tokens"] - 1) // 16 * 16


async def test_the_last_block_is_computed_anew_even_if_full():
    async with fast_worker(block_size=32) as (_, client):
        body = {"prompt": list(range(5000, 5064)), "max_tokens": 1}
        for cached in (0, 32):
            usage = (await client.post("/v1/completions", json=body)).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == cached


async def test_another_cache_salt_shares_nothing():
    async with fast_worker() as (_, client):
        await chat(client, LONG, cache_salt="mine")
        other = await chat(client, LONG, cache_salt="yours")
        assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_the_least_recently_used_blocks_are_forgotten():
    async with fast_worker(kv_blocks=8) as (worker, client):
        for first in (5000, 6000, 7000, 5000):
            body = {"prompt": list(range(first, first + 64)), "max_tokens": 1}
            usage = (await client.post("/v1/completions", json=body)).json()["usage"]
            assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert len(worker.engine.cache) == 8


async def test_an_answer_is_cached_for_the_next_turn():
    async with fast_worker() as (_, client):
        answer = (await chat(client, ignore_eos=True, max_tokens=64))["choices"][0]["message"]
        turns = [*asking()["messages"], answer, {"role": "user", "content": "And then?"}]
        usage = (await client.post("/v1/chat/completions", json={"messages": turns})).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= 64


async def test_tokens_come_at_the_pace_of_decoding_and_more_slowly_in_a_batch():
    async with fast_worker(decode_s_per_token=0.004, batch_slowdown=0.25) as (_, client):
        alone = await took_s(client, max_tokens=26, ignore_eos=True)
        assert 0.1 <= alone < 0.18
        together = await asyncio.gather(
            *(took_s(client, f"{n}", max_tokens=26, ignore_eos=True) for n in range(5))
        )
        assert min(together) > 0.18


async def test_no_more_than_max_num_seqs_run_and_the_rest_wait_their_turn():
    async with fast_worker(decode_s_per_token=0.002, max_num_seqs=2) as (worker, client):
        asked = [asyncio.create_task(chat(client, f"{n}", max_tokens=20, ignore_eos=True)) for n in range(5)]
        await eventually(lambda: len(worker.engine.waiting) == 3)
        text = (await client.get("/metrics")).text
        assert 'vllm:num_requests_running{engine="0",model_name="sim"} 2.0' in text
        assert 'vllm:num_requests_waiting{engine="0",model_name="sim"} 3.0' in text
        await asyncio.gather(*asked)
        assert not worker.engine.running
        assert worker.engine.kv_usage == 0


async def test_over_a_full_queue_the_answer_is_a_503_without_retry_after():
    async with fast_worker(decode_s_per_token=0.01, max_num_seqs=1, max_num_queued_reqs=1) as (
        worker,
        client,
    ):
        body = asking(max_tokens=1000, ignore_eos=True)
        async with posted(worker, body), posted(worker, body):
            await eventually(lambda: worker.engine.waiting)
            reply = await client.post("/v1/chat/completions", json=body)
            assert reply.status_code == 503
            assert "retry-after" not in reply.headers
            assert reply.json()["error"]["type"] == "Service Unavailable"
            text = (await client.get("/metrics")).text
            assert 'admission_rejections_total{model_name="sim",reason="max_num_queued_reqs"} 1.0' in text


@needs_captures
async def test_the_503_is_worded_as_captured():
    captured = next(
        line for line in (CAPTURES / "priority_and_503.txt").read_text().splitlines() if "ovf1" in line
    )
    body = captured[captured.index('{"error"') : captured.rindex("}") + 1]
    async with (
        fast_worker(decode_s_per_token=0.01, max_num_seqs=1, max_num_queued_reqs=0) as (
            worker,
            client,
        ),
        posted(worker, asking(max_tokens=1000, ignore_eos=True)),
    ):
        await eventually(lambda: worker.engine.running)
        assert (await client.post("/v1/chat/completions", json=asking())).json() == json.loads(body)


async def test_with_the_priority_policy_the_lower_number_goes_first():
    options = {"decode_s_per_token": 0.002, "max_num_seqs": 1, "scheduling_policy": "priority"}
    async with fast_worker(**options) as (worker, client):
        ended: list[int] = []

        async def ask(priority: int) -> None:
            await chat(client, max_tokens=5, ignore_eos=True, priority=priority)
            ended.append(priority)

        first = asyncio.create_task(ask(0))
        await eventually(lambda: worker.engine.running)
        others = [asyncio.create_task(ask(priority)) for priority in (5, -5, 1)]
        await asyncio.gather(first, *others)
        assert ended == [0, -5, 1, 5]


async def test_a_waiting_client_that_leaves_is_forgotten():
    async with fast_worker(decode_s_per_token=0.01, max_num_seqs=1) as (worker, _):
        body = asking(max_tokens=1000, ignore_eos=True)
        async with posted(worker, body):
            await eventually(lambda: worker.engine.running)
            async with posted(worker, body):
                await eventually(lambda: worker.engine.waiting)
            await eventually(lambda: not worker.engine.waiting)
            assert len(worker.engine.running) == 1
        await worker.engine.idle.wait()


async def test_a_client_that_leaves_while_its_prompt_is_read_lets_the_next_one_be_read():
    async with fast_worker(prefill_tokens_per_s=100.0) as (worker, client):
        async with posted(worker, asking(LONG)):
            await eventually(lambda: worker.engine.running)
        assert await took_s(client, "x", max_tokens=1) < 0.5


async def test_decoding_in_no_time_means_reading_in_no_time_unless_told():
    assert WorkerSpec(decode_s_per_token=0.0).prefill_s_per_token == 0
    assert WorkerSpec().prefill_s_per_token == 1 / 20_000
    assert WorkerSpec(decode_s_per_token=0.0, prefill_tokens_per_s=100.0).prefill_s_per_token == 0.01
