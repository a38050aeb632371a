"""Limits as a client of the official SDK meets them."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import openai
import pytest
from pool import HELLO, INSTANT, gateway, until

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pool import Gateway

HOLD = 400_000
"""More than is held for the call `HELLO`, in nano-USD: a bound on its prompt, and five tokens of answer."""
BUDGET = 1_000_000


async def refusal_in_the_end(client: openai.AsyncOpenAI) -> openai.RateLimitError:
    """What the last of one call after the other is told."""
    while True:
        try:
            await client.chat.completions.create(**HELLO)
        except openai.RateLimitError as refused:
            return refused


async def asked(gw: Gateway, key: str, **changes: object):
    return await gw.client(key).chat.completions.with_raw_response.create(**{**HELLO, **changes})


async def test_a_key_without_limits_is_told_nothing_of_them(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        reply = await asked(gw, gw.key)
        assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


async def test_requests_above_the_limit_are_refused_as_openai_does(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", requests_per_min=2)
        first = await asked(gw, key)
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert first.headers["x-ratelimit-reset-requests"] in ("30s", "29.999s")
        await asked(gw, key)
        with pytest.raises(openai.RateLimitError) as refused:
            await asked(gw, key)
        error, headers = refused.value, refused.value.response.headers
        assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert 20 < int(headers["retry-after"]) <= 30
        assert 20_000 < int(headers["retry-after-ms"]) <= 30_000
        assert len(await gw.rows(2)) == 2
        assert (await gw.metrics())['tidegate_limits_refused_total{reason="requests"}'] == 1


async def test_the_official_client_comes_back_when_it_is_told_to(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", requests_per_min=600)
        client = gw.client(key)
        began_s = time.monotonic()
        calls = [client.with_options(max_retries=50).chat.completions.create(**HELLO) for _ in range(620)]
        replies = await asyncio.gather(*calls)
        assert len(replies) == 620
        # Beyond the burst of 600 there are ten a second.
        assert time.monotonic() - began_s > 1.8
        assert len(await gw.rows(620)) == 620


async def test_the_official_client_gets_through_with_the_retries_that_it_makes_by_itself(tmp_path: Path):
    """Two, after as long as it is told to wait."""
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", requests_per_min=15)
        chat = gw.client(key).with_options(max_retries=2).chat.completions.with_raw_response
        replies = await asyncio.gather(*(chat.create(**HELLO) for _ in range(16)))
        # There is another one in four seconds.
        assert max(reply.retries_taken for reply in replies) >= 1


async def test_of_a_budget_that_is_spent_the_official_client_tells_at_once(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", budgets={"day": 1000})
        before = await gw.metrics()
        with pytest.raises(openai.RateLimitError) as refused:
            await gw.client(key).with_options(max_retries=5).chat.completions.create(**HELLO)
        assert refused.value.code == "insufficient_quota"
        after, name = await gw.metrics(), 'tidegate_limits_refused_total{reason="budget"}'
        assert after[name] - before.get(name, 0) == 1


async def test_tokens_are_held_as_estimated_and_put_right_when_the_call_ends(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", tokens_per_min=10_000)
        reply = await asked(gw, key, max_tokens=5000)
        used = reply.parse().usage.total_tokens
        assert int(reply.headers["x-ratelimit-remaining-tokens"]) < 5000
        after = await asked(gw, key, max_tokens=1)
        left = int(after.headers["x-ratelimit-remaining-tokens"])
        assert left > 10_000 - used - 200


async def test_a_call_larger_than_the_limit_is_not_to_come_back(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", tokens_per_min=100)
        client = gw.client(key).with_options(max_retries=5)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**{**HELLO, "max_tokens": 500})
        assert refused.value.type == "tokens"
        assert refused.value.response.headers["x-should-retry"] == "false"
        page = await gw.metrics()
        assert page['tidegate_limits_refused_total{reason="tokens"}'] == 1


async def test_no_more_calls_are_under_way_than_a_key_may_have(tmp_path: Path):
    slow = WorkerSpec(decode_s_per_token=0.01)
    async with SimWorker(slow) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", concurrency=3)
        calls = [asked(gw, key, max_tokens=40) for _ in range(8)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(each, openai.RateLimitError) for each in ended) == 5
        await asked(gw, key)
        assert (await gw.metrics())["tidegate_limits_holds"] == 0


async def test_a_prompt_too_deep_to_be_logged_is_no_defect_and_leaves_no_hold(tmp_path: Path):
    deep: object = "High water?"
    for _ in range(600):
        deep = [deep]
    logged = {"tenants": {"acme": {"log_prompts": True}}}
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, **logged) as gw:
        key = await gw.new_key("acme", concurrency=1)
        with pytest.raises(openai.BadRequestError):  # the worker's
            await asked(gw, key, messages=[{"role": "user", "content": deep}])
        await asked(gw, key)
        assert (await gw.metrics())["tidegate_limits_holds"] == 0


async def test_a_budget_that_is_spent_ends_the_calls_of_its_key_and_of_no_other(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", budgets={"month": BUDGET})
        other = await gw.new_key("acme")
        client = gw.client(key).with_options(max_retries=5)
        error = await refusal_in_the_end(client)
        assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
        assert error.response.headers["x-should-retry"] == "false"
        assert int(error.response.headers["retry-after"]) > 0
        await asked(gw, other)
        rows = await gw.rows()
        spent = sum(row.charge_nano_usd for row in rows[:-1])
        assert BUDGET - HOLD < spent <= BUDGET
        assert (await gw.metrics())["tidegate_limits_holds"] == 0


async def test_a_call_with_a_budget_that_has_not_said_how_much_it_may_write_is_given_a_limit(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", budgets={"total": 10**9})
        without = {name: value for name, value in HELLO.items() if name != "max_tokens"}
        await gw.client(key).chat.completions.create(**without)
        assert b'"max_completion_tokens":4096' in worker.requests[-1].body
        await gw.client().chat.completions.create(**without)
        assert b"max_completion_tokens" not in worker.requests[-1].body


async def test_a_client_that_leaves_leaves_no_hold(tmp_path: Path):
    slow = WorkerSpec(decode_s_per_token=0.05)
    async with SimWorker(slow) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", budgets={"day": 10**9}, concurrency=1, tokens_per_min=10**6)
        stream = await gw.client(key).chat.completions.create(**{**HELLO, "max_tokens": 500}, stream=True)
        await anext(aiter(stream))
        await stream.close()

        async def none_held() -> bool:
            return (await gw.metrics())["tidegate_limits_holds"] == 0

        await until(none_held)
        await asked(gw, key, max_tokens=1)
        (left, _) = await gw.rows(2)
        assert left.outcome == "client_left"
        assert left.charge_nano_usd > 0


async def test_what_was_spent_before_a_restart_still_counts(tmp_path: Path):
    async with SimWorker(INSTANT) as worker:
        async with gateway(tmp_path, worker) as gw:
            key = await gw.new_key("acme", budgets={"day": BUDGET})
            await refusal_in_the_end(gw.client(key))
            spent = sum(row.charge_nano_usd for row in await gw.rows())
        async with gateway(tmp_path, worker) as gw:
            with pytest.raises(openai.RateLimitError) as refused:
                await asked(gw, key)
            assert refused.value.code == "insufficient_quota"
            assert sum(row.charge_nano_usd for row in await gw.rows(0)) == spent
