"""Calls of tools in a stream: shown when they are whole, or too long to be waited for, and never out of order."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.holding import MOST_HELD_BYTES, HoldingStream
from backends.said import Said
from backends.sse import CompletionStream, Shown


def event(delta: dict[str, Any], finish: str | None = None, token: int | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    if token is not None:
        choice["token_ids"] = [token]
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "sim", "choices": [choice]}
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def called(arguments: str, *, name: str | None = None, index: int = 0) -> dict[str, Any]:
    function = {"arguments": arguments} | ({} if name is None else {"name": name})
    return {"tool_calls": [{"index": index, "function": function}]}


def stream_of(*, holding: bool = True) -> CompletionStream:
    shown = Shown("llama", None, usage=False, choices=1)
    return (HoldingStream if holding else CompletionStream)(shown, 1_000_000, Said())


BEGINS = event({"role": "assistant", "content": ""})
ENDS = event({}, "tool_calls") + b"data: [DONE]\n\n"


def test_a_call_is_shown_when_its_arguments_are_json():
    stream = stream_of()
    assert stream.feed(BEGINS)
    for arguments in ("", '{"place": {', '"of": "Brest"}'):
        assert stream.feed(event(called(arguments, name="tide_at"))) == b""
        assert stream.holds
        assert not stream.answers
        assert not stream.said.shows_something
    shown = stream.feed(event(called("}")))
    assert shown.count(b"tool_calls") == 4
    assert stream.answers
    assert not stream.holds
    assert stream.said.calls_tools
    assert b"more" in stream.feed(event(called("more", index=1)))  # it makes no difference any more


def test_text_before_a_call_is_shown_at_once_and_is_all_that_there_is_to_go_on_with():
    stream = stream_of()
    stream.feed(BEGINS)
    for token, text in enumerate(("I", " will", " look")):
        assert text.encode() in stream.feed(event({"content": text}, token=token))
    assert stream.feed(event(called("", name="tide_at"), token=7)) == b""
    assert stream.feed(event(called('{"a":'), token=8)) == b""
    assert stream.answers
    assert not stream.said.calls_tools
    assert bytes(stream.said.text) == b"I will look"
    assert (stream.tokens, stream.held_tokens) == (5, 2)


def test_text_behind_a_call_does_not_overtake_it():
    stream = stream_of()
    stream.feed(BEGINS)
    for text in ("I", " will", " look"):
        stream.feed(event({"content": text}))  # a chunk of the usual kind is known from now on
    assert stream.feed(event(called('{"a":', name="tide_at"))) == b""
    assert stream.feed(event({"content": " and"})) == b""
    assert stream.feed(event({"content": " then"})) == b""
    shown = stream.feed(event(called("1}")))
    assert shown.index(b"tide_at") < shown.index(b" and") < shown.index(b" then") < shown.index(b"1}")


@pytest.mark.parametrize("arguments", ["x" * (MOST_HELD_BYTES + 1), '{"a": ' + "[" * 2000])
def test_what_is_too_long_is_not_waited_for(arguments: str):
    stream = stream_of()
    stream.feed(BEGINS)
    assert b"tool_calls" in stream.feed(event(called(arguments, name="tide_at")))


@pytest.mark.parametrize(
    "calls", [[{}], ["what"], {"a": 1}, "text", [{"function": {"arguments": {"a": 1}}}], [{"function": 1}]]
)
def test_calls_that_make_no_sense_come_through_as_they_are(calls: Any):
    stream = stream_of()
    stream.feed(BEGINS)
    shown = stream.feed(event({"tool_calls": calls})) + stream.feed(ENDS)
    assert shown.count(b"tool_calls") == 2
    assert stream.whole


DELTAS = st.lists(
    st.builds(lambda text: {"content": text}, st.text(max_size=5))
    | st.builds(called, st.sampled_from(["", "{", '"a":1', "}", "x" * 600]), index=st.integers(0, 1)),
    max_size=20,
)


@given(DELTAS, st.lists(st.integers(0, 5000), max_size=10))
def test_in_the_end_all_has_been_shown_in_its_order_however_it_came(
    deltas: list[dict[str, Any]], cuts: list[int]
):
    wire = BEGINS + b"".join(map(event, deltas)) + ENDS
    places = [0, *sorted(cut % len(wire) for cut in cuts), len(wire)]
    blocks = [wire[start:end] for start, end in pairwise(places)]
    held, plain = stream_of(), stream_of(holding=False)
    assert b"".join(map(held.feed, blocks)) == b"".join(map(plain.feed, blocks))
    assert held.whole
    assert held.tokens == plain.tokens
    assert held.said.shows_something == plain.said.shows_something
