"""A real vLLM is killed in the midst of ten streams; another one writes them to their end as if nothing had happened."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from gateway_process import gateway_process
from vllm_pool import MASTER, async_client, draining

if TYPE_CHECKING:
    from pathlib import Path

    from openai import AsyncOpenAI
    from vllm_pool import Worker

pytestmark = pytest.mark.vllm

TIMEOUT_S = 180
VICTIM, OTHER = "vllm-2", "vllm-3"
QUESTIONS = ("tides", "storms", "stars", "whales", "harbours", "lamps", "ropes", "charts", "reefs", "moons")
SEEN = 3
"""Chunks of each stream before the worker is killed."""


def asked(number: int) -> dict[str, Any]:
    """Ten calls of several kinds, so long that none has come to its end when the worker is killed."""
    call: dict[str, Any] = {"model": "llama", "max_tokens": 600, "temperature": 0}
    call["extra_body"] = {"ignore_eos": True}
    text = f"What is there to be said of {QUESTIONS[number]}?"
    if number % 3 == 2:
        return call | {"prompt": text}
    return call | {"messages": [{"role": "user", "content": text}]}


async def told(client: AsyncOpenAI, call: dict[str, Any]) -> tuple[str, Any]:
    """Text and usage of a whole reply of the other worker."""
    call = call | {"extra_body": call["extra_body"] | {"routing": {"only": [OTHER]}}}
    if "prompt" in call:
        plain = await client.completions.create(**call)
        return plain.choices[0].text, plain.usage
    chat = await client.chat.completions.create(**call)
    return chat.choices[0].message.content, chat.usage


class Listener:
    """The client of one stream. It looks at what came when all has: an SDK would be slower than ten streams."""

    def __init__(self) -> None:
        self.raw = b""
        self.endpoint = ""
        self._came = asyncio.Event()

    async def listen(self, http: httpx2.AsyncClient, call: dict[str, Any]) -> None:
        body = {key: value for key, value in call.items() if key != "extra_body"} | call["extra_body"]
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/v1/completions" if "prompt" in call else "/v1/chat/completions"
        async with http.stream("POST", path, json=body) as reply:
            self.endpoint = reply.headers["x-tidegate-endpoint"]
            async for block in reply.aiter_raw():
                self.raw += block
                self._came.set()

    async def has(self, count: int) -> None:
        """Wait for so many chunks."""
        while self.raw.count(b"\n\n") < count:
            self._came.clear()
            await self._came.wait()

    @property
    def chunks(self) -> list[dict[str, Any]]:
        lines = self.raw.decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def text_of(chunks: list[dict[str, Any]]) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(each["text"] if "text" in each else each["delta"].get("content", "") for each in choices)


def calls() -> list[dict[str, Any]]:
    return [asked(number) for number in range(len(QUESTIONS))]


async def with_stops(client: AsyncOpenAI) -> tuple[list[dict[str, Any]], list[tuple[str, Any]]]:
    """The calls, two of them with a stop string late in their answer, and what becomes of them undisturbed."""
    asked_for = calls()
    answers = await asyncio.gather(*(told(client, call) for call in asked_for))
    for number in (0, 5):
        text = answers[number][0]
        asked_for[number]["stop"] = text[len(text) * 3 // 4 :][:12]
    return asked_for, await asyncio.gather(*(told(client, call) for call in asked_for))


@pytest.fixture
def workers(servers: list[Worker]) -> list[Worker]:
    return servers[1:]


def served(workers: list[Worker]) -> dict[str, Any]:
    endpoints = [{"worker": worker.url, "name": worker.name, "model": "tiny"} for worker in workers]
    return {"llama": {"price": {"input": 1, "output": 1}, "endpoints": endpoints}}


async def test_ten_streams_of_a_worker_that_is_killed_end_as_undisturbed(
    workers: list[Worker], tmp_path: Path
):
    with gateway_process(tmp_path, served(workers), auth={"master_key": MASTER}) as gateway:
        key = gateway.new_key("harbour")
        async with async_client(gateway, key) as client:
            asked_for, expected = await with_stops(client)
            listeners = [Listener() for _ in asked_for]
            await asyncio.to_thread(draining, gateway, "POST", OTHER)
            headers = {"authorization": f"Bearer {key}"}
            async with httpx2.AsyncClient(base_url=gateway.url, headers=headers, timeout=TIMEOUT_S) as http:
                async with asyncio.TaskGroup() as group:
                    for listener, call in zip(listeners, asked_for, strict=True):
                        group.create_task(listener.listen(http, call))
                    for listener in listeners:
                        await listener.has(SEEN)
                    workers[0].kill()
                    await asyncio.to_thread(draining, gateway, "DELETE", OTHER)
        for listener, call, (text, usage) in zip(listeners, asked_for, expected, strict=True):
            assert listener.endpoint == VICTIM
            chunks = listener.chunks
            assert text_of(chunks) == text, call
            assert len({chunk["id"] for chunk in chunks}) == 1
            finishes = [each["finish_reason"] for chunk in chunks for each in chunk["choices"]]
            assert [each for each in finishes if each] == ["stop" if "stop" in call else "length"]
            shown = chunks[-1]["usage"]
            told_tokens = (usage.prompt_tokens, usage.completion_tokens)
            assert (shown["prompt_tokens"], shown["completion_tokens"]) == told_tokens
        resumed = [
            line for line in gateway.metrics().splitlines() if line.startswith("tidegate_resumes_total{")
        ]
        by_tokens = [
            line for line in resumed if 'cause="upstream_broken"' in line and 'outcome="tokens"' in line
        ]
        assert sum(float(line.split()[-1]) for line in by_tokens) == len(listeners), resumed
        assert not [line for line in resumed if 'outcome="error"' in line]
