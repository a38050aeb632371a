"""Providers' wire formats, written by hand from what they publish, for servers that stand in for them.

    Anthropic   platform.claude.com/docs/en/build-with-claude/streaming
    Bedrock     docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ConverseStream.html, framed as in
                docs.aws.amazon.com/transcribe/latest/dg/streaming-setting-up.html (event stream encoding)
    Gemini      ai.google.dev/api/generate-content; Vertex AI serves the same under another path
    Azure       learn.microsoft.com/azure/ai-services/openai/reference

Every provider says the same: a prompt of 120 tokens, 100 of them cached, and an answer of 7.
"""

import asyncio
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from scripted import Peer, Script

TEXT = "Twice a day, the moon."
PIECES = ("Twice a day,", " the moon.")
TOOL = "tide_at"
ARGUMENTS = {"port": "Brest"}
PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS = 120, 100, 7
KEY = "sk-harbour-0123456789"


def http(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    lines = {"content-type": content_type, "content-length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + body


def stream_head(content_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()


def chunked(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


LAST_CHUNK = b"0\r\n\r\n"


def sends(*pieces: bytes) -> Script:
    """Answer each request of a connection with these bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)

    return script


def json_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def sse(event: Any, name: str | None = None) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json_bytes(event) + b"\n\n"


class Provider(NamedTuple):
    """What a provider answers, and how it is reached at a port."""

    name: str
    model: str
    params: Callable[[int], dict[str, Any]]
    content_type: str
    whole: bytes
    whole_tool: bytes
    events: Sequence[bytes]
    """Of a stream: the last of those without `finish` is the last of the text."""
    finish: Sequence[bytes]
    tool_events: Sequence[bytes]
    error: Callable[[int, str, str], bytes]
    """Of a status, a kind and a message."""
    bad_key: bytes
    broken: bytes
    """An event that reports an error in the midst of a stream."""
    embedding: bytes | None = None

    def stream(self, *events: bytes) -> list[bytes]:
        return [stream_head(self.content_type), *map(chunked, events)]

    def answers_stream(self, *events: bytes) -> Script:
        return sends(*self.stream(*events), LAST_CHUNK)


# Anthropic


def anthropic_event(event: dict[str, Any]) -> bytes:
    return sse(event, event["type"])


def anthropic_start() -> bytes:
    usage = {
        "input_tokens": 15,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 100,
        "output_tokens": 1,
    }
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [],
    }
    return anthropic_event(
        {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}}
    )


def anthropic_end(reason: str) -> list[bytes]:
    return [
        anthropic_event({"type": "content_block_stop", "index": 0}),
        anthropic_event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": None},
                "usage": {"output_tokens": 7},
            }
        ),
        anthropic_event({"type": "message_stop"}),
    ]


def anthropic_whole(content: dict[str, Any], reason: str) -> bytes:
    usage = {
        "input_tokens": 15,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 100,
        "output_tokens": 7,
    }
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5"}
    return http(200, json_bytes({**message, "content": [content], "stop_reason": reason, "usage": usage}))


def anthropic_error(status: int, kind: str, message: str, **headers: str) -> bytes:
    error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    return http(status, json_bytes(error), **headers)


def anthropic_delta(delta: dict[str, Any]) -> bytes:
    return anthropic_event({"type": "content_block_delta", "index": 0, "delta": delta})


def anthropic_block(block: dict[str, Any]) -> bytes:
    return anthropic_event({"type": "content_block_start", "index": 0, "content_block": block})


ANTHROPIC = Provider(
    name="anthropic",
    model="anthropic/claude-sonnet-4-5",
    params=lambda port: {"api_base": f"http://127.0.0.1:{port}"},
    content_type="text/event-stream; charset=utf-8",
    whole=anthropic_whole({"type": "text", "text": TEXT}, "end_turn"),
    whole_tool=anthropic_whole(
        {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": ARGUMENTS}, "tool_use"
    ),
    events=[
        anthropic_start(),
        anthropic_block({"type": "text", "text": ""}),
        anthropic_event({"type": "ping"}),
        *(anthropic_delta({"type": "text_delta", "text": piece}) for piece in PIECES),
    ],
    finish=anthropic_end("end_turn"),
    tool_events=[
        anthropic_start(),
        anthropic_block({"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": {}}),
        anthropic_delta({"type": "input_json_delta", "partial_json": '{"port": '}),
        anthropic_delta({"type": "input_json_delta", "partial_json": '"Brest"}'}),
        *anthropic_end("tool_use"),
    ],
    error=lambda status, kind, message: anthropic_error(status, kind, message, retry_after="7"),
    bad_key=anthropic_error(401, "authentication_error", f"invalid x-api-key {KEY}"),
    broken=anthropic_event({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
)


# Bedrock


def frame(headers: dict[str, str], payload: Any) -> bytes:
    """A message of AWS's event stream: lengths and their CRC, headers (each of type 7, text), payload, CRC of it all."""
    body = json_bytes(payload)
    lines = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(lines) + len(body), len(lines))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + lines + body
    return message + struct.pack(">I", zlib.crc32(message))


def bedrock_event(kind: str, payload: dict[str, Any]) -> bytes:
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, {**payload, "p": "abcdefgh"})


def bedrock_text(text: str) -> bytes:
    return bedrock_event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}})


def bedrock_tool(part: str) -> bytes:
    return bedrock_event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": part}}})


BEDROCK_USAGE = {
    "inputTokens": 20,
    "outputTokens": 7,
    "totalTokens": 127,
    "cacheReadInputTokens": 100,
    "cacheWriteInputTokens": 0,
}


def bedrock_end(reason: str) -> list[bytes]:
    return [
        bedrock_event("contentBlockStop", {"contentBlockIndex": 0}),
        bedrock_event("messageStop", {"stopReason": reason}),
        bedrock_event("metadata", {"usage": BEDROCK_USAGE, "metrics": {"latencyMs": 532}}),
    ]


def bedrock_whole(content: dict[str, Any], reason: str) -> bytes:
    message = {"role": "assistant", "content": [content]}
    reply = {
        "output": {"message": message},
        "stopReason": reason,
        "usage": BEDROCK_USAGE,
        "metrics": {"latencyMs": 532},
    }
    return http(200, json_bytes(reply))


def bedrock_error(status: int, kind: str, message: str, **headers: str) -> bytes:
    return http(status, json_bytes({"message": message}), **headers, x_amzn_errortype=kind)


BEDROCK = Provider(
    name="bedrock",
    model="bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    params=lambda port: {
        "aws_bedrock_runtime_endpoint": f"http://127.0.0.1:{port}",
        "aws_region_name": "us-east-1",
        "aws_access_key_id": "AKIAHARBOUR000000000",
        "aws_secret_access_key": "harbour-secret-access-key",
    },
    content_type="application/vnd.amazon.eventstream",
    whole=bedrock_whole({"text": TEXT}, "end_turn"),
    whole_tool=bedrock_whole(
        {"toolUse": {"toolUseId": "tooluse_1", "name": TOOL, "input": ARGUMENTS}}, "tool_use"
    ),
    events=[bedrock_event("messageStart", {"role": "assistant"}), *map(bedrock_text, PIECES)],
    finish=bedrock_end("end_turn"),
    tool_events=[
        bedrock_event("messageStart", {"role": "assistant"}),
        bedrock_event(
            "contentBlockStart",
            {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "tooluse_1", "name": TOOL}}},
        ),
        bedrock_tool('{"port": '),
        bedrock_tool('"Brest"}'),
        *bedrock_end("tool_use"),
    ],
    error=lambda status, kind, message: bedrock_error(status, kind, message, retry_after="7"),
    bad_key=bedrock_error(
        403, "UnrecognizedClientException", "The security token included in the request is invalid."
    ),
    broken=frame(
        {
            ":exception-type": "modelStreamErrorException",
            ":content-type": "application/json",
            ":message-type": "exception",
        },
        {"message": "The model has been disturbed.", "originalStatusCode": 500},
    ),
)


# Gemini, and Vertex AI


def gemini_part(part: dict[str, Any], **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [part], "role": "model"}, "index": 0, **more}
    return {"candidates": [candidate], "modelVersion": "gemini-2.5-flash", "responseId": "tTCwacuEBMvn"}


GEMINI_USAGE = {
    "promptTokenCount": 120,
    "candidatesTokenCount": 7,
    "totalTokenCount": 127,
    "cachedContentTokenCount": 100,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 120}],
}


def gemini_end(part: dict[str, Any]) -> dict[str, Any]:
    return {**gemini_part(part, finishReason="STOP"), "usageMetadata": GEMINI_USAGE}


def gemini_event(event: dict[str, Any]) -> bytes:
    return b"data: " + json_bytes(event) + b"\r\n\r\n"


def gemini_error(status: int, kind: str, message: str, details: Sequence[dict[str, Any]] = ()) -> bytes:
    error = {"error": {"code": status, "message": message, "status": kind, "details": list(details)}}
    return http(status, json_bytes(error), "application/json; charset=UTF-8")


def gemini_refusal(status: int, kind: str, message: str) -> bytes:
    """Its pause is in the body: it sends no retry-after."""
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    return gemini_error(status, kind, message, [retry] if status == 429 else [])


GEMINI_CALL = {"functionCall": {"name": TOOL, "args": ARGUMENTS}}
GEMINI = Provider(
    name="gemini",
    model="gemini/gemini-2.5-flash",
    params=lambda port: {"api_base": f"http://127.0.0.1:{port}/v1beta"},
    content_type="text/event-stream",
    whole=http(200, json_bytes(gemini_end({"text": TEXT}))),
    whole_tool=http(200, json_bytes(gemini_end(GEMINI_CALL))),
    events=[
        gemini_event({**gemini_part({"text": piece}), "usageMetadata": {"trafficType": "ON_DEMAND"}})
        for piece in PIECES
    ],
    finish=[gemini_event(gemini_end({"text": ""}))],
    tool_events=[gemini_event(gemini_end(GEMINI_CALL))],
    error=gemini_refusal,
    bad_key=gemini_error(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
    broken=gemini_event(
        {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    ),
)


def vertex_credentials(port: int) -> dict[str, str]:
    """A service account, whose tokens come from the same server."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "type": "service_account",
        "project_id": "harbour",
        "private_key_id": "1",
        "private_key": pem.decode(),
        "client_email": "gateway@harbour.iam.gserviceaccount.com",
        "token_uri": f"http://127.0.0.1:{port}/token",
    }


VERTEX_TOKEN = http(
    200, json_bytes({"access_token": "ya29.harbour", "expires_in": 3599, "token_type": "Bearer"})
)
VERTEX = GEMINI._replace(
    name="vertex",
    model="vertex_ai/gemini-2.5-flash",
    params=lambda port: {
        "api_base": f"http://127.0.0.1:{port}",
        "vertex_project": "harbour",
        "vertex_location": "europe-west1",
        "vertex_credentials": vertex_credentials(port),
    },
    bad_key=gemini_error(
        403, "PERMISSION_DENIED", "Permission 'aiplatform.endpoints.predict' denied on resource."
    ),
)


# Azure


def azure_choice(**choice: Any) -> dict[str, Any]:
    reply = {
        "id": "chatcmpl-1",
        "created": 1_700_000_000,
        "model": "gpt-4o-2024-11-20",
        "system_fingerprint": "fp_1",
    }
    return {**reply, "choices": [{"index": 0, "logprobs": None, **choice}]}


AZURE_USAGE = {
    "prompt_tokens": 120,
    "completion_tokens": 7,
    "total_tokens": 127,
    "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 0},
}


def azure_chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    chunk = azure_choice(delta=delta, finish_reason=reason, content_filter_results={})
    return sse({**chunk, "object": "chat.completion.chunk", "usage": None})


def azure_whole(message: dict[str, Any], reason: str) -> bytes:
    reply = azure_choice(message={"role": "assistant", "content": None, **message}, finish_reason=reason)
    return http(200, json_bytes({**reply, "object": "chat.completion", "usage": AZURE_USAGE}))


def azure_error(status: int, kind: str, message: str, **headers: str) -> bytes:
    return http(status, json_bytes({"error": {"code": kind, "message": message}}), **headers)


AZURE_END = [
    sse({**azure_choice(), "choices": [], "object": "chat.completion.chunk", "usage": AZURE_USAGE}),
    b"data: [DONE]\n\n",
]
AZURE_FILTER = sse(
    {
        "id": "",
        "created": 0,
        "model": "",
        "object": "",
        "choices": [],
        "prompt_filter_results": [{"prompt_index": 0}],
    }
)


def azure_call(**function: str) -> dict[str, Any]:
    return {"index": 0, "function": function}


AZURE = Provider(
    name="azure",
    model="azure/gpt-4o",
    params=lambda port: {"api_base": f"http://127.0.0.1:{port}", "api_version": "2024-10-21"},
    content_type="text/event-stream; charset=utf-8",
    whole=azure_whole({"content": TEXT}, "stop"),
    whole_tool=azure_whole(
        {
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": TOOL, "arguments": json.dumps(ARGUMENTS)},
                }
            ]
        },
        "tool_calls",
    ),
    events=[
        AZURE_FILTER,
        azure_chunk({"role": "assistant", "content": ""}),
        *(azure_chunk({"content": piece}) for piece in PIECES),
    ],
    finish=[azure_chunk({}, "stop"), *AZURE_END],
    tool_events=[
        azure_chunk(
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", **azure_call(name=TOOL, arguments="")}],
            }
        ),
        azure_chunk({"tool_calls": [azure_call(arguments='{"port": ')]}),
        azure_chunk({"tool_calls": [azure_call(arguments='"Brest"}')]}),
        azure_chunk({}, "tool_calls"),
        *AZURE_END,
    ],
    error=lambda status, kind, message: azure_error(status, kind, message, retry_after="7"),
    bad_key=azure_error(401, "401", "Access denied due to invalid subscription key or wrong API endpoint."),
    broken=sse({"error": {"code": "500", "message": "The server had an error."}}),
    embedding=http(
        200,
        json_bytes(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
                "model": "text-embedding-3-small",
                "usage": {"prompt_tokens": 3, "total_tokens": 3},
            }
        ),
    ),
)

PROVIDERS = [ANTHROPIC, BEDROCK, GEMINI, VERTEX, AZURE]


def with_token(script: Script) -> Script:
    """A script that first answers a request for a token, which comes on a connection of its own."""

    async def answered(peer: Peer) -> None:
        body = await peer.request()
        if b"grant_type" in body:
            await peer.send(VERTEX_TOKEN)
            await peer.fin()
            return
        await script(Replayed(peer, body))

    return answered


class Replayed:
    """A peer whose first request has been read already."""

    def __init__(self, peer: Peer, body: bytes) -> None:
        self._peer, self._first = peer, [body]

    async def request(self) -> bytes:
        return self._first.pop() if self._first else await self._peer.request()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peer, name)


async def never(peer: Peer) -> None:
    """Read the request and say nothing."""
    await peer.request()
    await asyncio.Event().wait()
