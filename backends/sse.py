"""Server-sent events of a completion stream, read and rewritten as bytes.

A gateway that parses every chunk of every stream spends most of its time on it. Almost every chunk is of one kind,
though: the bytes of the one before but for a token's text. `CompletionStream` learns what stands before and behind the
text, and from then on recognises whole runs of such chunks by comparing bytes; in a text without quotes and backslashes
nothing can hide. All other chunks are decoded in full. Which way a chunk takes depends on how the stream was cut into
blocks; what the client sees and what is counted must not, and the tests hold them to it.

A stream that might have to be gone on with elsewhere tells the ids of its tokens. They are kept in `Said`, and where the
client has not asked for them it sees what it would have seen without: `null` in their place.

Lines end as the specification allows (LF, CRLF, CR), and never at U+2028 or U+0085, which are text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from msgspec import Raw, Struct

from backends.base import AttemptFailed, Refused, ReplyMalformed, ReplyOversized, ServerFault, StreamTruncated
from backends.chunk import Chunk, decode_chunk, has_ids, is_plain, tells_only_ids, texts_of
from backends.refusal import fault
from backends.usage import GIVEN_UP

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.said import Said
    from routing.types import Usage

DONE = b"data: [DONE]\n\n"
_TEXTS = (b'"content":"', b'"text":"', b'"arguments":"', b'"reasoning":"', b'"reasoning_content":"')
"""Where a chunk of the usual kind carries its token."""
_CONTENTS = _TEXTS[:2]
_IDS = b'"token_ids":['
_IDS_FIELDS = ("token_ids", "prompt_token_ids")
_NO_IDS = Raw(b"null")
_MOST_BEHIND_IDS = 64
"""Bytes behind the ids in a chunk of the usual kind: brackets and a line end. More would not repeat itself."""


_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_encode = msgspec.json.Encoder().encode


class Shown(Struct, frozen=True):
    """How the client is to see a stream."""

    model: str
    """The public name, put where the worker's own name stands."""
    tier: str | None = None
    """Put in as service_tier, where the client asked for one."""
    usage: bool = False
    """Whether the client asked for the usage chunk. The gateway itself always asks."""
    choices: int = 1
    """How many choices have to finish."""
    ids: bool = False
    """Whether the client asked for the ids of tokens."""


class CompletionStream:
    """One stream on its way through: feed it what came, forward what it returns, then ask it how it ended."""

    holds = False
    """Whether something is held back that has come."""
    held_tokens = 0
    """Of `tokens`."""

    def __init__(self, shown: Shown, event_limit_bytes: int, said: Said | None = None) -> None:
        """`said` takes down what is said, where the stream might have to be gone on with; it has one choice then."""
        self.said = said
        self.usage: Usage | None = None
        """As the worker reported it, at the end."""
        self._chunks = 0
        """Times that a chunk has shown something of a choice."""
        self.begun = False
        """A chunk has come; comments that only keep the connection alive do not count."""
        self.done = False
        """`[DONE]` has come. It is not forwarded: the gateway sends its own once the call is accounted for."""
        self.before_failure = b""
        """Where `feed` has raised: what the client is still to see."""
        self._shown = shown
        self._limit_bytes = event_limit_bytes
        self._rest = b""
        self._finished: set[int] = set()
        self._head: bytes | None = None
        self._shown_head = b""
        self._before: bytes | None = None
        """What stands before the text of a chunk of the usual kind, and what behind it."""
        self._behind = b""
        self._with_ids: Callable[..., re.Match[bytes] | None] | None = None
        """Finds, from behind `_before`, the text and the ids of such a chunk, where it has ids."""
        self._shape = (b"", b"")
        """What stood between text and ids, and behind them, in the last such chunk."""
        self._shown_before = self._shown_behind = b""
        """Of a chunk with ids: as the client sees it, without them."""
        self._model = self._shown_model = b""
        """The field with the model's name, as it comes and as it is shown; once in a chunk of the usual kind."""
        self._model_field = _encode(shown.model)
        self._tier_field = None if shown.tier is None else _encode(shown.tier)

    @property
    def tokens(self) -> int:
        """Tokens seen, by their ids, or one for each time that a chunk has shown something of a choice."""
        return self._chunks if self.said is None else max(self._chunks, self.said.tokens)

    @property
    def prompt_cached(self) -> int | None:
        """How much of the client's prompt was cached where it was read first; None where that has not been said."""
        return (self.usage.cached_tokens or None) if self.usage is not None else None

    @property
    def answers(self) -> bool:
        """Whether it shows something, or that there is nothing to show: until then another endpoint may answer as well."""
        return self._chunks > 0 or self.done or self.finished

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish_reason."""
        return len(self._finished) >= self._shown.choices

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self.done and self.finished

    @property
    def leaves_nothing(self) -> bool:
        """Whether its endpoint has nothing more to say once it is whole."""
        return True

    def feed(self, block: bytes) -> bytes:
        """The whole events in what has come so far, as the client is to see them; b"" where there is none yet.

        Raises ReplyMalformed, ReplyOversized, or ServerFault for an error event; what came before it in the same block
        is then in `before_failure`.
        """
        before = self._before
        if before is not None and not (self._rest or self.done) and block.startswith(before):
            if self._with_ids is not None:
                found = self._with_ids(block, len(before))
                if found is not None and found.end() == len(block):
                    return self._without_ids(found)
            elif block.endswith(self._behind) and is_plain(
                block, len(before), len(block) - len(self._behind)
            ):
                self._chunks += 1
                if self.said is not None:
                    self.said.shown(block[len(before) : -len(self._behind)], None)
                return block.replace(self._model, self._shown_model)
        return self._fed(block)

    def _fed(self, block: bytes) -> bytes:
        """The same for whatever is not one chunk of the usual kind."""
        held = len(self._rest)
        text = self._rest + block if held else block
        if b"\r" in text:
            text = self._with_plain_line_ends(text)
            held = 0
        shown: list[bytes] = []
        at, searched = 0, max(0, held - 1)
        try:
            while True:
                if self._before is not None and (run_end := self._run(text, at, shown)) > at:
                    at = run_end
                end = text.find(b"\n\n", max(at, searched))
                if end < 0:
                    break
                shown.append(self._event(text[at:end]))
                at = end + 2
        except AttemptFailed:
            self.before_failure = b"".join(shown)
            raise
        self._keep(text[at:])
        return shown[0] if len(shown) == 1 else b"".join(shown)

    def end(self) -> None:
        """Judge the stream whole, once it has ended.

        Raises StreamTruncated: `[DONE]` alone is no proof, vLLM sends it after an error event too.
        """
        if not self.finished:
            missing = self._shown.choices - len(self._finished)
            raise StreamTruncated(
                f"the stream ended without a finish_reason on {missing} of {self._shown.choices} choices"
            )

    def _keep(self, rest: bytes) -> None:
        if len(rest) > self._limit_bytes:
            raise ReplyOversized(f"a stream event of more than {self._limit_bytes} bytes")
        self._rest = rest

    def _with_plain_line_ends(self, text: bytes) -> bytes:
        # A CR at the very end may be half of a CRLF: it waits for what follows.
        held = b"\r" if text.endswith(b"\r") else b""
        body = text[: len(text) - len(held)]
        return body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held

    def _run(self, text: bytes, start: int, shown: list[bytes]) -> int:
        """Show and count the chunks that begin at `start` and are like the last one but for their texts; where they end."""
        before, behind, with_ids = self._before, self._behind, self._with_ids
        if before is None or self.done or not text.startswith(before, start):
            return start
        at = start
        if with_ids is not None:
            while text.startswith(before, at) and (found := with_ids(text, at + len(before))) is not None:
                shown.append(self._without_ids(found))
                at = found.end()
            return at
        texts = texts_of(text, start, before, behind)
        if texts:
            said = b"".join(texts)
            at += len(texts) * (len(before) + len(behind)) + len(said)
            self._chunks += len(texts)
            if self.said is not None:
                self.said.shown(said, None)
            shown.append(text[start:at].replace(self._model, self._shown_model))
        return at

    def _without_ids(self, found: re.Match[bytes]) -> bytes:
        """A chunk of the usual kind that has ids, as the client sees it."""
        text, ids = found.groups()
        self._chunks += 1
        if self.said is not None:
            self.said.shown(text, ids)
        return self._shown_before + text + self._shown_behind

    def _event(self, event: bytes) -> bytes:
        """One event as the client is to see it, b"" where it is not to see it."""
        content = event[6:]
        if b"\n" in event or not event.startswith(b"data: "):
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if not lines:
                # Comments keep a connection alive; other fields have no meaning in this protocol. Before the first
                # chunk nothing goes to the client, so what came would be kept, however much an endpoint sends.
                return event + b"\n\n" if self.begun and event.startswith(b":") else b""
            # JSON may be spread over lines, but only between its tokens, where a space does as well.
            content = b" ".join(lines)
        if self.done:
            return b""
        if content == b"[DONE]":
            self.done = True
            return b""
        try:
            chunk = decode_chunk(content)
            fields = _decode_fields(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReplyMalformed(f"a stream event that is no completion chunk: {error}") from None
        if chunk.error is not None:
            raise _fault(chunk.error)
        self.begun = True
        self._note(chunk)
        return self._seen(event, chunk, fields)

    def _seen(self, event: bytes, chunk: Chunk, fields: dict[str, Raw]) -> bytes:
        """A chunk as the client is to see it."""
        if chunk.usage is not None and not chunk.choices and not self._shown.usage:
            return b""
        if self.said is not None:
            hides_ids = not self._shown.ids and has_ids(chunk)
            if hides_ids and tells_only_ids(chunk):
                return b""
            if not self.said.head:
                self.said.head = self._head_shown(fields)
            if hides_ids:
                return self._hiding_ids(event, chunk, fields)
        hides_usage = not self._shown.usage and fields.pop("usage", None) is not None
        hides_tier = self._tier_field is not None and "service_tier" in fields
        head = self._head
        if head is not None and event.startswith(head) and not hides_usage and not hides_tier:
            self._learn_text(head, event, chunk)
            return self._shown_head + event[len(head) :] + b"\n\n"
        return b"data: " + self._rewritten(event, fields) + b"\n\n"

    def _note(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            self.usage = chunk.usage.tokens()
        for choice in chunk.choices:
            if choice.finish_reason in GIVEN_UP:
                raise ServerFault(f"the worker gave the call up: finish_reason {choice.finish_reason!r}")
            if choice.finish_reason:
                self._finished.add(choice.index)
            self._chunks += choice.shows_something
            if self.said is not None:
                self.said.take_down(choice, chunk)

    def _head_shown(self, fields: dict[str, Raw]) -> dict[str, Raw]:
        """What every chunk repeats, as the client sees it."""
        head: dict[str, Raw] = {name: fields[name] for name in ("id", "object", "created") if name in fields}
        head["model"] = Raw(self._model_field)
        if self._tier_field is not None:
            head["service_tier"] = Raw(self._tier_field)
        return head

    def _hiding_ids(self, event: bytes, chunk: Chunk, fields: dict[str, Raw]) -> bytes:
        """As a worker words the chunk that was not asked for ids."""
        if not self._shown.usage:
            fields.pop("usage", None)
        choices = _decode_choices(fields["choices"])
        for named in (fields, *choices):
            for name in _IDS_FIELDS:
                if name in named:
                    named[name] = _NO_IDS
        fields["choices"] = Raw(_encode(choices))
        shown = b"data: " + self._rewritten(event, fields) + b"\n\n"
        self._learn_ids(event, shown, chunk)
        return shown

    def _learn_ids(self, event: bytes, shown: bytes, chunk: Chunk) -> None:
        """From a chunk that is one token of one choice, with its id."""
        spot = self._text_in(event, chunk)
        if spot is None:
            return
        start, end = spot
        ids = event.find(_IDS, end) + len(_IDS)
        ids_end = event.find(b"]", ids)
        key = b'"text":"' if event.endswith(b'"text":"', 0, start) else b'"content":"'
        text = event[start:end]
        if ids < len(_IDS) or len(event) - ids_end > _MOST_BEHIND_IDS or not event[ids:ids_end].isdigit():
            return
        shape = event[end:ids], event[ids_end:] + b"\n\n"
        if shape != self._shape or shown.count(key + text) != 1:
            self._shape = shape  # seen twice, it is worth a pattern
            return
        shown_start = shown.find(key + text) + len(key)
        self._before, self._behind = event[:start], b""
        self._shown_before, self._shown_behind = shown[:shown_start], shown[shown_start + len(text) :]
        middle, behind = map(re.escape, shape)
        self._with_ids = re.compile(rb'([^"\\\r\n]+)%b([0-9]+(?:,[0-9]+)*)%b' % (middle, behind)).match

    def _rewritten(self, event: bytes, fields: dict[str, Raw]) -> bytes:
        if "model" in fields:
            before = fields["model"]
            fields["model"] = Raw(self._model_field)
            self._learn_head(event, fields, before)
        if self._tier_field is not None:
            fields["service_tier"] = Raw(self._tier_field)
        return _encode(fields)

    def _learn_head(self, event: bytes, fields: dict[str, Raw], model: Raw) -> None:
        """Everything up to and with the model, which is the same in every chunk of a stream."""
        if self._head is not None or (self._tier_field is not None and "service_tier" in fields):
            return
        head: dict[str, Raw] = {}
        for name, value in fields.items():
            head[name] = value
            if name == "model":
                break
        shown_head = b"data: " + _encode(head)[:-1] + b","
        head["model"] = model
        own_head = b"data: " + _encode(head)[:-1] + b","
        if not event.startswith(own_head):
            return  # spaced otherwise: each chunk is decoded then
        self._head = own_head
        self._model = b'"model":' + bytes(model)
        self._shown_model = b'"model":' + self._model_field
        if self._tier_field is not None:
            tier = b'"service_tier":' + self._tier_field
            shown_head += tier + b","
            self._shown_model += b"," + tier
        self._shown_head = shown_head

    def _learn_text(self, head: bytes, event: bytes, chunk: Chunk) -> None:
        """From a chunk that is one token of one choice, and nothing else."""
        spot = self._text_in(event, chunk, len(head))
        if spot is not None and (self.said is None or _IDS not in event):
            self._before, self._behind, self._with_ids = event[: spot[0]], event[spot[1] :] + b"\n\n", None

    def _text_in(self, event: bytes, chunk: Chunk, behind: int = 0) -> tuple[int, int] | None:
        """Where the text stands in a chunk that is one token of one choice, and nothing else."""
        if chunk.usage is not None or len(chunk.choices) != 1:
            return None
        choice = chunk.choices[0]
        if choice.finish_reason or not choice.shows_something or event.count(self._model) != 1:
            return None
        for mark in _TEXTS if self.said is None else _CONTENTS:
            start = event.find(mark, behind) + len(mark)
            end = event.find(b'"', start)
            if start >= len(mark) and is_plain(event, start, end):
                return start, end
        return None


def _fault(error: object) -> Refused:
    message = error.get("message") if isinstance(error, dict) else error
    return fault(str(message)[:500], before="the worker reported an error in its stream: ")
