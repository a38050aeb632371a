import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.base import ReplyMalformed, ReplyOversized, ServerFault, StreamTruncated
from backends.sse import CompletionStream, Shown
from routing.types import Usage

CAPTURES = Path(__file__).parents[3] / "shared" / "vllm" / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures of a real vLLM here")
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


def decoded(out: bytes) -> list:
    assert out == b"" or out.endswith(b"\n\n")
    events = out.split(b"\n\n")[:-1]
    return [
        json.loads(b"\n".join(line[5:] for line in event.split(b"\n")))
        if event.startswith(b"data:")
        else event
        for event in events
    ]


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


def chunk(content: str = "x", finish: str | None = None, **more: object) -> bytes:
    made = {"id": "i", "object": "o", "created": 1, "model": "tiny"}
    made["choices"] = [{"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}]
    return b"data: " + json.dumps(made | more, separators=(",", ":")).encode() + b"\n\n"


USAGE_CHUNK = b'data: {"id":"i","object":"o","created":1,"model":"tiny","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'


def fed(*blocks: bytes, **shown: object) -> tuple[CompletionStream, bytes]:
    stream = CompletionStream(Shown("pub", **shown), 10_000)
    return stream, b"".join([stream.feed(block) for block in blocks])


def test_the_usage_chunk_is_counted_and_hidden_unless_asked_for():
    wire = chunk() + chunk("", "stop") + USAGE_CHUNK + b"data: [DONE]\n\n"
    stream, out = fed(wire)
    assert stream.usage == Usage(7, 0, 2)
    assert stream.done
    assert stream.finished
    assert b"usage" not in out
    assert out.endswith(b'"finish_reason":"stop"}]}\n\n')
    stream, out = fed(wire, usage=True)
    assert out == wire.removesuffix(b"data: [DONE]\n\n").replace(b'"tiny"', b'"pub"')


def test_usage_on_every_chunk_is_removed_unless_asked_for():
    wire = b"".join(chunk(usage={"prompt_tokens": 7, "completion_tokens": n}) for n in range(5))
    stream, out = fed(wire)
    assert out == b"".join([chunk()] * 5).replace(b"tiny", b"pub")
    assert stream.usage == Usage(7, 0, 4)
    assert fed(wire, usage=True)[1] == wire.replace(b"tiny", b"pub")


def test_a_null_usage_is_removed_unless_asked_for():
    wire = chunk(usage=None) * 3
    assert fed(wire)[1] == (chunk() * 3).replace(b"tiny", b"pub")
    assert fed(wire, usage=True)[1] == wire.replace(b"tiny", b"pub")


def test_the_tier_stands_once_in_every_chunk():
    for wire in (chunk() * 4, chunk() + chunk(service_tier="scale") * 3, chunk(service_tier=None) * 4):
        _, out = fed(wire, tier="flex")
        assert [event["service_tier"] for event in decoded(out)] == ["flex"] * 4
        assert out.count(b"service_tier") == 4


@pytest.mark.parametrize("before", [0, 1, 5])
def test_an_error_event_fails_the_stream_with_the_worker_s_words(before: int):
    wire = b'data: {"error": {"message": "EngineCore is gone", "type": "x", "param": null, "code": 500}}\n\n'
    stream, _ = fed(chunk() * before)
    with pytest.raises(ServerFault, match="EngineCore is gone"):
        stream.feed(wire + b"data: [DONE]\n\n")
    assert not stream.finished


@pytest.mark.parametrize("error", ["text", ["list"], {"code": 1}, 5])
def test_an_error_event_may_have_any_shape(error):
    with pytest.raises(ServerFault):
        fed(chunk() + b"data: " + json.dumps({"error": error}).encode() + b"\n\n")


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_a_stream_that_the_worker_gave_up_is_not_whole(reason: str):
    with pytest.raises(ServerFault, match="gave the call up"):
        fed(chunk() * 3 + chunk("", reason))


def test_done_is_no_proof_of_a_whole_answer():
    stream, _ = fed(chunk() * 3 + b"data: [DONE]\n\n")
    assert stream.done
    with pytest.raises(StreamTruncated, match="1 of 1"):
        stream.end()


def test_every_choice_has_to_finish():
    def of(index: int, finish: str | None) -> bytes:
        return chunk(choices=[{"index": index, "delta": {"content": "x"}, "finish_reason": finish}])

    stream, _ = fed(of(0, None), of(1, None), of(2, "stop"), of(0, "stop"), choices=3)
    with pytest.raises(StreamTruncated, match="1 of 3"):
        stream.end()
    stream.feed(of(1, "length"))
    stream.end()


def test_one_chunk_may_finish_several_choices():
    listed = [{"index": n, "delta": {"content": "x"}, "finish_reason": "stop"} for n in range(3)]
    stream, _ = fed(chunk(), chunk(choices=listed), choices=3)
    stream.end()
    assert stream.tokens == 4


@pytest.mark.parametrize(
    "content",
    [b"{", b"[1]", b"5", b'"x"', b"null", b'{"choices":5}', b'{"choices":[{"finish_reason":5}]}', b'{"usage":{"prompt_tokens":"7"}}',
     b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"\xff":1}', b"<html>"],
)  # fmt: skip
def test_what_is_no_chunk_is_malformed(content: bytes):
    with pytest.raises(ReplyMalformed):
        fed(b"data: " + content + b"\n\n")
    with pytest.raises(ReplyMalformed):
        fed(chunk() * 3 + b"data: " + content + b"\n\n")


def test_bytes_that_are_no_utf_8_pass_the_same_way_however_they_come():
    wire = chunk() + chunk("?!").replace(b"?!", b"\xff\xfe") * 2
    assert (
        fed(wire)[1] == fed(*[wire[i : i + 1] for i in range(len(wire))])[1] == wire.replace(b"tiny", b"pub")
    )


def test_an_event_without_an_end_is_oversized():
    stream, _ = fed(chunk())
    for _ in range(9):
        stream.feed(b"data: " + b"x" * 1000)
    with pytest.raises(ReplyOversized):
        stream.feed(b"x" * 1000)


def test_comments_keep_a_connection_alive_but_begin_nothing():
    stream, out = fed(b": ping\n\n" * 10_000)
    assert out == b""  # nothing has gone to the client yet, so whatever is shown would be kept
    assert not stream.begun
    stream.feed(b"event: hello\n\n")
    assert not stream.begun
    stream.feed(chunk(""))
    assert stream.begun
    assert stream.feed(b": ping\n\n") == b": ping\n\n"
    assert stream.tokens == 0


def test_what_follows_done_is_not_shown():
    _, out = fed(chunk("x", "stop") + b"data: [DONE]\n\n" + chunk() + b"data: garbage\n\n")
    assert decoded(out)[0]["choices"][0]["finish_reason"] == "stop"
    assert len(decoded(out)) == 1


def test_runs_of_usual_chunks_are_counted_one_by_one():
    stream, _ = fed(chunk("") + chunk() * 100 + chunk("") * 5 + chunk() * 7)
    assert stream.tokens == 107


@pytest.mark.parametrize(
    "odd",
    [
        chunk(created=2),
        chunk(finish="stop").replace(b'"finish_reason":', b'"finish_reason": '),
        chunk()
        + chunk(choices=[])
        + chunk(choices=[{"index": n, "delta": {"content": "x"}} for n in (0, 0)]),
        chunk(choices=[{"index": 0, "delta": {"content": "x"}}]),
    ],
)
def test_a_chunk_of_another_kind_among_usual_ones_is_noticed(odd: bytes):
    wire = chunk() * 3 + odd + chunk() * 3
    stream, out = fed(wire)
    events = [event + b"\n\n" for event in wire.split(b"\n\n")[:-1]]
    alone, separately = fed(*events)
    assert decoded(out) == decoded(separately) == decoded(wire.replace(b"tiny", b"pub"))
    assert (stream.tokens, stream.finished) == (alone.tokens, b"stop" in odd)
    assert stream.tokens == alone.tokens == wire.count(b'"content":"x"')


def test_an_error_inside_a_chunk_of_the_usual_kind_is_noticed():
    with pytest.raises(ServerFault, match="gone"):
        fed(chunk() * 3 + chunk(error={"message": "gone"}) + chunk())


@needs_captures
@pytest.mark.parametrize("name", ["chat_stream.txt", "chat_stream_cont_usage.txt"])
def test_a_captured_stream_passes_with_nothing_changed_but_its_model(name: str):
    wire = (CAPTURES / name).read_bytes().partition(b"\r\n\r\n")[2]
    for size in (1, 7, 100, 5000):
        blocks = [wire[i : i + size] for i in range(0, len(wire), size)]
        stream, out = fed(*blocks, usage=True)
        assert out == wire.replace(b'"model":"tiny"', b'"model":"pub"').partition(b"data: [DONE]")[0]
        stream.end()
        assert stream.usage is not None
        assert stream.tokens == stream.usage.completion_tokens
        stream, out = fed(*blocks)
        assert b'"usage"' not in out
        assert b"[DONE]" not in out


@needs_captures
def test_a_captured_stream_whose_engine_was_killed_is_a_fault():
    wire = (CAPTURES / "stream_engine_killed.txt").read_bytes().replace(b"...\n\n", b"")
    with pytest.raises(ServerFault, match="EngineCore encountered an issue"):
        fed(wire)
