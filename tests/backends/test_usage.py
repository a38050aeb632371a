import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import ReplyMalformed, ServerFault
from backends.usage import MOST_TOKENS, WireUsage, whole_reply
from routing.types import Usage

CAPTURES = Path(__file__).parents[3] / "shared" / "vllm" / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures of a real vLLM here")
CHOICES = b'"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]'
USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":2}'

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS, st.lists, max_leaves=5
)  # fmt: skip


@pytest.mark.parametrize(
    "piece",
    [
        b'"big":123456789012345678901234567890123',
        b'"float":1.10000000000000000000000001e-40',
        b'"spaced":[ 1 ,  2 ]',
        b'"escaped":"\\u00e9\\/\xc3\xa9\\ud83d\\ude00"',
        b'"separators":"\xe2\x80\xa8\xc2\x85"',
        b'"no_utf_8":"\xff"',
        b'"null":null',
    ],
)
def test_everything_but_the_model_keeps_its_spelling(piece: bytes):
    body = b'{"id":"i","model":"tiny",%b,%b,%b}' % (piece, CHOICES, USAGE)
    assert whole_reply(body, "pub", None, 1).body == body.replace(b'"tiny"', b'"pub"')
    with_tier = whole_reply(body, "pub", "flex", 1).body
    assert with_tier == body.replace(b'"tiny"', b'"pub"')[:-1] + b',"service_tier":"flex"}'


@given(
    st.dictionaries(TEXTS.filter(lambda key: key not in {"model", "choices", "usage"}), VALUES, max_size=4),
    TEXTS,
)
def test_the_model_is_replaced_whatever_stands_beside_it(fields, name):
    body = json.dumps(fields | {"model": "tiny"}, ensure_ascii=False, separators=(",", ":"))
    shown = json.dumps(fields | {"model": name}, ensure_ascii=False, separators=(",", ":"))
    assert json.loads(whole_reply(body.encode(), name, None, None).body) == json.loads(shown)


@pytest.mark.parametrize(
    "body",
    [
        b'{"system":{"model":"tiny"},"model" : "tiny",%b,%b}',
        b'{"system":{"model":"tiny"},"model":"tiny",%b,%b}',
        b'{"model":"tiny","system":{"model": "tiny"},%b,%b}',
        b'{"model":"other","model":"tiny",%b,%b}',
        b'{"mod\\u0065l":"tiny","system":{"model":"tiny"},%b,%b}',
    ],
)
def test_the_model_of_the_reply_is_replaced_and_none_within_it(body: bytes):
    before, shown = body % (CHOICES, USAGE), whole_reply(body % (CHOICES, USAGE), "pub", None, 1).body
    assert json.loads(shown) == json.loads(before) | {"model": "pub"}


def test_a_tier_that_the_worker_names_is_replaced():
    body = b'{"service_tier":null,%b,"model":"m",%b}' % (CHOICES, USAGE)
    assert json.loads(whole_reply(body, "m", "priority", 1).body)["service_tier"] == "priority"
    assert whole_reply(body, "m", None, 1).body == body


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 3}, Usage(5, 0, 3)),
        (
            {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
            Usage(5, 4, 3),
        ),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(5, 5, 0)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None}, Usage(5, 0, 0)),
        (
            {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}},
            Usage(0, 0, 9, reasoning_tokens=7),
        ),
        (
            {"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 10}},
            Usage(0, 0, 9, reasoning_tokens=9),
        ),
        ({"completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": None}}, Usage(0, 0, 9)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {}}, Usage(5, 0, 0)),
        ({"prompt_tokens": -5, "completion_tokens": -1}, Usage(0, 0, 0)),
        ({"prompt_tokens": None, "completion_tokens": 10**30}, Usage(0, 0, MOST_TOKENS)),
        ({}, Usage(0, 0, 0)),
    ],
)
def test_usage_is_made_sane(usage: dict, expected: Usage):
    body = json.dumps({"model": "m", "usage": usage}).encode()
    assert whole_reply(body, "m", None, None).usage == expected


@given(st.integers() | st.none(), st.integers() | st.none())
def test_no_reported_count_is_absurd(prompt, completion):
    usage = WireUsage(prompt, completion).tokens()
    assert 0 <= usage.prompt_tokens <= MOST_TOKENS
    assert 0 <= usage.completion_tokens <= MOST_TOKENS


def estimated(*choices: dict, count: int | None = 1) -> Usage:
    body = json.dumps({"model": "m", "choices": list(choices)}).encode()
    return whole_reply(body, "m", None, count).usage


def chat(finish_reason: str = "stop", **message: object) -> dict:
    return {"message": {"role": "assistant"} | message, "finish_reason": finish_reason}


def test_missing_usage_is_estimated_from_what_the_choices_say():
    assert estimated(chat(content="x" * 400)) == Usage(0, 0, 100, estimated=True)
    assert estimated(chat(content=None, reasoning="x" * 40)) == Usage(0, 0, 10, estimated=True)
    assert estimated(chat(content="", tool_calls=[])) == Usage(0, 0, 0, estimated=True)
    assert estimated(chat(content="x")) == Usage(0, 0, 1, estimated=True)
    assert estimated(chat(tool_calls=[{"id": "c", "function": {"arguments": "{}"}}])).completion_tokens > 5
    assert estimated({"text": "x" * 40, "finish_reason": "stop"}).completion_tokens == 10
    assert estimated(chat(content="a"), chat(content="b" * 8), count=2).completion_tokens == 3


def test_missing_usage_of_embeddings_has_no_completion():
    body = b'{"model":"m","data":[{"embedding":[0.1]}]}'
    assert whole_reply(body, "m", None, None).usage == Usage(0, 0, 0, estimated=True)
    assert whole_reply(b'{"choices":null}', "m", None, None).usage.estimated


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"text"', b"<html>", b"{", b'{"model":"m"} x', b'{"\xff":1}', b'{"usage":5}',
     b'{"usage":{"prompt_tokens":"5"}}', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"choices":[{"finish_reason":1}]}'],
)  # fmt: skip
def test_what_is_no_reply_is_malformed(body: bytes):
    with pytest.raises(ReplyMalformed):
        whole_reply(body, "m", None, None)


@pytest.mark.parametrize("finish", [None, ""])
def test_a_reply_with_an_unfinished_choice_is_not_whole(finish: str | None):
    choices = [chat(content="x"), chat(content="y") | {"finish_reason": finish}]
    body = json.dumps({"model": "m", "choices": choices}).encode()
    with pytest.raises(ReplyMalformed, match="1 finished choices of 2"):
        whole_reply(body, "m", None, 2)
    assert whole_reply(body, "m", None, 1)


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_reply_that_the_worker_gave_up_is_not_whole(reason: str):
    with pytest.raises(ServerFault):
        estimated(chat(reason, content="x"))


@needs_captures
@pytest.mark.parametrize("name", ["chat_nonstream.txt", "completions.json"])
def test_a_captured_reply_passes_with_nothing_changed_but_its_model(name: str):
    raw = (CAPTURES / name).read_bytes()
    body = raw[raw.index(b"\n{") + 1 :].strip() if raw.startswith(b"HTTP/") else raw.strip()
    whole = whole_reply(body, "pub", None, 1)
    assert json.loads(whole.body) == json.loads(body) | {"model": "pub"}
    assert not whole.usage.estimated
    assert whole.usage.completion_tokens == json.loads(body)["usage"]["completion_tokens"]


def test_an_error_in_a_reply_that_says_200_is_the_endpoint_s():
    # OpenRouter, where a provider behind it fails: openrouter.ai/docs/api/reference/errors-and-debugging
    body = b'{"id":"gen-1","error":{"code":502,"message":"Provider returned error"},"choices":[]}'
    with pytest.raises(ServerFault, match="Provider returned error"):
        whole_reply(body, "pub", None, 1)
    assert (
        whole_reply(b'{"error":null,%b,%b}' % (CHOICES, USAGE), "pub", None, 1).usage.completion_tokens == 2
    )
