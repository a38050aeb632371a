import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import ReplyMalformed
from backends.chunk import decode_chunk
from backends.said import Said, crc_of
from backends.sse import CompletionStream, Shown

PROMPT = [1, 4, 46, 5]
TEXTS = st.sampled_from(
    [" sea", "", "潮", ' "', "\\n", "\n", "\u2028", "]", "]}]}", '"token_ids":[1]', "null"]
)
TOKENS = st.lists(st.tuples(TEXTS, st.lists(st.integers(0, 200_000), min_size=1, max_size=3)), max_size=12)
HEAD = {"id": "cmpl-1", "object": "o", "created": 1, "model": "tiny"}


def line(chunk: object, *, compact: bool = True) -> bytes:
    separators = (",", ":") if compact else (", ", ": ")
    return b"data: " + json.dumps(chunk, separators=separators, ensure_ascii=False).encode() + b"\n\n"


def chat(tokens, *, ids: bool, compact: bool = True) -> list[bytes]:
    first = {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    prompt = {"prompt_token_ids": PROMPT if ids else None, "prompt_text": None}
    events = [line(HEAD | {"choices": [first]} | prompt, compact=compact)]
    for place, (text, listed) in enumerate(tokens, start=1):
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        if place == len(tokens):
            choice |= {"finish_reason": "length", "stop_reason": None}
        events.append(
            line(HEAD | {"choices": [choice | {"token_ids": listed if ids else None}]}, compact=compact)
        )
    return events


def plain(tokens, *, ids: bool, compact: bool = True) -> list[bytes]:
    events = []
    for place, (text, listed) in enumerate(tokens, start=1):
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}
        choice["finish_reason"] = "stop" if place == len(tokens) else None
        choice["prompt_token_ids"] = PROMPT if ids and place == 1 else None
        choice["token_ids"] = listed if ids else None
        events.append(line(HEAD | {"choices": [choice]}, compact=compact))
    return events


def seen(events: list[bytes], places: list[int], *, said: Said | None = None, ids: bool = False) -> bytes:
    stream = CompletionStream(Shown("pub", ids=ids), 1 << 20, said)
    wire = b"".join(events)
    marks = sorted({0, len(wire), *(place % (len(wire) + 1) for place in places)})
    return b"".join(stream.feed(wire[start:end]) for start, end in pairwise(marks))


def decoded(out: bytes) -> list:
    return [json.loads(event.removeprefix(b"data: ")) for event in out.split(b"\n\n")[:-1]]


@settings(deadline=None)
@given(TOKENS, st.sampled_from([chat, plain]), st.booleans(), st.lists(st.integers(0, 20_000), max_size=10))
def test_ids_that_only_the_gateway_has_asked_for_are_kept_and_not_shown(tokens, words, compact, places):
    said = Said()
    wire = words(tokens, ids=True, compact=compact)
    out = seen(wire, places, said=said)
    unasked = seen(words(tokens, ids=False, compact=compact), [])
    assert decoded(out) == decoded(unasked)
    if compact:
        assert out == unasked
    ends, at = [], 0
    for event in wire:
        at += len(event)
        ends.append(at)
    again = Said()
    assert seen(wire, ends, said=again) == out
    for account in (said, again):
        assert account.text.decode() == "".join(text for text, _ in tokens)
        assert account.token_ids() == [each for _, listed in tokens for each in listed]
        shown = max((place for place, (text, _) in enumerate(tokens, start=1) if text), default=0)
        assert account.settled_ids() == [each for _, listed in tokens[:shown] for each in listed]
        if tokens or words is chat:
            assert account.prompt_tokens == len(PROMPT)
            assert account.prompt_crc == crc_of(json.dumps(PROMPT).encode())
            assert {name: msgspec.json.decode(value) for name, value in account.head.items()} == HEAD | {
                "model": "pub"
            }
        if tokens:
            assert account.finish_reason == ("length" if words is chat else "stop")


def test_ids_that_the_client_has_asked_for_are_shown():
    said = Said()
    wire = chat([(" sea", [7]), (" wind", [8]), (".", [9])], ids=True)
    assert seen(wire, [], said=said, ids=True) == b"".join(wire).replace(b"tiny", b"pub")
    assert said.token_ids() == [7, 8, 9]


def test_a_chunk_that_a_worker_sends_only_for_its_ids_is_not_shown():
    said = Said()
    control = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None, "token_ids": [5]}
    assert seen([line(HEAD | {"choices": [control]})], [], said=said) == b""
    assert (said.token_ids(), said.settled_ids()) == ([5], [])


@pytest.mark.parametrize(
    ("delta", "told"),
    [
        ({"reasoning": "so"}, "reasons"),
        ({"reasoning_content": "so"}, "reasons"),
        ({"tool_calls": [{"index": 0, "function": {"name": "tide"}}]}, "calls_tools"),
        ({"refusal": "no"}, "unclear"),
        ({"content": ["x"]}, "unclear"),
    ],
)
def test_what_is_no_content_is_told_apart(delta, told):
    said = Said()
    chunk = decode_chunk(msgspec.json.encode({"choices": [{"index": 0, "delta": delta}]}))
    said.take_down(chunk.choices[0], chunk)
    assert said.shows_something
    assert getattr(said, told)
    assert not said.text


def test_reasoning_that_content_has_followed_is_over():
    said = Said()
    for delta in ({"reasoning": "so"}, {"content": "high"}):
        chunk = decode_chunk(msgspec.json.encode({"choices": [{"index": 0, "delta": delta}]}))
        said.take_down(chunk.choices[0], chunk)
    assert not said.reasons
    assert said.text == b"high"


def test_a_stream_whose_ids_are_missing_somewhere_does_not_know_them():
    said = Said()
    seen(
        chat([(" sea", [7]), (" wind", [8])], ids=True)[:2] + chat([(" sea", [7])] * 3, ids=False)[1:2],
        [],
        said=said,
    )
    assert said.text == b" sea sea"
    assert not said.knows_ids


def test_logprobs_of_plain_completions_tell_where_the_next_token_begins():
    said = Said()
    logprobs = {
        "text_offset": [0, 3],
        "tokens": [" IN", " proxy"],
        "token_logprobs": [-1, -2],
        "top_logprobs": [{}, {}],
    }
    seen([line(HEAD | {"choices": [{"index": 0, "text": " IN proxy", "logprobs": logprobs}]})], [], said=said)
    assert said.text_offset == 9


@pytest.mark.parametrize("ids", ['["1"]', "[-1]", "[1.5]", '"all"', "[1,]"])
def test_ids_that_are_none_are_not_known(ids: str):
    choice = '{"index":0,"delta":{"content":" sea"},"token_ids":%s}'
    said = Said()
    try:
        CompletionStream(Shown("pub"), 1 << 20, said).feed(
            b'data: {"choices":[%b]}\n\n' % (choice % ids).encode()
        )
    except ReplyMalformed:
        return
    assert said.text == b" sea"
    assert not said.knows_ids
    assert said.token_ids() == []


def test_logprobs_that_make_no_sense_are_no_end_of_the_stream():
    choice = {"index": 0, "text": " sea", "logprobs": {"text_offset": "none"}, "token_ids": [7]}
    said = Said()
    assert b" sea" in CompletionStream(Shown("pub"), 1 << 20, said).feed(line(HEAD | {"choices": [choice]}))
    assert said.unclear
