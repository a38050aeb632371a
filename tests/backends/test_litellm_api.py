"""Every provider against a server that speaks its own wire format: what goes out, and what comes back."""

import base64
import json
import struct

import pytest
from litellm_backend import (
    LITELLMS_OWN_WARNINGS,
    USED,
    at,
    call,
    deltas,
    each_provider,
    sent,
    streamed,
    whole,
)
from provider_wire import ANTHROPIC, ARGUMENTS, AZURE, BEDROCK, GEMINI, KEY, TEXT, TOOL, VERTEX, never, sends

from backends.base import Unsupported
from backends.sse import CompletionStream, Shown
from backends.usage import whole_reply
from routing.types import Usage

pytestmark = LITELLMS_OWN_WARNINGS
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "The tide at a port.",
            "parameters": {
                "type": "object",
                "properties": {"port": {"type": "string"}},
                "required": ["port"],
            },
        },
    }
]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@each_provider
async def test_a_whole_reply_comes_in_openais_shape_with_its_usage(provider):
    async with at(provider, sends(provider.whole)) as (_, backend):
        reply = await whole(backend)
    shown = whole_reply(json.dumps(reply).encode(), "shown", None, 1)
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"]["content"] == TEXT
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert shown.usage == USED
    assert "cost" not in reply["usage"]


@each_provider
async def test_a_stream_comes_as_openais_chunks_with_its_usage_at_the_end(provider):
    async with at(provider, provider.answers_stream(*provider.events, *provider.finish)) as (_, backend):
        stream = await streamed(backend)
    assert stream.whole
    assert "".join(delta.get("content") or "" for delta in deltas(stream)) == TEXT
    assert stream.usage == USED
    assert stream.events[-1]["choices"] == []
    assert {event["object"] for event in stream.events} == {"chat.completion.chunk"}
    assert {event["model"] for event in stream.events} == {"shown"}


@each_provider
async def test_a_tool_call_comes_whole(provider):
    async with at(provider, sends(provider.whole_tool)) as (_, backend):
        choice = (await whole(backend, tools=TOOLS))["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == (TOOL, ARGUMENTS)
    assert choice["finish_reason"] == "tool_calls"


@each_provider
async def test_a_tool_call_comes_in_pieces(provider):
    async with at(provider, provider.answers_stream(*provider.tool_events)) as (_, backend):
        stream = await streamed(backend, tools=TOOLS)
    calls = [each for delta in deltas(stream) for each in delta.get("tool_calls") or ()]
    assert [name for each in calls if (name := each["function"].get("name"))] == [TOOL]
    assert json.loads("".join(each["function"].get("arguments") or "" for each in calls)) == ARGUMENTS
    assert [c["finish_reason"] for e in stream.events for c in e["choices"] if c["finish_reason"]] == [
        "tool_calls"
    ]
    assert stream.usage == USED


REQUESTS = {
    "anthropic": ("POST /v1/messages HTTP/1.1", f"x-api-key: {KEY}"),
    "bedrock": (
        "POST /model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse HTTP/1.1",
        "authorization: aws4-hmac-sha256 credential=akiaharbour000000000/",
    ),
    "gemini": ("POST /v1beta/models/gemini-2.5-flash:generateContent HTTP/1.1", f"x-goog-api-key: {KEY}"),
    "vertex": (
        "POST /v1/projects/harbour/locations/europe-west1/publishers/google/models/gemini-2.5-flash:generateContent HTTP/1.1",
        "authorization: bearer ya29.harbour",
    ),
    "azure": (
        "POST /openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21 HTTP/1.1",
        f"api-key: {KEY}",
    ),
}


@each_provider
async def test_the_request_is_the_providers_own(provider):
    line, header = REQUESTS[provider.name]
    async with at(provider, sends(provider.whole)) as (server, backend):
        await whole(backend, tools=TOOLS, max_tokens=50)
        sent_line, sent_headers, body = sent(server)
    assert sent_line == line
    assert header in sent_headers
    text = json.dumps(body)
    assert TOOL in text
    assert "Why are there tides?" in text
    assert "50" in text


@each_provider
async def test_a_picture_and_a_schema_reach_the_provider(provider):
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
    ]
    schema = {
        "type": "object",
        "properties": {"kind": {"type": "string"}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    async with at(provider, sends(provider.whole)) as (server, backend):
        await whole(backend, messages=[{"role": "user", "content": content}], response_format=wanted)
        text = json.dumps(sent(server)[2])
    assert PIXEL in text
    assert "kind" in text


BY_URL = {
    "picture": {"type": "image_url", "image_url": {"url": "https://pictures.example/tide.png"}},
    "picture as text": {"type": "image_url", "image_url": "https://pictures.example/tide.png"},
    "file": {"type": "file", "file": {"file_id": "https://pictures.example/tide.pdf"}},
    "source": {"type": "document", "source": {"type": "url", "url": "https://pictures.example/tide.pdf"}},
    "hidden": {"type": "image_url", "image_url": {"url": "x https://pictures.example/tide.png"}},
}


@pytest.mark.parametrize("part", BY_URL)
@pytest.mark.parametrize("provider", [BEDROCK, GEMINI, VERTEX], ids=lambda provider: provider.name)
async def test_what_a_provider_does_not_take_by_url_is_not_fetched_for_it(provider, part: str):
    content = [{"type": "text", "text": "What is this?"}, BY_URL[part]]
    async with at(provider, sends(provider.whole)) as (server, backend):
        with pytest.raises(Unsupported, match="send a data: URL"):
            await whole(backend, messages=[{"role": "user", "content": content}])
        assert server.peers == []


@pytest.mark.parametrize("provider", [ANTHROPIC, AZURE], ids=lambda provider: provider.name)
async def test_a_picture_by_url_goes_to_a_provider_that_takes_it_as_it_is(provider):
    content = [{"type": "text", "text": "See http://text.example"}, BY_URL["picture"]]
    async with at(provider, sends(provider.whole)) as (server, backend):
        await whole(backend, messages=[{"role": "user", "content": content}])
        assert "https://pictures.example/tide.png" in json.dumps(sent(server)[2])


@pytest.mark.parametrize("provider", [ANTHROPIC, GEMINI], ids=lambda provider: provider.name)
async def test_a_text_completion_is_asked_as_a_chat_and_comes_back_as_text(provider):
    async with at(provider, sends(provider.whole)) as (_, backend):
        reply = await whole(backend, api="/completions", prompt="Why are there tides?")
    assert (reply["object"], reply["choices"][0]["text"]) == ("text_completion", TEXT)
    assert whole_reply(json.dumps(reply).encode(), "shown", None, 1).usage == USED

    async with at(provider, provider.answers_stream(*provider.events, *provider.finish)) as (_, backend):
        stream = CompletionStream(Shown("shown", usage=True), 1 << 20)
        shown = b""
        async with backend.open(call({"prompt": "Why?", "stream": True}, "/completions")) as reply:
            while block := await reply.read():
                shown += stream.feed(block)
    events = [json.loads(event[6:]) for event in shown.decode().split("\n\n") if event]
    assert stream.whole
    assert stream.usage == USED
    assert "".join(choice["text"] for event in events for choice in event["choices"]) == TEXT


@pytest.mark.parametrize(
    "asked", [{"echo": True}, {"logprobs": 3}, {"suffix": "x"}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]}]
)
async def test_what_a_chat_cannot_do_is_refused_to_a_text_completion(asked):
    async with at(ANTHROPIC, never) as (_, backend):
        with pytest.raises(Unsupported):
            await whole(backend, api="/completions", **{"prompt": "Why?", **asked})


async def test_embeddings_come_as_numbers_or_as_the_bytes_that_sdks_ask_for():
    provider = AZURE._replace(model="azure/text-embedding-3-small")
    async with at(provider, sends(AZURE.embedding)) as (server, backend):
        reply = await whole(backend, api="/embeddings", input=["low tide"])
        assert reply["data"][0]["embedding"] == [0.5, -0.25]
        reply = await whole(backend, api="/embeddings", input=["low tide"], encoding_format="base64")
        assert struct.unpack("<2f", base64.b64decode(reply["data"][0]["embedding"])) == (0.5, -0.25)
        assert whole_reply(json.dumps(reply).encode(), "shown", None, None).usage == Usage(3, 0, 0)
        assert sent(server)[2]["input"] == ["low tide"]


async def test_what_is_litellms_own_cannot_be_given_by_a_client():
    """They are arguments of the same function: a client could have our key sent elsewhere."""
    evil = {
        "api_base": "http://127.0.0.1:9",
        "base_url": "http://127.0.0.1:9",
        "api_key": "other",
        "mock_response": "mocked",
        "custom_llm_provider": "openai",
        "extra_headers": {"x-evil": "1"},
        "fallbacks": ["gpt-4o"],
        "timeout": 0.001,
        "metadata": {"x": "y"},
    }
    async with at(ANTHROPIC, sends(ANTHROPIC.whole)) as (server, backend):
        reply = await whole(backend, **evil)
        assert reply["choices"][0]["message"]["content"] == TEXT
        _, headers, body = sent(server)
        assert f"x-api-key: {KEY}" in headers
        assert "x-evil" not in headers
        assert not {"api_base", "metadata"} & body.keys()
