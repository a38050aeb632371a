import json
from pathlib import Path

import pytest
from sse_events import decoded

from backends.base import ReplyMalformed, ReplyOversized, ServerFault, StreamTruncated
from backends.sse import CompletionStream, Shown
from routing.types import Usage

CAPTURES = Path(__file__).parents[3] / "shared" / "vllm" / "captures"
needs_captures = pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures of a real vLLM here")


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
