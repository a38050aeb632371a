"""An upstream that answers at once, so that whatever a bench measures in front of it is not the upstream.

The simulated worker (`worker.py`) behaves like vLLM; this one only looks like it. It parses no more of a request than
where it ends and whether it asks for a stream, its replies are rendered before the first request comes, and one
process can listen on as many ports as a pool needs endpoints. A stream goes out in one burst, or, where the prompt begins
with `paced: `, chunk by chunk at a fixed pace kept by one ticker for all streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from typing import TYPE_CHECKING, Any, cast

import uvloop
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BURST_CHUNKS = 32
PACED_PROMPT = "paced: "
"""In the prompt, because proxies drop or rewrite other fields of a body, but never this."""
_PACED = f'"{PACED_PROMPT}'.encode()
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_INCLUDE_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
TRACES_PATH = "/v1/traces"
"""Here it takes what is sent to a collector of traces, and forgets it."""
_SLOTS = 20
"""Paced streams are spread over the pace's period: real workers do not all emit at the same instant."""


class Replies(Struct, frozen=True):
    """Every reply there is, rendered. Stream events carry their chunked framing, one HTTP chunk each, as uvicorn's."""

    json: bytes
    stream_head: bytes
    role: bytes
    token: bytes
    last_token: bytes
    end: bytes
    burst: bytes
    burst_with_usage: bytes
    pages: dict[bytes, bytes]
    missing: bytes
    events: _Events


def reply_text(chunks: int = BURST_CHUNKS) -> str:
    """The content of a stream of `chunks` chunks, the first of which carries the role alone."""
    return " tide" * (chunks - 1)


def render_replies(model: str) -> Replies:
    """The replies of a server whose name for its model is `model`, in vLLM's format."""
    events = _Events(model)
    role, token, last_token = events.role(), events.token(None), events.token("stop")
    usage, end = events.usage(BURST_CHUNKS - 1), _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    head = (
        b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    body = head + role + token * (BURST_CHUNKS - 2) + last_token
    return Replies(
        json=_page(_completion(model)),
        stream_head=head,
        role=role,
        token=token,
        last_token=last_token,
        end=end,
        burst=body + end,
        burst_with_usage=body + usage + end,
        pages=_pages(model),
        missing=_page(
            {"error": {"message": "Not Found", "type": "NotFoundError", "param": None, "code": 404}},
            "404 Not Found",
        ),
        events=events,
    )


class _Events:
    """The events of a stream as vLLM words them."""

    def __init__(self, model: str) -> None:
        self._base = {
            "id": "chatcmpl-mock",
            "object": "chat.completion.chunk",
            "created": 1795352170,
            "model": model,
        }

    def role(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return _event({**self._base, "choices": [choice], "prompt_token_ids": None, "prompt_text": None})

    def token(self, finish_reason: str | None) -> bytes:
        choice: dict[str, Any] = {
            "index": 0,
            "delta": {"content": " tide"},
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        if finish_reason is not None:
            choice["stop_reason"] = None
        return _event({**self._base, "choices": [{**choice, "token_ids": None}]})

    def usage(self, completion_tokens: int) -> bytes:
        usage = _usage(completion_tokens)
        return _event({**self._base, "choices": [], "usage": usage, "system_fingerprint": "vllm-mock"})


def _usage(completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 300,
        "total_tokens": 300 + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _completion(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply_text(), "refusal": None, "tool_calls": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1795352170,
        "model": model,
        "choices": [choice],
        "usage": _usage(BURST_CHUNKS - 1),
    }


def _pages(model: str) -> dict[bytes, bytes]:
    """What routers ask for when a worker is registered and while they watch it."""
    card = {
        "id": model,
        "object": "model",
        "created": 1795352169,
        "owned_by": "vllm",
        "root": model,
        "max_model_len": 131072,
    }
    info = {"model_path": model, "served_model_name": model, "tokenizer_path": model, "is_generation": True}
    empty = b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-length: 0\r\n\r\n"
    metrics = b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: 0\r\n\r\n"
    return {
        b"/health": empty,
        b"/health_generate": empty,
        b"/ping": empty,
        b"/metrics": metrics,
        TRACES_PATH.encode(): empty,
        b"/v1/models": _page({"object": "list", "data": [card]}),
        b"/version": _page({"version": "0.32.0"}),
        b"/get_model_info": _page(info),
        b"/model_info": _page(info),
        b"/get_server_info": _page(info),
        b"/server_info": _page(info),
    }


def _compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _page(value: object, status: str = "200 OK") -> bytes:
    body = _compact(value)
    head = f"HTTP/1.1 {status}\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _event(value: object) -> bytes:
    return _framed(b"data: " + _compact(value) + b"\n\n")


def _framed(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class Ticker:
    """Drives every paced stream from one timer, each stream in one of the slots of the pace's period."""

    def __init__(self, chunks_per_s: float) -> None:
        self._step_s = 1 / chunks_per_s / _SLOTS
        self._slots: list[dict[_PacedStream, None]] = [{} for _ in range(_SLOTS)]
        self._joined = 0
        self._running = 0
        self._slot = 0
        self._due_s = 0.0

    def join(self, stream: _PacedStream) -> None:
        stream.slot = self._joined % _SLOTS
        self._joined += 1
        self._slots[stream.slot][stream] = None
        self._running += 1
        if self._running == 1:
            loop = asyncio.get_running_loop()
            self._due_s = loop.time() + self._step_s
            loop.call_at(self._due_s, self._tick, loop)

    def leave(self, stream: _PacedStream) -> None:
        del self._slots[stream.slot][stream]
        self._running -= 1

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._due_s <= loop.time():
            self._slot = (self._slot + 1) % _SLOTS
            for stream in tuple(self._slots[self._slot]):
                stream.advance()
            self._due_s += self._step_s
        if self._running:
            loop.call_at(self._due_s, self._tick, loop)


class _PacedStream:
    """What is left to send of one paced stream."""

    __slots__ = ("_connection", "_end", "_left", "slot")

    def __init__(self, connection: Connection, tokens: int, end: bytes) -> None:
        self.slot = 0
        self._connection = connection
        self._left = tokens
        self._end = end

    def advance(self) -> None:
        self._left -= 1
        self._connection.send_token(self._end if self._left <= 0 else None)


class Connection(asyncio.Protocol):
    """One connection: finds where each request ends and writes the reply that is already rendered."""

    def __init__(self, replies: Replies, ticker: Ticker) -> None:
        self._replies = replies
        self._ticker = ticker
        self._transport: asyncio.Transport
        self._rest = b""
        self._paced: _PacedStream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports do not inherit asyncio's

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self._paced is not None:
            self._ticker.leave(self._paced)
            self._paced = None

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        while data:
            head_end = data.find(b"\r\n\r\n") + 4
            if head_end < 4:
                break
            head = data[:head_end].lower()
            end = _body_end(head, head_end, data)
            if end < 0 or len(data) < end:
                break
            if data.startswith(b"POST"):
                self._post(head, data[head_end:end])
            else:
                self._transport.write(self._replies.pages.get(head.split(b" ", 2)[1], self._replies.missing))
            if b"\r\nconnection: close" in head:
                self._transport.close()
            data = data[end:]
        self._rest = data

    def _post(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"post /v1/chat/completions "):
            self._transport.write(self._replies.pages.get(head.split(b" ", 2)[1], self._replies.missing))
        elif _STREAM.search(body) is None:
            self._transport.write(self._replies.json)
        elif _PACED in body:
            self._begin_paced(body)
        elif _INCLUDE_USAGE.search(body) is None:
            self._transport.write(self._replies.burst)
        else:
            self._transport.write(self._replies.burst_with_usage)

    def _begin_paced(self, body: bytes) -> None:
        replies = self._replies
        asked = _MAX_TOKENS.search(body)
        tokens = int(asked[1]) if asked else BURST_CHUNKS - 1
        usage = replies.events.usage(tokens) if _INCLUDE_USAGE.search(body) else b""
        self._transport.write(replies.stream_head + replies.role)
        self._paced = _PacedStream(self, tokens, usage + replies.end)
        self._ticker.join(self._paced)

    def send_token(self, end: bytes | None) -> None:
        """Write one more token; with `end`, the last one and what closes the stream."""
        if end is None:
            self._transport.write(self._replies.token)
            return
        self._transport.write(self._replies.last_token + end)
        if self._paced is not None:
            self._ticker.leave(self._paced)
            self._paced = None


def _body_end(head: bytes, head_end: int, data: bytes) -> int:
    """Where the request that begins `data` ends; -1 where that is not known yet."""
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        return head_end + int(head[at + 17 : head.index(b"\r", at + 17)])
    if b"\r\ntransfer-encoding: chunked" in head:
        last = data.find(b"0\r\n\r\n", head_end)  # JSON holds no bare line ends, so this is the last chunk
        return last + 5 if last >= 0 else -1
    return head_end


@contextlib.asynccontextmanager
async def listening(
    model: str, ports: int = 1, *, port: int = 0, host: str = "127.0.0.1", chunks_per_s: float = 50.0
) -> AsyncIterator[list[int]]:
    """Serve `model` on `ports` ports, from `port` upwards, or on any free ones; gives the ports."""
    loop = asyncio.get_running_loop()
    replies, ticker = render_replies(model), Ticker(chunks_per_s)
    async with contextlib.AsyncExitStack() as servers:
        bound = []
        for offset in range(ports):
            server = await loop.create_server(
                lambda: Connection(replies, ticker), host, port + offset if port else 0, backlog=1024
            )
            servers.push_async_callback(_close, server)
            bound.append(server.sockets[0].getsockname()[1])
        yield bound


async def _close(server: asyncio.Server) -> None:
    server.close()
    await asyncio.sleep(0)


async def _until_stopped(model: str, ports: int, port: int, host: str, chunks_per_s: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with listening(model, ports, port=port, host=host, chunks_per_s=chunks_per_s) as bound:
        print(json.dumps({"model": model, "urls": [f"http://{host}:{each}" for each in bound]}), flush=True)
        await stop.wait()


def run_mock(model: str, ports: int, port: int, host: str, chunks_per_s: float) -> None:
    """Serve until SIGINT or SIGTERM; the first line printed names the addresses, as JSON."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_stopped(model, ports, port, host, chunks_per_s))
