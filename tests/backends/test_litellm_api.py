"""Every provider against a server that speaks its own wire format: what goes out, what comes back, how it fails."""

import asyncio
import base64
import json
import struct
import time
from contextlib import asynccontextmanager

import pytest
from provider_wire import (
    ANTHROPIC,
    ARGUMENTS,
    AZURE,
    BEDROCK,
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    GEMINI,
    KEY,
    PIECES,
    PROMPT_TOKENS,
    PROVIDERS,
    TEXT,
    TOOL,
    VERTEX,
    never,
    sends,
    with_token,
)
from scripted import Server, until

from backends.base import (
    AttemptFailed,
    CallRejected,
    CallTimeout,
    ConnectFailed,
    ContextTooShort,
    FirstByteTimeout,
    Misconfigured,
    Overloaded,
    ReplyMalformed,
    ReplyOversized,
    ServerFault,
    SilenceTimeout,
    Unsupported,
)
from backends.incoming import HIGH_WATER_BYTES, Patience
from backends.litellm_api import LiteLLMAccess, LiteLLMBackend
from backends.litellm_thread import INSTALL, LiteLLMThread, is_installed
from backends.sse import CompletionStream, Shown
from backends.usage import whole_reply
from backends.worker import Outgoing
from routing.types import Usage

if not is_installed():
    pytest.skip(f"litellm is not installed: {INSTALL}", allow_module_level=True)
# litellm's own, on the versions of what it stands on that are here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*ReadOnly:UserWarning")
USED = Usage(PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Why are there tides?"}]}
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
PATIENT = Patience(first_byte_s=30.0, silence_s=30.0, total_s=60.0)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)


@asynccontextmanager
async def at(provider, script, patience=PATIENT, **params: object):
    """A server that follows the script, and the backend that reaches it."""
    async with Server(with_token(script)) as server, LiteLLMThread() as thread:
        access = LiteLLMAccess(provider.model, keys_of(provider), {**provider.params(server.port), **params})
        yield server, LiteLLMBackend(access, thread, patience)


def keys_of(provider):
    return () if provider in (BEDROCK, VERTEX) else (KEY,)


def call(body, api="/chat/completions", within_s=60.0) -> Outgoing:
    stream = bool(body.get("stream"))
    return Outgoing(api, json.dumps(body).encode(), "request-1", stream, time.monotonic() + within_s)


async def whole(backend, limit_bytes=1 << 24, api="/chat/completions", **body: object) -> dict:
    async with backend.open(call({**CHAT, **body}, api)) as reply:
        return json.loads(await reply.read_whole(limit_bytes))


async def streamed(backend, **body: object) -> CompletionStream:
    """The stream as the gateway reads it, with what it shows in `events`."""
    stream = CompletionStream(Shown("shown", usage=True), 1 << 20)
    stream.events = []
    async with backend.open(call({**CHAT, **body, "stream": True})) as reply:
        while block := await reply.read():
            shown = stream.feed(block).decode()
            stream.events += [json.loads(event[6:]) for event in shown.split("\n\n") if event]
    stream.end()
    return stream


def deltas(stream) -> list[dict]:
    return [choice["delta"] for event in stream.events for choice in event["choices"]]


def sent(server) -> tuple[str, str, dict]:
    """Request line, headers and body of the last request but one for a token."""
    head, body = [each for peer in server.peers for each in peer.requests if b"grant_type" not in each[1]][-1]
    line, _, headers = head.decode().partition("\r\n")
    return line, headers.lower(), json.loads(body)


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


@each_provider
async def test_an_error_of_the_callers_own_goes_back_in_the_providers_words(provider):
    refused = provider.error(400, "INVALID_ARGUMENT", "temperature: range 0..1")
    async with at(provider, sends(refused)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(CallRejected, match=r"^temperature: range 0\.\.1$") as caught:
                await ask(backend)
            assert caught.value.status == 400


@each_provider
async def test_a_throttle_says_when_to_come_back(provider):
    refused = provider.error(429, "ThrottlingException", "Too many requests")
    async with at(provider, sends(refused)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(Overloaded, match=r"^Too many requests$") as caught:
                await ask(backend)
            assert (caught.value.status, caught.value.retry_after_s) == (429, 7.0)


@each_provider
async def test_a_key_of_ours_that_is_refused_is_no_fault_of_the_callers(provider):
    async with at(provider, sends(provider.bad_key)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(Misconfigured) as caught:
                await ask(backend)
            assert KEY not in str(caught.value)


@each_provider
async def test_a_fault_of_the_providers_is_a_server_fault(provider):
    refused = provider.error(500, "InternalServerException", "Something broke")
    async with at(provider, sends(refused)) as (_, backend):
        for ask in (whole, streamed):
            with pytest.raises(ServerFault, match=r"^Something broke$"):
                await ask(backend)


@each_provider
async def test_a_stream_that_ends_early_is_never_taken_for_whole(provider):
    """However it ends: as if all had come, or in the middle of a chunk. litellm itself would say "stop"."""
    cut = provider.answers_stream(*provider.events)
    async with at(provider, cut) as (_, backend):
        with pytest.raises(AttemptFailed) as caught:
            await streamed(backend)
        assert caught.value.sort.leaves is not None

    async def breaks_off(peer):
        await peer.request()
        await peer.send(*provider.stream(*provider.events), b"ff\r\ndata: {")
        await peer.fin()

    async with at(provider, breaks_off) as (_, backend):
        with pytest.raises(AttemptFailed) as caught:
            await streamed(backend)
        assert caught.value.sort.leaves is not None


@each_provider
async def test_an_error_in_the_midst_of_a_stream_ends_it(provider):
    async with at(provider, provider.answers_stream(*provider.events, provider.broken)) as (_, backend):
        with pytest.raises(AttemptFailed) as caught:
            await streamed(backend)
        assert not isinstance(caught.value, Unsupported)


@each_provider
async def test_a_client_that_leaves_ends_the_providers_call(provider):
    left = asyncio.Event()

    async def goes_on(peer):
        await peer.request()
        peer.write(*provider.stream(*provider.events))  # at once: the client leaves at the first of them
        await peer.lost()
        left.set()

    async with at(provider, goes_on) as (_, backend):
        async with backend.open(call({**CHAT, "stream": True})) as reply:
            assert await reply.read()
            assert backend.connections == 1
        assert backend.connections == 0
        await asyncio.wait_for(left.wait(), 30)


@each_provider
async def test_a_provider_that_is_not_there_could_not_be_reached(provider):
    async with at(provider, never) as (server, backend):
        params = {
            **provider.params(9),
            "vertex_credentials": provider.params(server.port).get("vertex_credentials"),
        }
        access = LiteLLMAccess(
            provider.model, keys_of(provider), {k: v for k, v in params.items() if v is not None}
        )
        nowhere = LiteLLMBackend(access, backend.thread, PATIENT)
        for ask in (whole, streamed):
            with pytest.raises(ConnectFailed):
                await ask(nowhere)


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


async def test_a_field_that_a_provider_does_not_know_is_named_and_says_nothing_of_its_health():
    async with at(ANTHROPIC, never) as (_, backend):
        with pytest.raises(Unsupported, match="logit_bias") as caught:
            await whole(backend, logit_bias={"1": 1})
        assert caught.value.sort.leaves is None
    async with at(ANTHROPIC, sends(ANTHROPIC.whole), drop_params=True) as (_, backend):
        assert await whole(backend, logit_bias={"1": 1})


@pytest.mark.parametrize("messages", [[5], [{"role": "user", "content": [{"type": "image_url"}]}]])
async def test_a_call_that_litellm_cannot_read_says_nothing_of_the_endpoints_health(messages):
    async with at(ANTHROPIC, never) as (_, backend):
        with pytest.raises((Unsupported, CallRejected)) as caught:
            await whole(backend, messages=messages)
        assert "Traceback" not in str(caught.value)
        assert "github.com" not in str(caught.value)


async def test_an_overloaded_anthropic_is_left_alone_for_as_long_as_it_asks():
    refused = ANTHROPIC.error(529, "overloaded_error", "Overloaded")
    async with at(ANTHROPIC, sends(refused)) as (_, backend):
        with pytest.raises(Overloaded) as caught:
            await whole(backend)
        assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Your credit balance is too low to access the Anthropic API.", Misconfigured),
        ("messages.0: all messages must have non-empty content", CallRejected),
    ],
)
async def test_an_empty_account_is_ours_to_fill(message, expected):
    async with at(ANTHROPIC, sends(ANTHROPIC.error(400, "invalid_request_error", message))) as (_, backend):
        with pytest.raises(expected):
            await whole(backend)


async def test_a_prompt_that_is_too_long_has_openais_code():
    refused = ANTHROPIC.error(
        400, "invalid_request_error", "prompt is too long: 250000 tokens > 200000 maximum"
    )
    async with at(ANTHROPIC, sends(refused)) as (_, backend):
        with pytest.raises(ContextTooShort) as caught:  # another endpoint may have a longer one
            await whole(backend)
        assert caught.value.rejected.code == "context_length_exceeded"


async def test_a_model_that_the_provider_does_not_have_is_our_mistake():
    refused = ANTHROPIC.error(404, "not_found_error", "model: claude-sonnet-4-5")
    async with at(ANTHROPIC, sends(refused)) as (_, backend):
        with pytest.raises(Misconfigured):
            await whole(backend)


async def test_a_reply_that_is_no_json_is_malformed():
    html = ANTHROPIC.error(200, "x", "y").replace(b"{", b"<")
    async with at(ANTHROPIC, sends(html)) as (_, backend):
        with pytest.raises(ReplyMalformed):
            await whole(backend)


async def test_a_reply_over_the_limit_is_refused():
    async with at(ANTHROPIC, sends(ANTHROPIC.whole)) as (_, backend):
        with pytest.raises(ReplyOversized):
            await whole(backend, limit_bytes=100)


@pytest.mark.parametrize(
    ("patience", "within_s", "expected"),
    [
        (Patience(0.2, 30.0, 60.0), 60.0, FirstByteTimeout),
        (Patience(30.0, 30.0, 60.0), 0.2, CallTimeout),
        (Patience(30.0, 30.0, 0.2), 60.0, CallTimeout),
    ],
)
async def test_silence_from_the_start_ends_the_call(patience, within_s, expected):
    async with at(ANTHROPIC, never, patience) as (_, backend):
        with pytest.raises(expected):
            async with backend.open(call({**CHAT, "stream": True}, within_s=within_s)):
                pass
        assert backend.connections == 0


async def test_silence_in_a_stream_ends_the_call():
    async def falls_silent(peer):
        await peer.request()
        await peer.send(*ANTHROPIC.stream(*ANTHROPIC.events))
        await asyncio.Event().wait()

    async with at(ANTHROPIC, falls_silent, Patience(30.0, 0.3, 60.0)) as (_, backend):
        with pytest.raises(SilenceTimeout):
            await streamed(backend)


async def test_what_a_slow_reader_leaves_behind_is_bounded():
    """The provider is held up as by a full socket, and goes on once there is room."""
    # No two alike: litellm takes a text that repeats a hundred times for a model that has lost its way.
    many = b"".join(ANTHROPIC.events[-1].replace(b"moon", b"moon %d" % number) for number in range(1500))

    async with at(ANTHROPIC, ANTHROPIC.answers_stream(*ANTHROPIC.events, many, *ANTHROPIC.finish)) as (
        _,
        backend,
    ):
        async with backend.open(call({**CHAT, "stream": True})) as reply:
            await until(lambda: reply._paused, limit_s=60.0)
            held = reply._size
            await asyncio.sleep(0.2)
            assert HIGH_WATER_BYTES < reply._size < 40 * HIGH_WATER_BYTES
            total = 0
            while block := await reply.read():
                total += len(block)
            assert total > held


async def test_blocks_are_poured_until_the_sink_has_enough():
    async with at(ANTHROPIC, ANTHROPIC.answers_stream(*ANTHROPIC.events, *ANTHROPIC.finish)) as (_, backend):
        async with backend.open(call({**CHAT, "stream": True})) as reply:
            got = bytearray()

            def sink(block: bytes) -> bool:
                got.extend(block)
                return b"[DONE]" in got

            while not await reply.pour(sink) and b"[DONE]" not in got:
                pass
            await reply.drain()
    assert got.count(b"data: ") == len(PIECES) + 3


async def test_a_sink_that_fails_ends_the_reply():
    async with at(ANTHROPIC, ANTHROPIC.answers_stream(*ANTHROPIC.events, *ANTHROPIC.finish)) as (_, backend):
        async with backend.open(call({**CHAT, "stream": True})) as reply:

            def sink(block: bytes) -> bool:
                raise ReplyMalformed(f"{len(block)} bytes too many")

            with pytest.raises(ReplyMalformed):
                await reply.pour(sink)


async def test_calls_that_still_run_when_the_thread_ends_are_broken_off():
    async with Server(with_token(never)) as server:
        async with LiteLLMThread() as thread:
            backend = LiteLLMBackend(
                LiteLLMAccess(ANTHROPIC.model, (KEY,), ANTHROPIC.params(server.port)), thread, PATIENT
            )
            waiting = asyncio.create_task(whole(backend))
            await until(lambda: any(peer.requests for peer in server.peers), limit_s=30.0)
        with pytest.raises(AttemptFailed):
            await waiting


async def test_secrets_in_params_are_taken_out_of_what_errors_say():
    said = "The key harbour-secret-access-key of region us-east-1 is odd"
    refused = BEDROCK.error(400, "ValidationException", said)
    async with at(BEDROCK, sends(refused)) as (_, backend):
        with pytest.raises(CallRejected, match=r"^The key \*\*\* of region us-east-1 is odd$"):
            await whole(backend)
