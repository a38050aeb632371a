"""Any stream, cut anywhere: the fast way through it against a slow and simple reader of the same bytes."""

import json
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sse_events import decoded

from backends.base import ReplyMalformed, ServerFault
from backends.sse import CompletionStream, Shown
from routing.types import Usage

PUBLIC = 'public "näme" \u2028'
TIER_CHOICES = st.sampled_from([None, "default"])
NASTY = [
    "", "a", " text", "\n\n", "\r\n\r\n", "\u2028", "\u2029", "\u0085", "😀", '"', "\\", "\\\\", '\\"', "data: [DONE]",
    "[DONE]", '"finish_reason":"stop"', '"finish_reason":null', '"usage":{"prompt_tokens":1}', '"error":', '"content":""',
    '"model":"tiny",', 'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"tiny",', "\x00", "null", "{}",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(NASTY) | st.text(max_size=5), max_size=3).map("".join)
ARGUMENTS = st.lists(
    st.builds(lambda text: {"index": 0, "function": {"arguments": text}}, TEXTS), min_size=1, max_size=2
)
DELTAS = st.one_of(
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"content": text}, TEXTS),
    st.builds(lambda text: {"role": "assistant", "content": text}, TEXTS),
    st.builds(lambda text: {"reasoning": text}, TEXTS),
    st.builds(lambda text: {"content": None, "reasoning_content": text}, TEXTS),
    st.builds(lambda text: {"refusal": text, "content": None}, TEXTS),
    st.builds(lambda calls: {"tool_calls": calls}, ARGUMENTS),
    st.just({}),
)
USAGES = st.builds(
    lambda prompt, cached, completion: {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "prompt_tokens_details": None if cached is None else {"cached_tokens": cached},
    },
    st.integers(-2, 99),
    st.none() | st.integers(-2, 150),
    st.integers(-2, 99),
)


@st.composite
def choices(draw, indices):
    completion = draw(st.integers(0, 9)) == 0
    choice = {"index": draw(st.sampled_from(indices))}
    choice |= {"text": draw(TEXTS)} if completion else {"delta": draw(DELTAS)}
    if draw(st.booleans()):
        # Token texts are keys here, as in the logprobs of completions.
        choice["logprobs"] = draw(
            st.sampled_from([None, {"top": {"usage": -1.5, "finish_reason": -2.0, "error": 0}}])
        )
    finish = st.sampled_from([None, None, None, None, None, None, "stop", "length", "tool_calls", ""])
    return choice | {"finish_reason": draw(finish)}


@st.composite
def streams(draw):
    """The events of one stream, as bytes, and what its writer's habits are."""
    compact = draw(st.booleans())
    ascii_only = draw(st.booleans())
    indices = list(range(draw(st.integers(1, 3))))
    head = {
        "id": "cmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": draw(st.sampled_from(["tiny", 'a"ü'])),
    }
    order = draw(st.sampled_from([["head", "rest"], ["head", "rest"], ["head", "rest"], ["rest", "head"]]))
    events = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.integers(0, 19))
        if kind == 0:
            events.append(draw(st.sampled_from([b": ping", b":", b"event: x", b"retry: 5", b": a\n: b"])))
            continue
        listed = draw(
            st.lists(choices(indices), min_size=0 if kind == 1 else 1, max_size=2 if kind < 4 else 1)
        )
        rest = {"choices": listed}
        if kind in (1, 5):
            rest["usage"] = draw(st.none() | USAGES)
        if kind == 6:
            rest["service_tier"] = draw(st.sampled_from([None, "scale"]))
        if kind == 7:
            rest["system_fingerprint"] = "f"
        parts = {"head": head if kind != 8 else head | {"created": 2}, "rest": rest}
        chunk = parts[order[0]] | parts[order[1]]
        separators = (",", ":") if compact else (", ", ": ")
        text = json.dumps(chunk, separators=separators, ensure_ascii=ascii_only)
        if kind == 9:
            events.append(
                "\n".join("data: " + line for line in json.dumps(chunk, indent=1).split("\n")).encode()
            )
        else:
            events.append((draw(st.sampled_from(["data: ", "data: ", "data:"])) + text).encode())
    if draw(st.booleans()):
        events.append(b"data: [DONE]")
    return events, len(indices)


def cut(wire: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(wire), *(place % (len(wire) + 1) for place in places)})
    return [wire[start:end] for start, end in pairwise(marks)]


def passed(wire: bytes, shown: Shown, places: list[int]):
    stream = CompletionStream(shown, 1 << 20)
    out = b"".join([stream.feed(block) for block in cut(wire, places)])
    return out, stream.tokens, stream.usage, stream.finished, stream.begun, stream.done


def shows(choice: dict) -> bool:
    delta = choice.get("delta") or {}
    parts = ("content", "reasoning", "reasoning_content", "tool_calls", "refusal")
    return bool(choice.get("text") or any(delta.get(part) for part in parts))


def by_hand(events: list[bytes], shown: Shown):
    """What a slow and simple reader makes of the same events."""
    out, tokens, usage, finished, begun = [], 0, None, set(), False
    for event in events:
        datas = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if not datas:
            out += [event] if begun and event.startswith(b":") else []
            continue
        if datas == [b"[DONE]"]:
            break
        chunk, begun = json.loads(b"\n".join(datas)), True
        reported = chunk.get("usage")
        if reported is not None:
            prompt = max(0, reported["prompt_tokens"])
            details = reported["prompt_tokens_details"] or {"cached_tokens": 0}
            cached = min(max(0, details["cached_tokens"]), prompt)
            usage = Usage(prompt, cached, max(0, reported["completion_tokens"]))
        finished |= {choice["index"] for choice in chunk["choices"] if choice["finish_reason"]}
        tokens += sum(shows(choice) for choice in chunk["choices"])
        if reported is not None and not chunk["choices"] and not shown.usage:
            continue
        if not shown.usage:
            chunk.pop("usage", None)
        chunk["model"] = shown.model
        if shown.tier is not None:
            chunk["service_tier"] = shown.tier
        out.append(chunk)
    return out, tokens, usage, len(finished) >= shown.choices


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(), st.booleans(), TIER_CHOICES, st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\r"]))  # fmt: skip
def test_the_fast_way_shows_and_counts_what_a_slow_and_simple_reader_would(
    made, usage, tier, places, line_end
):
    events, choice_count = made
    shown = Shown(PUBLIC, tier, usage=usage, choices=choice_count)
    # A last line keeps a CR at the end from waiting for the LF that might follow it.
    wire = b"".join(event + b"\n\n" for event in events).replace(b"\n", line_end) + b":"
    expected, tokens, reported, finished = by_hand(events, shown)
    out, *counted = passed(wire, shown, places)
    assert decoded(out) == expected
    assert counted[:3] == [tokens, reported, finished]
    assert (out, *counted) == passed(wire, shown, [])
    if line_end == b"\n":
        # Event by event there is no run of usual chunks.
        ends, at = [], 0
        for event in events:
            at += len(event) + 2
            ends.append(at)
        assert (out, *counted) == passed(wire, shown, ends)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(streams(), st.lists(st.integers(0, 10_000), max_size=12))
def test_where_nothing_has_to_change_nothing_does(made, places):
    events, choice_count = made
    shown = Shown("tiny", usage=True, choices=choice_count)
    usual = [
        event for event in events if event.startswith(b'data: {"id":"cmpl-1"') and b'"model":"tiny"' in event
    ]
    wire = b"".join(event + b"\n\n" for event in usual)
    out, *_ = passed(wire, shown, places)
    assert out == wire


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
def test_garbage_is_malformed_or_passes_but_never_breaks_the_reader(garbage, places):
    stream = CompletionStream(Shown("m"), 1000)
    try:
        for block in cut(garbage + b"\n\ndata: " + garbage + b"\n\n", places):
            stream.feed(block)
    except (ReplyMalformed, ServerFault):
        pass
