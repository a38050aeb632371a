"""The main job on real input: two real vLLM servers, the gateway, and the official client, as its users know it."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI
from vllm_pool import GREEDY, TIMEOUT_S, async_client, comes_true

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway_process import Gateway

pytestmark = pytest.mark.vllm

TOOL = {
    "type": "function",
    "function": {
        "name": "tide_at",
        "description": "The tide at a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def client(gateway: Gateway, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=TIMEOUT_S) as client:
        yield client


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_is_answered_under_the_public_name_of_the_model(client: OpenAI):
    reply = client.chat.completions.create(**GREEDY, max_tokens=20)
    assert reply.model == "llama"
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 20
    assert client.chat.completions.create(**GREEDY | {"model": "llama-small"}, max_tokens=1).model == "llama"


def test_both_servers_get_calls_and_answer_alike(client: OpenAI):
    texts = {}
    for name in ("vllm-1", "vllm-2"):
        reply = client.chat.completions.with_raw_response.create(
            **GREEDY, max_tokens=20, extra_body={"routing": {"only": [name]}}
        )
        assert reply.headers["x-tidegate-endpoint"] == name
        texts[name] = reply.parse().choices[0].message.content
    assert texts["vllm-1"] == texts["vllm-2"]


async def test_the_async_client_gets_the_same_answer(gateway: Gateway, key: str, client: OpenAI):
    expected = client.chat.completions.create(**GREEDY, max_tokens=20).choices[0].message.content
    async with async_client(gateway, key) as asynchronous:
        replies = await asyncio.gather(
            *(asynchronous.chat.completions.create(**GREEDY, max_tokens=20) for _ in range(4))
        )
    assert [reply.choices[0].message.content for reply in replies] == [expected] * 4


async def test_a_stream_brings_the_text_of_the_whole_reply(gateway: Gateway, key: str, client: OpenAI):
    whole = client.chat.completions.create(**GREEDY, max_tokens=40).choices[0].message.content
    chunks = list(client.chat.completions.create(**GREEDY, max_tokens=40, stream=True))
    assert len(chunks) > 3  # vLLM puts tokens into one chunk where its own server falls behind
    assert text_of(chunks) == whole
    assert {chunk.model for chunk in chunks} == {"llama"}
    assert chunks[-1].choices[0].finish_reason == "length"
    async with async_client(gateway, key) as asynchronous:
        stream = await asynchronous.chat.completions.create(**GREEDY, max_tokens=40, stream=True)
        assert text_of([chunk async for chunk in stream]) == whole


def test_the_usage_chunk_is_shown_only_to_those_who_asked(client: OpenAI):
    silent = list(client.chat.completions.create(**GREEDY, max_tokens=5, stream=True))
    assert all(chunk.usage is None for chunk in silent)
    assert all(chunk.choices for chunk in silent)

    asked = list(
        client.chat.completions.create(
            **GREEDY, max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    assert asked[-1].choices == []
    assert asked[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in asked[:-1])


def test_tools_reach_the_worker(client: OpenAI):
    reply = client.chat.completions.create(**GREEDY, max_tokens=5, tools=[TOOL], tool_choice="none")
    assert reply.choices[0].message.content
    with pytest.raises(
        openai.BadRequestError, match="--tool-call-parser"
    ):  # this server has none, and says so
        client.chat.completions.create(**GREEDY, max_tokens=5, tools=[TOOL], tool_choice="auto")


def test_a_json_schema_is_obeyed(client: OpenAI):
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        **GREEDY,
        max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    )
    assert json.loads(reply.choices[0].message.content)["answer"] in {"yes", "no"}


def test_logprobs_come_back(client: OpenAI):
    reply = client.chat.completions.create(**GREEDY, max_tokens=2, logprobs=True, top_logprobs=2)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == 2
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)


def test_n_choices_and_a_seed_reach_the_worker(client: OpenAI):
    def two() -> list[str]:
        reply = client.chat.completions.create(
            model="llama", messages=GREEDY["messages"], temperature=1, seed=7, n=2, max_tokens=8
        )
        return [choice.message.content for choice in reply.choices]

    first = two()
    assert len(set(first)) == 2
    assert two() == first

    stream = client.chat.completions.create(
        model="llama", messages=GREEDY["messages"], temperature=1, seed=7, n=2, max_tokens=8, stream=True
    )
    finished = [(c.index, c.finish_reason) for chunk in stream for c in chunk.choices if c.finish_reason]
    assert sorted(finished) == [(0, "length"), (1, "length")]


def test_a_stop_text_reaches_the_worker(client: OpenAI):
    reply = client.chat.completions.create(**GREEDY, max_tokens=40, stop=["e"])
    assert reply.choices[0].finish_reason == "stop"
    assert "e" not in reply.choices[0].message.content


def test_the_vendors_own_fields_reach_the_worker_and_token_ids_serve_as_a_prompt(client: OpenAI):
    chat = client.chat.completions.create(
        **GREEDY, max_tokens=8, extra_body={"ignore_eos": True, "return_token_ids": True}
    )
    prompt, emitted = chat.prompt_token_ids, chat.choices[0].token_ids
    assert len(prompt) == chat.usage.prompt_tokens
    assert len(emitted) == 8
    again = client.completions.create(
        model="llama",
        prompt=prompt + emitted[:3],
        temperature=0,
        max_tokens=5,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    assert again.choices[0].token_ids == emitted[3:]
    assert again.usage.prompt_tokens == len(prompt) + 3


def cached_tokens(reply: Any) -> int:
    details = reply.usage.prompt_tokens_details
    return 0 if details is None else details.cached_tokens or 0


@pytest.mark.parametrize("topic", ["fog", "ropes", "gulls"])
def test_the_second_turn_goes_to_the_server_that_served_the_first_and_finds_its_prefix(
    client: OpenAI, topic: str
):
    story = f"Tell of {topic}. " + " ".join(f"{topic} {n}" for n in range(150))
    messages = [{"role": "user", "content": story}]
    ask = client.chat.completions.with_raw_response.create
    first = ask(**GREEDY | {"messages": messages}, max_tokens=8)
    told = first.parse()
    messages += [
        {"role": "assistant", "content": told.choices[0].message.content},
        {"role": "user", "content": "And then?"},
    ]
    second = ask(**GREEDY | {"messages": messages}, max_tokens=8)
    assert second.headers["x-tidegate-endpoint"] == first.headers["x-tidegate-endpoint"]
    assert cached_tokens(second.parse()) > 0.8 * told.usage.prompt_tokens - 32


def test_a_long_prompt_sent_again_is_answered_sooner(client: OpenAI):
    words = " ".join(f"wave {n}" for n in range(340))

    def ttft_s(start: str) -> tuple[float, int]:
        begun_s = time.monotonic()
        stream = client.chat.completions.create(
            **GREEDY | {"messages": [{"role": "user", "content": f"{start} {words}"}]},
            max_tokens=2,
            stream=True,
            stream_options={"include_usage": True},
        )
        first = next(iter(stream))
        waited_s = time.monotonic() - begun_s
        assert first.choices
        return waited_s, cached_tokens(list(stream)[-1])

    # Several prompts, because another process may hold up any one of them.
    cold, warm = ([ttft_s(start) for start in ("one", "two", "three", "four", "five")] for _ in range(2))
    assert all(cached < 64 for _, cached in cold)
    assert all(cached > 1000 for _, cached in warm)
    assert statistics.median(s for s, _ in warm) < 0.7 * statistics.median(s for s, _ in cold)


def test_embeddings_are_answered_with_the_workers_own_error(client: OpenAI):
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="llama", input="high water")
    assert raised.value.body["message"] == "Not Found"


def test_too_long_a_prompt_is_answered_with_the_workers_own_error(client: OpenAI):
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens") as raised:
        client.chat.completions.create(model="llama", messages=[{"role": "user", "content": "tide " * 4000}])
    assert raised.value.param == "input_tokens"


def test_an_unknown_model_is_not_found_and_what_is_spelled_alike_is_named(client: OpenAI):
    with pytest.raises(openai.NotFoundError, match="Did you mean llama") as raised:
        client.chat.completions.create(**GREEDY | {"model": "lama"})
    assert raised.value.code == "model_not_found"


def test_a_wrong_key_is_refused(gateway: Gateway):
    with (
        OpenAI(base_url=f"{gateway.url}/v1", api_key="tg-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(**GREEDY)


def test_the_request_id_reaches_the_worker(client: OpenAI):
    reply = client.chat.completions.with_raw_response.create(
        **GREEDY, max_tokens=1, extra_headers={"x-request-id": "spring-tide"}
    )
    assert reply.headers["x-request-id"] == "spring-tide"
    assert reply.parse().id == "chatcmpl-spring-tide"  # this is how vLLM shows what it was given

    own = client.chat.completions.with_raw_response.create(**GREEDY, max_tokens=1)
    assert own.parse().id == f"chatcmpl-{own.headers['x-request-id']}"


async def test_what_is_metered_is_what_the_workers_reported(gateway: Gateway):
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.new_key("mill"), max_retries=0) as client:
        usages = [client.chat.completions.create(**GREEDY, max_tokens=n).usage for n in (1, 7, 30)]
        stream = client.chat.completions.create(
            **GREEDY, max_tokens=11, stream=True, stream_options={"include_usage": True}
        )
        usages.append(list(stream)[-1].usage)
        shown = len(list(client.chat.completions.create(**GREEDY, max_tokens=9, stream=True)))
        usages.append(client.completions.create(model="llama", prompt="high water " * 50, max_tokens=3).usage)
    assert shown > 1
    prompt = usages[0].prompt_tokens
    completion_tokens = sum(usage.completion_tokens for usage in usages) + 9
    prompt_tokens = sum(usage.prompt_tokens for usage in usages) + prompt

    def row() -> dict[str, Any]:
        return next((row for row in gateway.command("usage") if row["tenant"] == "mill"), {"calls": 0})

    await comes_true(lambda: row()["calls"] == 6)  # rows reach the database in batches
    metered = row()
    assert metered["prompt_tokens"] == prompt_tokens
    assert metered["completion_tokens"] == completion_tokens
    assert metered["errors"] == metered["estimated_calls"] == 0
    assert metered["charge_nano_usd"] == prompt_tokens * 50 + completion_tokens * 100
