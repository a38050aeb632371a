"""Calls find the worker that has their prompt in its cache, and tenants profit from each other's only where they may."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pool import PRICE, endpoint, gateway, until

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM = "You are the harbour master. " + "Know every berth, every buoy and every tide by heart. " * 60


@asynccontextmanager
async def workers(count: int):
    async with AsyncExitStack() as stack:
        spec = WorkerSpec(decode_s_per_token=0)
        yield [await stack.enter_async_context(SimWorker(spec)) for _ in range(count)]


def models(fleet: list[SimWorker], **more: Any) -> dict[str, Any]:
    endpoints = [endpoint(worker, f"worker-{n}") for n, worker in enumerate(fleet, start=1)]
    return {"llama": {"price": PRICE, "endpoints": endpoints, **more}}


async def ask(client: Any, messages: list[dict[str, str]], **more: Any) -> tuple[str, Any]:
    """The endpoint that answered, and its answer."""
    raw = await client.chat.completions.with_raw_response.create(
        model="llama", messages=messages, max_tokens=8, **more
    )
    return raw.headers["x-tidegate-endpoint"], raw.parse()


async def test_every_turn_of_a_conversation_finds_its_worker_and_its_cache(tmp_path: Path):
    async with workers(4) as fleet, gateway(tmp_path, *fleet) as gw:
        client = gw.client()
        for topic in ("fog", "ropes", "gulls"):
            messages = [
                {"role": "system", "content": f"{topic}: {SYSTEM}"},
                {"role": "user", "content": "What of the tide?"},
            ]
            first, reply = await ask(client, messages)
            assert (
                reply.usage.prompt_tokens_details is None
                or reply.usage.prompt_tokens_details.cached_tokens == 0
            )
            for question in ("And then?", "And after that?"):
                messages.append({"role": "assistant", "content": reply.choices[0].message.content})
                messages.append({"role": "user", "content": question})
                again, reply = await ask(client, messages)
                assert again == first
                assert reply.usage.prompt_tokens_details.cached_tokens > 0.8 * len(SYSTEM.split())
        rows = await gw.rows(9)
        assert [row.cached_tokens > 0 for row in rows] == [False, True, True] * 3


async def test_a_stream_leaves_its_prefix_behind_as_well(tmp_path: Path):
    async with workers(4) as fleet, gateway(tmp_path, *fleet) as gw:
        client = gw.client()
        messages = [{"role": "system", "content": SYSTEM}]
        raw = await client.chat.completions.with_raw_response.create(
            model="llama", messages=messages, max_tokens=8, stream=True
        )
        async for _ in raw.parse():
            pass
        later = [await ask(client, [*messages, {"role": "user", "content": str(n)}]) for n in range(6)]
        assert {name for name, _ in later} == {raw.headers["x-tidegate-endpoint"]}


async def test_other_prompts_share_the_workers(tmp_path: Path):
    async with workers(4) as fleet, gateway(tmp_path, *fleet) as gw:
        client = gw.client()
        calls = [ask(client, [{"role": "user", "content": f"{n} {SYSTEM}"}]) for n in range(24)]
        served = [name for name, _ in await asyncio.gather(*calls)]
        assert len(set(served)) == 4


@pytest.mark.parametrize("prefix_cache", ["shared", "per_tenant"])
async def test_tenants_share_a_workers_cache_unless_the_model_keeps_them_apart(
    tmp_path: Path, prefix_cache: str
):
    async with workers(1) as fleet, gateway(tmp_path, models=models(fleet, prefix_cache=prefix_cache)) as gw:
        messages = [{"role": "user", "content": SYSTEM}]
        cached = []
        for key in (gw.key, gw.key, await gw.new_key("rival")):
            _, reply = await ask(gw.client(key), messages)
            details = reply.usage.prompt_tokens_details
            cached.append(details.cached_tokens if details else 0)
        assert cached[0] == 0
        assert cached[1] > 0
        assert (cached[2] > 0) == (prefix_cache == "shared")


async def test_a_tenant_cannot_choose_anothers_salt_and_may_part_its_own_calls(tmp_path: Path):
    async with workers(1) as fleet, gateway(tmp_path, models=models(fleet, prefix_cache="per_tenant")) as gw:
        client = gw.client()
        sent = []
        for more in ({}, {"cache_salt": "mine"}, {"cache_salt": "mine"}):
            await ask(client, [{"role": "user", "content": SYSTEM}], extra_body=more)
            sent.append(json.loads(fleet[0].requests[-1].body)["cache_salt"])
        assert sent[0] != sent[1] == sent[2]
        assert "mine" not in sent
        rival = gw.client(await gw.new_key("rival"))
        await ask(rival, [{"role": "user", "content": SYSTEM}], extra_body={"cache_salt": sent[0]})
        assert json.loads(fleet[0].requests[-1].body)["cache_salt"] not in sent


async def test_a_provider_is_sent_no_salt_of_ours(tmp_path: Path):
    async with workers(1) as fleet:
        hosted = {"openai": f"{fleet[0].url}/v1", "name": "hosted", "model": "sim"}
        section = {"llama": {"price": PRICE, "prefix_cache": "per_tenant", "endpoints": [hosted]}}
        async with gateway(tmp_path, models=section) as gw:
            await ask(gw.client(), [{"role": "user", "content": SYSTEM}])
            assert b"cache_salt" not in fleet[0].requests[-1].body


async def test_a_worker_that_refused_a_prompt_does_not_count_as_having_it(tmp_path: Path):
    messages = [{"role": "user", "content": SYSTEM}]
    async with (
        workers(2) as fleet,
        gateway(tmp_path, *fleet, auth={"master_key": "sk-master"}, queue={"max_wait_s": 0.5}) as gw,
    ):

        async def cached_tokens() -> list[int]:
            """At those who take calls now."""
            question = {"model": "llama", "messages": messages}
            admin = {"authorization": "Bearer sk-master"}
            plan = (await gw.http.post("/admin/explain", json=question, headers=admin)).json()
            return [each["cached_tokens"] for each in plan["candidates"]]

        for worker in fleet:
            worker.order(Fault(kind="status", status=503, retry_after_s=2))  # longer than a call waits
        with pytest.raises(openai.InternalServerError, match="2 endpoints were tried"):
            await ask(gw.client(), messages)

        async def back() -> bool:
            return len(await cached_tokens()) == 2

        await until(back)
        assert await cached_tokens() == [0, 0]
        for worker in fleet:
            worker.order()
        await ask(gw.client(), messages)
        assert sorted(bool(tokens) for tokens in await cached_tokens()) == [False, True]
