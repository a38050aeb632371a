"""The API as a developer sees it who points the official client at the gateway instead of at OpenAI or at vLLM."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from pool import HELLO, LIMIT_S, Gateway, gateway

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

INSTANT = WorkerSpec(decode_s_per_token=0, embeddings=True)
TIDE = {
    "type": "function",
    "function": {
        "name": "tide_at",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Hull", "Brest"]}},
            "required": ["place"],
        },
    },
}
ANSWER = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"rising": {"type": "boolean"}}},
    },
}
PICTURE = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}},
]
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [TIDE], "tool_choice": "required", "max_tokens": 50},
    "a named tool": {"tools": [TIDE], "tool_choice": {"type": "function", "function": {"name": "tide_at"}}},
    "a JSON schema": {"response_format": ANSWER, "max_tokens": 50},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "three choices": {"n": 3, "seed": 7},
    "a stop text": {"stop": [" b"], "max_tokens": 50},
    "an image": {"messages": [{"role": "user", "content": PICTURE}]},
    "vLLM's own": {"extra_body": {"return_token_ids": True, "ignore_eos": True, "min_tokens": 4, "top_k": 3}},
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[SimWorker]:
    async with SimWorker(INSTANT) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(worker: SimWorker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path_factory.mktemp("gateway"), worker) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def direct() -> AsyncIterator[AsyncOpenAI]:
    """The client of a worker just like the gateway's, without a gateway in between."""
    async with (
        SimWorker(INSTANT) as twin,
        AsyncOpenAI(base_url=f"{twin.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S) as client,
    ):
        yield client


def seen(reply: Any) -> dict[str, Any]:
    """All of a reply or a chunk but what differs from call to call; the ids are told by x-request-id."""
    return reply.model_dump() | {"created": 0, "model": ""}


def sent_to(worker: SimWorker) -> dict[str, Any]:
    return json.loads(worker.requests[-1].body)


# What comes back


@pytest.mark.parametrize("options", CHATS.values(), ids=CHATS)
async def test_a_chat_comes_back_as_the_worker_gave_it(
    gw: Gateway, direct: AsyncOpenAI, options: dict[str, Any]
):
    call = HELLO | options | {"extra_headers": {"x-request-id": "the-same"}}
    through = await gw.client().chat.completions.create(**call)
    assert seen(through) == seen(await direct.chat.completions.create(**call | {"model": "sim"}))
    assert through.model == "llama"


@pytest.mark.parametrize("options", CHATS.values(), ids=CHATS)
async def test_a_streamed_chat_comes_back_as_the_worker_gave_it(
    gw: Gateway, direct: AsyncOpenAI, options: dict[str, Any]
):
    call = HELLO | options | {"stream": True, "extra_headers": {"x-request-id": "the-same"}}
    through = [chunk async for chunk in await gw.client().chat.completions.create(**call)]
    straight = [chunk async for chunk in await direct.chat.completions.create(**call | {"model": "sim"})]
    assert list(map(seen, through)) == list(map(seen, straight))
    assert {chunk.model for chunk in through} == {"llama"}


@pytest.mark.parametrize("prompt", ["High water?", ["Ebb?", "Flow?"], [5, 6, 7], [[5, 6], [7]]], ids=str)
async def test_a_completion_comes_back_as_the_worker_gave_it(gw: Gateway, direct: AsyncOpenAI, prompt: Any):
    call = {"prompt": prompt, "max_tokens": 4, "logprobs": 1, "extra_headers": {"x-request-id": "the-same"}}
    through = await gw.client().completions.create(model="llama", **call)
    assert seen(through) == seen(await direct.completions.create(model="sim", **call))

    call |= {"stream": True}
    chunks = [chunk async for chunk in await gw.client().completions.create(model="llama", **call)]
    assert list(map(seen, chunks)) == [
        seen(chunk) async for chunk in await direct.completions.create(model="sim", **call)
    ]
    assert {chunk.model for chunk in chunks} == {through.model} == {"llama"}


@pytest.mark.parametrize(
    "options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str
)
async def test_embeddings_come_back_as_the_worker_gave_them(
    gw: Gateway, direct: AsyncOpenAI, options: dict[str, Any]
):
    call = {"input": ["high water", "low water"], "dimensions": 3, **options}
    through = await gw.client().embeddings.create(model="llama", **call)
    straight = await direct.embeddings.create(model="sim", **call)
    assert (through.data, through.usage) == (straight.data, straight.usage)
    assert through.model == "llama"


async def test_the_synchronous_client_gets_the_same(gw: Gateway):
    def ask() -> tuple[str, str]:
        with OpenAI(base_url=f"{gw.url}/v1", api_key=gw.key, max_retries=0, timeout=LIMIT_S) as client:
            whole = client.chat.completions.create(**HELLO).choices[0].message.content
            chunks = list(client.chat.completions.create(**HELLO, stream=True))
            return whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    expected = (await gw.client().chat.completions.create(**HELLO)).choices[0].message.content
    assert expected
    assert await asyncio.to_thread(ask) == (expected, expected)


async def test_an_alias_is_answered_under_the_models_own_name(gw: Gateway):
    chats = gw.client().chat.completions
    assert (await chats.create(**HELLO | {"model": "llama-small"})).model == "llama"
    stream = await chats.create(**HELLO | {"model": "llama-small"}, stream=True)
    assert {chunk.model async for chunk in stream} == {"llama"}


@pytest.mark.parametrize(
    ("asked", "served"),
    [("auto", "default"), ("default", "default"), ("flex", "flex"), ("priority", "priority"), (None, None)],
)
async def test_the_reply_says_which_tier_served_where_the_call_asked_for_one(
    gw: Gateway, asked: Any, served: str | None
):
    chats = gw.client().chat.completions
    options = HELLO | ({} if asked is None else {"service_tier": asked})
    whole = await chats.with_raw_response.create(**options)
    assert whole.parse().service_tier == served
    assert whole.headers["x-tidegate-tier"] == (served or "default")
    stream = await chats.create(**options, stream=True)
    assert {chunk.service_tier async for chunk in stream} == {served}


# What goes to the worker

MESSAGE = r"""[ {"role": "user", "content": [{"type":"text","text":"caf\u00e9 é \ud83c\udf0a \/"},
  {"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"low"}}], "name":"ann"} ]"""
TOOL = r"""[{"type":"function","function":{"name":"tide_at","strict":true,"parameters":{"z":1,"a":{"minimum":1.0}}}}]"""
SAMPLING = {
    "temperature": "1.0",
    "top_p": "9.5e-1",
    "presence_penalty": "-0.0",
    "frequency_penalty": "0.50",
    "n": "1",
    "seed": "9007199254740993",
    "stop": r'["\n\n", "\u0041"]',
    "logit_bias": '{"50256": -100, "11":1.50}',
    "user": '"ann"',
    "service_tier": '"flex"',
    "max_tokens": "3",
    # vLLM's own
    "top_k": "40",
    "min_p": "0.050",
    "repetition_penalty": "1.10",
    "min_tokens": "1",
    "stop_token_ids": "[7, 8]",
    "ignore_eos": "true",
    "skip_special_tokens": "false",
    "return_token_ids": "true",
    "guided_regex": r'"\\d+"',
    "structured_outputs": '{"choice": ["ebb","flow"]}',
    "cache_salt": '"a"',
    "priority": "0",
    "kv_transfer_params": "null",
    "vllm_xargs": "{}",
    # nobody's yet
    "x_new": '{"deep":[{"er": [1.000000000000000000000001, 1E+400, "\u2028"]}], "deep":2}',
}
FIELDS = {
    "chat/completions": {
        "messages": MESSAGE,
        **SAMPLING,
        "tools": TOOL,
        "tool_choice": '"none"',
        "parallel_tool_calls": "true",
        "response_format": '{"type":"text"}',
        "logprobs": "true",
        "top_logprobs": "2",
        "max_completion_tokens": "2",
        "reasoning_effort": '"low"',
        "modalities": '["text"]',
        "metadata": '{"z":"1", "a":"2"}',
        "store": "false",
        "continue_final_message": "false",
        "chat_template_kwargs": '{"enable_thinking":false}',
    },
    "completions": {
        "prompt": '["a\\u0062", "c" ]',
        **SAMPLING,
        "logprobs": "1",
        "echo": "true",
        "suffix": "null",
    },
    "embeddings": {
        "input": '["a\\u0062", "c" ]',
        "user": '"ann"',
        "dimensions": "3",
        "encoding_format": '"float"',
        "x_new": "1.0",
    },
}


@pytest.mark.parametrize("path", FIELDS)
async def test_every_field_reaches_the_worker_as_it_was_written(gw: Gateway, worker: SimWorker, path: str):
    fields = FIELDS[path]
    given = ",\n ".join(f'"{name}" : {text}' for name, text in fields.items())
    await post(gw, f'{{ "routing": {{"only": ["worker-1"]}}, {given}, "model": "llama" }}', path)
    if path == "chat/completions":  # the one that counts; a worker may know the other only
        fields = fields | {"max_tokens": fields["max_completion_tokens"]}
    arrived = ",".join(f'"{name}":{text}' for name, text in fields.items())
    assert worker.requests[-1].body.decode() == f'{{{arrived},"model":"sim"}}'
    assert worker.requests[-1].target == f"/v1/{path}"


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        (None, {"include_usage": True}),
        ("null", {"include_usage": True}),
        ('{"include_usage":false,"new":1.0}', {"include_usage": True, "new": 1.0}),
        ('{"include_usage":true}', {"include_usage": True}),
    ],
)
async def test_the_worker_is_always_asked_for_the_usage_of_a_stream(
    gw: Gateway, worker: SimWorker, given: str | None, arrives: dict[str, Any]
):
    options = "" if given is None else f'"stream_options":{given},'
    await post(gw, f'{{{options}"model":"llama","prompt":"a","stream":true,"max_tokens":2}}', "completions")
    assert sent_to(worker)["stream_options"] == arrives


async def test_neither_the_key_nor_the_demands_of_a_client_reach_the_worker(gw: Gateway, worker: SimWorker):
    headers = {
        "x-tidegate-only": "worker-1",
        "cookie": "a=b",
        "x-request-id": "mine",
        "traceparent": "00-1-2-01",
    }
    demands = {"routing": {"max_ttft_ms": 60000}}
    await gw.client().chat.completions.create(**HELLO, extra_headers=headers, extra_body=demands)
    arrived = worker.requests[-1]
    assert "routing" not in json.loads(arrived.body)
    assert {name.decode().lower(): value.decode() for name, value in arrived.headers} == {
        "host": worker.url.removeprefix("http://"),
        "user-agent": "tidegate",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(arrived.body)),
        "x-request-id": "mine",
        "traceparent": "00-1-2-01",
    }


async def post(gw: Gateway, body: str, path: str) -> str:
    reply = await gw.http.post(
        f"/v1/{path}", content=body.encode(), headers={"authorization": f"Bearer {gw.key}"}
    )
    assert reply.status_code == 200, reply.text
    return reply.text


# Usage of streams


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


@pytest.mark.parametrize("api", ["chat/completions", "completions"])
async def test_usage_that_was_asked_for_comes_once_and_last_and_alone(gw: Gateway, api: str):
    *chunks, done = events(await post(gw, streamed(api, {"include_usage": True}), api))
    usages = [json.loads(chunk).get("usage") for chunk in chunks]
    assert [usage for usage in usages if usage] == [usages[-1]]
    assert usages[-1]["completion_tokens"] == 5
    assert json.loads(chunks[-1])["choices"] == []
    assert done == "[DONE]"


@pytest.mark.parametrize(
    "options",
    [None, {}, {"include_usage": False}, {"include_usage": None}, {"continuous_usage_stats": True}],
    ids=str,
)
@pytest.mark.parametrize("api", ["chat/completions", "completions"])
async def test_usage_that_was_not_asked_for_is_never_seen(
    gw: Gateway, api: str, options: dict[str, Any] | None
):
    *chunks, done = events(await post(gw, streamed(api, options), api))
    assert len(chunks) >= 5
    assert all(json.loads(chunk)["choices"] and "usage" not in json.loads(chunk) for chunk in chunks)
    assert done == "[DONE]"


async def test_vllms_usage_in_every_chunk_is_shown_to_those_who_asked(gw: Gateway):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, done = events(await post(gw, streamed("completions", options), "completions"))
    counts = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 2, 3, 4, 5, 5]
    assert [bool(json.loads(chunk)["choices"]) for chunk in chunks] == [True] * 5 + [False]
    assert done == "[DONE]"


def streamed(api: str, options: dict[str, Any] | None) -> str:
    body = HELLO | {"prompt": "High water?", "stream": True, "ignore_eos": True, "stream_options": options}
    del body["prompt" if api == "chat/completions" else "messages"]
    return json.dumps(body)
