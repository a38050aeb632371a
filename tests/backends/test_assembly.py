"""A reply put together from a stream is the one that the worker would have sent whole."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
from sim_client import CAPTURES, QUESTION, asking, fast_worker, needs_captures

from backends.assembly import FOLD_BYTES, Assembly, can_be_assembled
from backends.base import ReplyMalformed, ReplyOversized
from backends.sse import CompletionStream, Shown

if TYPE_CHECKING:
    import httpx2

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SHOWN = Shown("sim", None, usage=True)
EVENT_BYTES = 1_000_000

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 40},
    "one token": {"max_tokens": 1},
    "long": {"max_tokens": 700, "ignore_eos": True},
    "stopped by a string": {"max_tokens": 200, "stop": ["the", "moon"]},
    "stop string included": {"max_tokens": 200, "stop": "the", "include_stop_str_in_output": True},
    "to the end": {"max_tokens": 2000},
    "token ids": {"max_tokens": 12, "return_token_ids": True},
    "json": {"max_tokens": 300, "response_format": {"type": "json_object"}},
    "seeded": {"max_tokens": 30, "seed": 5, "temperature": 0.3},
}
CHATS: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "logprobs": {"max_tokens": 20, "logprobs": True, "top_logprobs": 3},
    "logprobs of the token only": {"max_tokens": 20, "logprobs": True},
}
PLAIN: dict[str, dict[str, Any]] = {
    **OPTIONS,
    "logprobs": {"max_tokens": 20, "logprobs": 2},
    "logprobs of the token only": {"max_tokens": 20, "logprobs": 0},
    "a prompt of token ids": {"prompt": [5, 6, 7, 300, 301], "max_tokens": 20, "return_token_ids": True},
}


def assembled(stream: bytes, *, chat: bool, cuts: int = 0, limit_bytes: int = 1 << 24) -> bytes:
    """What is made of a stream as it came, cut into blocks at so many places."""
    dice = random.Random(cuts)  # noqa: S311 - no secret
    places = sorted(dice.sample(range(1, len(stream)), min(cuts, len(stream) - 1)))
    reading, made = CompletionStream(SHOWN, EVENT_BYTES), Assembly(chat=chat, limit_bytes=limit_bytes)
    for start, end in zip([0, *places], [*places, len(stream)], strict=True):
        made.write(reading.feed(stream[start:end]))
    reading.end()
    return made.body()


def told_apart(body: bytes) -> list[tuple[str, Any]]:
    """The fields in their order, without those that no two replies share."""
    found = json.loads(body, object_pairs_hook=list)
    return [(name, value) for name, value in found if name not in ("id", "created")]


async def both(client: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> tuple[bytes, bytes]:
    """The worker's reply, and its stream of the same."""
    await client.post(path, json=body)  # so that its prefix cache knows the prompt both times
    whole = await client.post(path, json=body)
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    stream = await client.post(path, json=streamed)
    assert (whole.status_code, stream.status_code) == (200, 200), whole.text
    return whole.content, stream.content


@pytest.mark.parametrize("options", CHATS)
async def test_a_chat_reply_is_equal_field_by_field_however_its_stream_was_cut(options: str):
    async with fast_worker(seed=11) as (_, client):
        whole, stream = await both(client, CHAT, asking(**CHATS[options]))
    for cuts in (0, 7, 300):
        assert told_apart(assembled(stream, chat=True, cuts=cuts)) == told_apart(whole)


@pytest.mark.parametrize("options", PLAIN)
async def test_a_plain_completion_is_equal_field_by_field_however_its_stream_was_cut(options: str):
    async with fast_worker(seed=11) as (_, client):
        whole, stream = await both(
            client, COMPLETIONS, {"model": "sim", "prompt": QUESTION, **PLAIN[options]}
        )
    for cuts in (0, 7, 300):
        assert told_apart(assembled(stream, chat=False, cuts=cuts)) == told_apart(whole)


def keys(value: Any) -> Any:
    return {name: keys(part) for name, part in value.items()} if isinstance(value, dict) else None


def captured(name: str) -> bytes:
    return (CAPTURES / name).read_bytes().rpartition(b"chunked\n\n")[2]


@needs_captures
def test_what_is_made_of_a_captured_stream_of_vllm_has_the_fields_of_its_captured_replies():
    whole = json.loads((CAPTURES / "chat_nonstream.txt").read_text().partition("\n\n")[2])
    whole["choices"][0]["logprobs"] = None  # with which the stream was not asked
    made = json.loads(assembled(captured("chat_stream.txt"), chat=True))
    assert keys(made) == keys(whole)
    (choice,), (of_whole,) = made["choices"], whole["choices"]
    assert (list(choice), list(choice["message"])) == (list(of_whole), list(of_whole["message"]))
    assert list(made) == list(whole)
    assert choice["message"]["content"] == "APPLICABLEform accessement"
    assert choice["finish_reason"] == "length"
    assert made["usage"] | {"total_tokens": 24, "completion_tokens": 8} == whole["usage"]


@needs_captures
def test_token_ids_of_a_captured_completion_are_where_its_captured_reply_has_them():
    whole = json.loads((CAPTURES / "completions.json").read_text())
    made = json.loads(assembled(captured("completions_stream_tokenids.txt"), chat=False))
    assert (list(made), list(made["choices"][0])) == (list(whole), list(whole["choices"][0]))
    (choice,) = made["choices"]
    assert (choice["text"], choice["token_ids"]) == (" SU order", [1611, 1571])
    assert choice["prompt_token_ids"] == [5, 6, 7, 300, 301]
    assert (list(made["usage"]), list(made["usage"]["prompt_tokens_details"])) == (
        list(whole["usage"]),
        list(whole["usage"]["prompt_tokens_details"]),
    )


def events(*choices: dict[str, Any]) -> bytes:
    heading = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "sim"}
    chunks = [{**heading, "choices": [{"index": 0, **choice}]} for choice in choices]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)


def test_reasoning_is_kept_apart_and_a_reply_of_nothing_else_has_no_content():
    role = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    thought = [{"delta": {"reasoning": word}, "finish_reason": None} for word in ("ebb", " and flow")]
    end = {"delta": {}, "finish_reason": "length", "stop_reason": None}
    message = json.loads(assembled(events(role, *thought, end), chat=True))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("ebb and flow", None)
    said = {"delta": {"content": "high"}, "finish_reason": None}
    message = json.loads(assembled(events(role, *thought, said, end), chat=True))["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("ebb and flow", "high")


def test_an_answer_of_nothing_is_an_empty_one():
    role = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    end = {"delta": {"content": ""}, "finish_reason": "stop", "stop_reason": None}
    (choice,) = json.loads(assembled(events(role, end), chat=True))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


def test_a_reply_beyond_the_limit_is_refused_while_it_comes():
    made = Assembly(chat=True, limit_bytes=FOLD_BYTES // 2)
    many = events(*({"delta": {"content": "x" * 1000}, "finish_reason": None} for _ in range(40)))
    with pytest.raises(ReplyOversized):
        made.write(many)


def test_a_stream_without_a_chunk_is_no_reply():
    made = Assembly(chat=True, limit_bytes=1000)
    made.write(b": still here\n\n")
    with pytest.raises(ReplyMalformed):
        made.body()


@pytest.mark.parametrize("field", ["tools", "echo", "prompt_logprobs", "prompt_embeds", "use_beam_search", "what_is_this"])  # fmt: skip
def test_calls_are_run_so_only_with_fields_that_are_known_to_make_no_difference(field: str):
    assert can_be_assembled(["model", "messages", "stream", "temperature"], 1)
    assert not can_be_assembled(["model", "messages", field], 1)
    assert not can_be_assembled(["model", "messages"], 2)
