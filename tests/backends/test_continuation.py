"""A stream cut anywhere and gone on with is, to its client, the stream that was not cut."""

import json
import re
from contextlib import suppress

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import handover
from backends.base import ReplyMalformed
from backends.continuation import Continued, Seam
from backends.said import Said
from backends.sse import CompletionStream, Shown
from backends.stops import Stops
from loadtest.simworker import stops as simulated
from loadtest.simworker.chat_format import ChatFormat, Heading
from loadtest.simworker.completion_format import CompletionFormat
from loadtest.simworker.engine import Sampling, Sequence
from loadtest.simworker.reply import Counted
from loadtest.simworker.source import FreeText, checksum
from loadtest.simworker.tokenizer import EOS, FIRST_WORD, Tokenizer, _bytes_token
from routing.types import Usage

PROMPT = [1, 4, 40, 50, 5]
TOKENIZER = Tokenizer()
DONE = b"data: [DONE]\n\n"


class Call(msgspec.Struct, frozen=True):
    chat: bool = True
    max_tokens: int = 24
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include: bool = False
    logprobs: int | None = None
    ids: bool = False
    seed: int = 0
    halves: bool = False
    """Whether some of its characters are two tokens."""


HALVES = {
    _bytes_token(whole[:cut]): _bytes_token(whole[cut:])
    for whole, cut in (("🌊".encode(), 2), ("潮".encode(), 1))
}
"""Tokens that are the first part of a character, with those that are the rest."""


class Halves:
    """Free text in which every other word or so is one character of two tokens."""

    def __init__(self, prompt_ids: list[int], seed: int) -> None:
        self._ids = list(prompt_ids)
        self._seed = seed
        self.roll = 0

    def next(self, *, may_end: bool) -> int:
        self.roll = roll = checksum(self._ids, self._seed) * 2654435761 >> 8
        token = HALVES.get(self._ids[-1])
        if token is None:
            token = (
                EOS if may_end and roll % 40 == 0 else [*HALVES, *range(FIRST_WORD, FIRST_WORD + 3)][roll % 5]
            )
        self._ids.append(token)
        return token


def said_by_a_worker(
    call: Call,
    prompt: list[int],
    max_tokens: int,
    name: str,
    *,
    plain: bool,
    stop: tuple[str, ...],
    min_tokens: int,
) -> bytes:
    """The stream of a worker that was asked for ids and usage."""
    stops = simulated.Stops(stop, include=call.include)
    sampling = Sampling(max_tokens, min_tokens)
    sequence = Sequence(
        0, prompt, (Halves if call.halves else FreeText)(prompt, call.seed), stops, sampling, None
    )
    heading = Heading(f"id-{name}", 1, name, f"fingerprint-{name}")
    wording = (CompletionFormat if plain else ChatFormat)(heading, token_ids=True, top_logprobs=call.logprobs)
    chunks = wording.opening([sequence])
    while not chunks or not chunks[-1].choices[0].finish_reason:
        chunks += wording.chunks(sequence, sequence.advance())
    chunks.append(wording.closing(Counted(len(prompt), 0, len(sequence.emitted))))
    return b"".join(b"data: %b\n\n" % msgspec.json.encode(chunk) for chunk in chunks) + DONE


def first(call: Call) -> bytes:
    return said_by_a_worker(
        call, PROMPT, call.max_tokens, "tiny", plain=not call.chat, stop=call.stop, min_tokens=call.min_tokens
    )


def gone_on(call: Call, wire: bytes, cuts: list[int]) -> tuple[bytes, CompletionStream]:
    """What the client sees where the first worker, and each that goes on, is cut after so many bytes."""
    said, fields = Said(), {"max_tokens": msgspec.Raw(b"%d" % call.max_tokens)}
    shown = Shown("pub", usage=True, ids=call.ids)
    stream = CompletionStream(shown, 1 << 20, said)
    out = b""
    for place in [*cuts, None]:
        ends = [found.end() for found in re.finditer(b"\n\n", wire)]
        cut = len(wire) if place is None else place % (len(wire) + 1)
        if place is not None and place % 3:  # most often between two events
            cut = ends[place % len(ends)]
        out += stream.feed(wire[: cut // 2]) + stream.feed(wire[cut // 2 : cut])
        if stream.finished:
            return out, stream
        if not said.text:  # nothing was shown: it is begun anew
            said, out = Said(), b""
            stream, wire = CompletionStream(shown, 1 << 20, said), first(call)
            continue
        ids = said.token_ids() if call.stop else said.settled_ids()
        text = TOKENIZER.decode(ids)
        while not handover.whole_characters(text):
            ids, text = ids[:-1], TOKENIZER.decode(ids[:-1])
        held = handover.beyond(said.text.decode(), text) if call.stop else ""
        assert held is not None
        asked = handover.from_token(fields, chat=False, prompt=PROMPT, ids=ids, context_tokens=0)
        seam = Seam(
            chat=call.chat, own_tokens=len(ids), by_ids=True, prompt_tokens=len(PROMPT),
            told_again=max(said.tokens, said.told) - len(ids), top_logprobs=call.logprobs or 0, min_tokens=call.min_tokens,
            stops=Stops(call.stop, said.text.decode(), held, include=call.include) if call.stop else None,
        )  # fmt: skip
        stream = Continued(shown, 1 << 20, said, seam)
        prompt, max_tokens = (msgspec.json.decode(asked[name]) for name in ("prompt", "max_tokens"))
        least = max(0, call.min_tokens - len(ids))
        wire = said_by_a_worker(call, prompt, max_tokens, "other", plain=True, stop=(), min_tokens=least)
    return out, stream


def events(out: bytes) -> list[dict]:
    return [json.loads(event.removeprefix(b"data: ")) for event in out.split(b"\n\n")[:-1]]


def summed_up(out: bytes) -> dict:
    """What a client makes of a stream."""
    found = events(out)
    choices = [choice for event in found for choice in event["choices"]]
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    return {
        "text": "".join(
            each["text"] if "text" in each else each["delta"].get("content", "") for each in choices
        ),
        "heads": {(event["id"], event["object"], event["created"], event["model"]) for event in found},
        "roles": [each["delta"]["role"] for each in choices if "role" in each.get("delta", {})],
        "finish": [(each["finish_reason"], each["stop_reason"]) for each in choices if each["finish_reason"]],
        "ids": [token for each in choices for token in each.get("token_ids") or ()],
        "logprobs": [row for each in told for row in _rows(each)],
        "usage": [_counts(event["usage"]) for event in found if "usage" in event],
    }


def _rows(logprobs: dict) -> list:
    if "content" in logprobs:
        # Of half a character a plain completion does not tell the bytes.
        return [
            [word for word in _words_in(token) if "\ufffd" not in word[0]] for token in logprobs["content"]
        ]
    names = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
    return list(zip(*(logprobs[name] for name in names), strict=True))


def _words_in(token: dict) -> list:
    return [(each["token"], each["logprob"], each["bytes"]) for each in (token, *token["top_logprobs"])]


def _counts(usage: dict) -> tuple[int, int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]


def text_of(call: Call) -> str:
    return summed_up(CompletionStream(Shown("pub"), 1 << 20).feed(first(call)))["text"]


@st.composite
def calls(draw) -> Call:
    call = Call(
        chat=draw(st.booleans()), max_tokens=draw(st.integers(1, 40)), seed=draw(st.integers(0, 5)),
        min_tokens=draw(st.sampled_from([0, 0, 10, 30])), logprobs=draw(st.sampled_from([None, 0, 2])), ids=draw(st.booleans()),
        halves=draw(st.booleans()),
    )  # fmt: skip
    if draw(st.booleans()):
        text = text_of(call)
        start = draw(st.integers(0, max(0, len(text) - 1)))
        stop = text[start : start + draw(st.integers(1, 30))]
        call = msgspec.structs.replace(call, stop=("nowhere", stop or "x"), include=draw(st.booleans()))
    return call


@settings(deadline=None, max_examples=300)
@given(calls(), st.lists(st.integers(0, 20_000), min_size=1, max_size=3))
def test_a_stream_cut_anywhere_and_gone_on_with_is_the_one_that_was_not_cut(call, cuts):
    wire = first(call)
    undisturbed = CompletionStream(Shown("pub", usage=True, ids=call.ids), 1 << 20, Said()).feed(wire)
    out, stream = gone_on(call, wire, cuts)
    expected, seen = summed_up(undisturbed), summed_up(out)
    if not seen["usage"]:  # it broke when all was there but for its usage
        expected["usage"] = []
    if "stop" in {reason for reason, _ in expected["finish"]} and call.stop:
        # A worker that goes on has written more by the time that it is stopped: of that nobody is told.
        assert seen["ids"] == expected["ids"]
    assert seen == expected
    if isinstance(stream, Continued) and stream.told is not None:
        assert stream.told == Usage(len(PROMPT), 0, stream.own_tokens + stream.tokens)


@settings(deadline=None)
@given(short=st.sampled_from(["text_offset", "tokens", "token_logprobs", "top_logprobs"]), chat=st.booleans())
def test_logprobs_that_do_not_fit_one_another_are_a_malformed_reply(*, short: str, chat: bool):
    columns = {
        "text_offset": [0, 4],
        "tokens": [" a", " b"],
        "token_logprobs": [-1.0, -2.0],
        "top_logprobs": [None, None],
    }
    columns[short] = []
    choice = {"index": 0, "text": " a b", "logprobs": columns, "token_ids": [40, 41], "finish_reason": None}
    seam = Seam(chat=chat, own_tokens=1, by_ids=True, prompt_tokens=5)
    stream = Continued(Shown("pub"), 1 << 20, Said(), seam)
    with suppress(ReplyMalformed):  # a plain one is told what there is
        stream.feed(b"data: %b\n\n" % msgspec.json.encode({"choices": [choice]}))
