"""Asking a simulated worker, for the tests of this folder: plainly with httpx2, and byte by byte with a socket."""

import asyncio
import json
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from loadtest.worker import SimWorker, WorkerSpec

QUESTION = "What does the tide bring in?"
CAPTURES = Path(__file__).resolve().parents[3] / "shared/vllm/captures"
needs_captures = pytest.mark.skipif(
    not CAPTURES.is_dir(), reason="../shared/vllm/captures is not there to compare with"
)


@asynccontextmanager
async def fast_worker(**options: Any):
    """A worker that takes no time, and a client of it."""
    async with (
        SimWorker(WorkerSpec(decode_s_per_token=options.pop("decode_s_per_token", 0.0), **options)) as worker,
        httpx2.AsyncClient(base_url=worker.url, timeout=20) as client,
    ):
        yield worker, client


def asking(text: Any = QUESTION, **fields: Any):
    return {"model": "sim", "messages": [{"role": "user", "content": text}], **fields}


async def chat(client: httpx2.AsyncClient, text: Any = QUESTION, **fields: Any):
    reply = await client.post("/v1/chat/completions", json=asking(text, **fields))
    assert reply.status_code == 200, reply.text
    return reply.json()


async def stream(client: httpx2.AsyncClient, path: str, body: dict[str, Any]):
    """The events of a stream, `[DONE]` checked and taken off."""
    reply = await client.post(path, json={**body, "stream": True})
    assert reply.status_code == 200, reply.text
    datas = [event.removeprefix("data: ") for event in reply.text.split("\n\n") if event]
    assert datas.pop() == "[DONE]"
    return [json.loads(data) for data in datas]


@asynccontextmanager
async def connected(worker: SimWorker):
    """A bare connection to a worker, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def posted(worker: SimWorker, body: dict[str, Any], path: str = "/v1/chat/completions"):
    """A bare connection over which this body has been posted."""
    async with connected(worker) as (reader, writer):
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        yield reader, writer


async def eventually(condition: Callable[[], object], seconds: float = 2.0):
    """Wait until something that is about to happen has happened."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - whoever is waited for knows nothing of tests
            await asyncio.sleep(0.001)
