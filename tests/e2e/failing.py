"""Endpoints that fail in one way or another, in front of one that does not, and the call that meets them.

Calls are of the tier `flex`, where price decides, so endpoints are asked in the order in which they are listed.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from openai import AsyncOpenAI
from pool import PRICE, endpoint
from scripted import Server, answers_and_closes

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

MESSAGES = [{"role": "user", "content": "Why are there tides?"}]
ASKED: dict[str, Any] = {"model": "llama", "messages": MESSAGES, "max_tokens": 8, "service_tier": "flex"}
PROMPT_TOKENS = len(msgspec.json.encode(MESSAGES)) // 4
"""As the gateway estimates them, where no worker says."""
QUICK = WorkerSpec(decode_s_per_token=0)

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
"""The end of a chunked body."""

Failing = Fault | WorkerSpec | bytes | str
"""How an endpoint fails: a simulated worker's fault, or its own settings; what a socket says before it closes; or one of
"refused" and "unanswered", for a port where no connection can be made."""


def part(body: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def chunk(content: str = "", finish_reason: str | None = None, index: int = 0) -> bytes:
    """An event of a stream, as a piece of a chunked body."""
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}
    return event(msgspec.json.encode({"id": "c", "model": "sim", "choices": [choice]}))


def event(content: bytes) -> bytes:
    return part(b"data: %b\n\n" % content)


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (
        status,
        len(body),
    )
    return head + body


def models(*endpoints: Mapping[str, Any]) -> dict[str, Any]:
    """The section `models` with the model `llama` at these, each dearer than the one before."""
    return {"llama": model(*endpoints)}


def model(*endpoints: Mapping[str, Any]) -> dict[str, Any]:
    listed = [{**section, "cost": {"input": n, "output": n}} for n, section in enumerate(endpoints, start=1)]
    return {"price": PRICE, "endpoints": listed}


def hosted(port: int, name: str = "bad") -> dict[str, Any]:
    """An endpoint that gets no health checks, so that calls are the first to see what is wrong with it."""
    return {"openai": f"http://127.0.0.1:{port}/v1", "name": name, "model": "sim"}


@asynccontextmanager
async def failing(how: Failing) -> AsyncIterator[dict[str, Any]]:
    """An endpoint named `bad` that fails like this, for as long as the block runs."""
    match how:
        case Fault() | WorkerSpec():
            async with SimWorker(how if isinstance(how, WorkerSpec) else QUICK) as worker:
                worker.order(*([how] if isinstance(how, Fault) else []))
                yield endpoint(worker, "bad")
        case bytes():
            async with Server(answers_and_closes(how)) as server:
                yield hosted(server.port)
        case "refused":
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))  # and never listens
                yield hosted(taken.getsockname()[1])
        case _:
            with socket.socket() as full, socket.socket() as first, socket.socket() as second:
                full.bind(("127.0.0.1", 0))
                full.listen(0)
                for filling in (first, second):  # beyond these, a SYN gets no answer
                    filling.setblocking(False)
                    filling.connect_ex(full.getsockname())
                yield hosted(full.getsockname()[1])


async def ask(client: AsyncOpenAI, *, stream: bool = False, **more: Any) -> tuple[Mapping[str, str], str]:
    """Headers and text of an answer."""
    reply = await client.chat.completions.with_raw_response.create(**ASKED | more, stream=stream)
    if not stream:
        return reply.headers, reply.parse().choices[0].message.content
    return reply.headers, "".join([piece.choices[0].delta.content or "" async for piece in reply.parse()])


async def said_by(worker: SimWorker, **more: Any) -> str:
    """What the worker says to the same call without a gateway."""
    async with AsyncOpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as client:
        reply = await client.chat.completions.create(**ASKED | more | {"model": "sim"})
    return reply.choices[0].message.content


def attempts(page: Mapping[str, float], model: str = "llama") -> dict[tuple[str, str], float]:
    """Attempts at the endpoints of a model by name and outcome, from a page of metrics."""
    return {
        (_label(name, "endpoint"), _label(name, "outcome")): count
        for name, count in page.items()
        if name.startswith("tidegate_attempts_total{") and _label(name, "model") == model
    }


def of_endpoint(page: Mapping[str, float], metric: str, name: str = "bad", model: str = "llama") -> float:
    return page[f'tidegate_endpoint_{metric}{{endpoint="{name}",model="{model}"}}']


def _label(sample: str, label: str) -> str:
    return sample.partition(f'{label}="')[2].partition('"')[0]
