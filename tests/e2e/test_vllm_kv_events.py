"""A real vLLM that publishes its KV events, and a gateway that follows them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from pool import PRICE, gateway, until

if TYPE_CHECKING:
    from pathlib import Path

    from pool import Gateway
    from vllm_pool import Worker

pytest.importorskip("zmq", reason="no pyzmq here")
pytestmark = pytest.mark.vllm

CACHE_TOKENS = 512 * 32
"""As serve.sh starts it."""
WORDS = ("tide", "moon", "sea", "wave", "salt", "wind")


def prompt(dice: random.Random) -> str:
    """About 1500 tokens that no other prompt begins with."""
    return " ".join(f"{dice.choice(WORDS)}{dice.randrange(1000)}" for _ in range(300))


async def is_followed(gw: Gateway) -> bool:
    return 'tidegate_kv_events_held_tokens{endpoint="v",model="llama"}' in await gw.metrics()


async def test_what_a_real_worker_stores_and_evicts_is_known_and_believed(
    servers: list[Worker], tmp_path: Path
):
    worker = servers[2]
    section = {
        "worker": worker.url,
        "name": "v",
        "model": "tiny",
        "kv_events": worker.events,
        "kv_replay": worker.replay,
    }
    models = {"llama": {"price": PRICE, "endpoints": [section]}}
    async with gateway(tmp_path, models=models) as gw:
        client = gw.client()
        dice = random.Random(1)  # noqa: S311 - prompts, no secrets

        async def metric(name: str) -> float:
            page = await gw.metrics()
            return page[f'tidegate_kv_events_{name}{{endpoint="v",model="llama"}}']

        async def ask(text: str) -> int:
            messages = [{"role": "user", "content": text}]
            reply = await client.chat.completions.create(model="llama", messages=messages, max_tokens=2)
            return reply.usage.prompt_tokens

        async def holds_the_first() -> bool:
            return await is_followed(gw) and await metric("held_tokens") >= first - 64

        first = await ask(prompt(dice))
        await until(holds_the_first)
        assert await metric("held_tokens") <= first + 64

        # Twice as much as there is room for.
        for _ in range(2 * CACHE_TOKENS // first):
            await ask(prompt(dice))

        async def believed() -> bool:
            return await metric("believed") == 1

        await until(believed)
        assert CACHE_TOKENS * 0.8 < await metric("held_tokens") <= CACHE_TOKENS
        assert await metric("mismatch_total") == await metric("gaps_total") == 0
    # A gateway that comes later learns from the replay what is there.
    async with gateway(tmp_path, models=models) as gw:
        await gw.client().chat.completions.create(
            model="llama", messages=[{"role": "user", "content": prompt(dice)}], max_tokens=2
        )
        await until(lambda: is_followed(gw))
