"""Calls with names, of which a test sees which reach a worker, which wait in the queue, and what comes of each.

async with HeldWorker() as worker, callers(tmp_path, worker) as made:
    await made.reaches(worker, "tide", "default", LONG)
    await made.waits("ebb", "flex")
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pool import LIMIT_S, gateway, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from held import HeldWorker
    from openai import AsyncOpenAI
    from pool import Gateway

LONG = "tide " * 80_000
"""A prompt that a worker is expected to read for most of a minute."""
RARELY = {"interval_s": 3600, "timeout_s": 60}
ONE_AT_A_TIME: dict[str, Any] = {"health": RARELY, "limits": {"connections_per_endpoint": 1}}
PATIENT: dict[str, Any] = {
    "queue": {"max_wait_s": LIMIT_S},
    "tiers": {"default": {"max_ttft_ms": 1000 * LIMIT_S}, "priority": {"max_ttft_ms": 1000 * LIMIT_S}},
}

Answered = tuple["Mapping[str, str]", str]


class Callers:
    """Those who call, each by a name of its own."""

    def __init__(self, gw: Gateway, client: AsyncOpenAI) -> None:
        self.gw = gw
        self.calls: dict[str, asyncio.Task[Answered]] = {}
        self._client = client

    async def call(
        self,
        name: str,
        tier: str,
        prompt: str = "Why?",
        *,
        client: AsyncOpenAI | None = None,
        **more: Any,
    ) -> asyncio.Task[Answered]:
        self.calls[name] = asyncio.create_task(
            self._answered(client or self._client, user=name, service_tier=tier, prompt=prompt, **more)
        )
        return self.calls[name]

    async def reaches(
        self, worker: HeldWorker, name: str, tier: str, prompt: str = "Why?", **more: Any
    ) -> None:
        """Make a call, and wait until it is with the worker."""
        before = len(worker.reached)
        await self.call(name, tier, prompt, **more)
        await reached(worker, before + 1)

    async def waits(self, name: str, tier: str, prompt: str = "Why?", **more: Any) -> asyncio.Task[Answered]:
        """Make a call, and wait until it waits in the queue."""
        before = (await self.gw.metrics())[depth(tier)]
        call = await self.call(name, tier, prompt, **more)
        await self.until_metric(depth(tier), before + 1)
        return call

    async def until_metric(self, name: str, value: float) -> None:
        async def is_so() -> bool:
            return (await self.gw.metrics()).get(name) == value

        await until(is_so)

    async def endpoint_of(self, name: str) -> str:
        return (await self.calls[name])[0]["x-tidegate-endpoint"]

    async def all(self) -> None:
        await asyncio.gather(*self.calls.values())

    @staticmethod
    async def _answered(client: AsyncOpenAI, prompt: str, **fields: Any) -> Answered:
        fields = {"model": "llama", "max_tokens": 8, "stream": True, **fields}
        messages = [{"role": "user", "content": prompt}]
        reply = await client.chat.completions.with_raw_response.create(messages=messages, **fields)
        if not fields["stream"]:
            return reply.headers, reply.parse().choices[0].message.content
        pieces = [piece.choices[0].delta.content or "" async for piece in reply.parse() if piece.choices]
        return reply.headers, "".join(pieces)


def depth(tier: str) -> str:
    return f'tidegate_queue_calls{{tier="{tier}"}}'


def shed(reason: str) -> str:
    return f'tidegate_queue_shed_total{{reason="{reason}"}}'


SENT_BACK = 'tidegate_flex_sent_back_total{model="llama"}'


@asynccontextmanager
async def callers(home: Path, *workers: Any, **sections: Any) -> AsyncIterator[Callers]:
    async with gateway(home, *workers, **{"health": RARELY, **sections}) as gw:
        made = Callers(gw, gw.client())
        try:
            yield made
        finally:
            for call in made.calls.values():
                call.cancel()
            await asyncio.gather(*made.calls.values(), return_exceptions=True)


async def reached(worker: HeldWorker, calls: int) -> None:
    async def here() -> bool:
        return len(worker.reached) >= calls

    await until(here)


async def left(worker: HeldWorker, *names: str) -> None:
    """Wait until these have left the worker, and nobody else has."""

    async def gone() -> bool:
        return len(worker.left) >= len(names)

    await until(gone)
    assert worker.left == list(names)


async def refused(call: asyncio.Task[Answered]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        await call
    return raised.value
