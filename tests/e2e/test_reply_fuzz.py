"""Workers that answer mutated replies: whatever comes from them, a client is told so in the usual shape, or gets a whole
answer; the gateway has no defect, and nothing is left behind.

The seeds are fixed. More of it, by hand: `TIDEGATE_FUZZ_ROUNDS=10000 pytest tests/e2e/test_reply_fuzz.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import httpx2
import pytest
from pool import HELLO, LIMIT_S, Gateway, endpoint, gateway
from test_edge_fuzz import mutated, quiet

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("TIDEGATE_FUZZ_ROUNDS", "300"))
WORKERS = 6
"""Calls go on where others have been taken out for what they answer."""
CALLS: tuple[dict[str, Any], ...] = (
    HELLO,
    {**HELLO, "stream": True},
    {**HELLO, "stream": True, "logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}},
    {**HELLO, "tools": [{"type": "function", "function": {"name": "tide"}}], "stream": True},
)


class Mutating:
    """A server that passes requests on to a worker, and its replies back with a few bytes changed."""

    def __init__(self, worker: SimWorker, seed: int) -> None:
        self._worker = worker
        self._dice = random.Random(seed)  # noqa: S311 - no secrets
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            said = await self._asked(head, await reader.readexactly(length))
            if b"/v1/chat" in head and self._dice.random() < 0.7:
                said = mutated(self._dice, [said])
            for at in range(0, len(said), 700):
                writer.write(said[at : at + 700])
                await writer.drain()
        writer.close()

    async def _asked(self, head: bytes, body: bytes) -> bytes:
        """What the worker says to it, with the connection closed behind."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._worker.port)
        writer.write(head[:-2] + b"connection: close\r\n\r\n" + body)
        said = await reader.read()
        writer.close()
        return said


async def test_whatever_workers_answer_is_told_in_the_usual_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    timeouts = {"first_byte_s": 2, "silence_s": 1, "total_s": 10}
    async with SimWorker() as worker:
        servers = [Mutating(worker, seed) for seed in range(WORKERS)]
        for server in servers:
            await server.__aenter__()
        endpoints = [endpoint(server, f"worker-{number}") for number, server in enumerate(servers)]
        models = {"llama": {"price": {"input": 1, "output": 2}, "endpoints": endpoints}}
        async with gateway(tmp_path, models=models, timeouts=timeouts, queue={"max_wait_s": 0.2}) as gw:
            outcomes = [await answered(gw, CALLS[number % len(CALLS)]) for number in range(ROUNDS)]
            await quiet(gw)
            assert "defect" not in caplog.text
            assert "Traceback" not in caplog.text
            assert 200 in outcomes
            assert 500 not in outcomes
            rows = await gw.rows(least=0)
            assert len({row.call_id for row in rows}) == len(rows)
        for server in servers:
            await server.__aexit__()


async def answered(gw: Gateway, call: dict[str, Any]) -> int:
    """The status. A stream that has begun ends either as a whole one or with an error that says what is wrong."""
    headers = {"authorization": f"Bearer {gw.key}"}
    try:
        async with asyncio.timeout(LIMIT_S):
            reply = await gw.http.post("/v1/chat/completions", json=call, headers=headers)
    except httpx2.RemoteProtocolError as failure:
        pytest.fail(f"no reply that is one: {failure}")
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]
    elif call.get("stream"):
        assert reply.text.endswith("data: [DONE]\n\n") or '"error":' in reply.text, reply.text[-300:]
    return reply.status_code
