"""Server-sent events of a completion stream, read and rewritten as bytes.

A gateway that parses every chunk of every stream spends most of its time on it. Almost every chunk is of one kind,
though: the bytes of the one before but for a token's text. `CompletionStream` learns what stands before and behind the
text, and from then on recognises whole runs of such chunks by comparing bytes; in a text without quotes and backslashes
nothing can hide. All other chunks are decoded in full. Which way a chunk takes depends on how the stream was cut into
blocks; what the client sees and what is counted must not, and the tests hold them to it.

Lines end as the specification allows (LF, CRLF, CR), and never at U+2028 or U+0085, which are text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct

from backends.base import AttemptFailed, Refused, ReplyMalformed, ReplyOversized, ServerFault, StreamTruncated
from backends.refusal import fault
from backends.usage import GIVEN_UP, WireUsage

if TYPE_CHECKING:
    from routing.types import Usage

DONE = b"data: [DONE]\n\n"
_plain_text = re.compile(rb'[^"\\\r\n]+').fullmatch
_TEXTS = (b'"content":"', b'"text":"', b'"arguments":"', b'"reasoning":"', b'"reasoning_content":"')
"""Where a chunk of the usual kind carries its token."""
_NOTHING = (b"", b"null", b'""', b"[]")


class _Delta(Struct):
    content: Raw = Raw()
    reasoning: Raw = Raw()
    reasoning_content: Raw = Raw()
    tool_calls: Raw = Raw()
    refusal: Raw = Raw()

    @property
    def shows_something(self) -> bool:
        parts = (self.content, self.reasoning, self.reasoning_content, self.tool_calls, self.refusal)
        return any(bytes(part) not in _NOTHING for part in parts)


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: Raw = Raw()
    finish_reason: str | None = None

    @property
    def shows_something(self) -> bool:
        return bytes(self.text) not in _NOTHING or (self.delta is not None and self.delta.shows_something)


class _Chunk(Struct):
    choices: list[_Choice] = []
    usage: WireUsage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
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


class CompletionStream:
    """One stream on its way through: feed it what came, forward what it returns, then ask it how it ended."""

    def __init__(self, shown: Shown, event_limit_bytes: int) -> None:
        self.usage: Usage | None = None
        """As the worker reported it, at the end."""
        self.tokens = 0
        """Tokens seen: one for each time that a chunk shows something of a choice."""
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
        self._model = self._shown_model = b""
        """The field with the model's name, as it comes and as it is shown; once in a chunk of the usual kind."""
        self._model_field = _encode(shown.model)
        self._tier_field = None if shown.tier is None else _encode(shown.tier)

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish_reason."""
        return len(self._finished) >= self._shown.choices

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self.done and self.finished

    def feed(self, block: bytes) -> bytes:
        """The whole events in what has come so far, as the client is to see them; b"" where there is none yet.

        Raises ReplyMalformed, ReplyOversized, or ServerFault for an error event; what came before it in the same block
        is then in `before_failure`.
        """
        before = self._before
        if (
            before is not None
            and not (self._rest or self.done)
            and block.startswith(before)
            and block.endswith(self._behind)
            and _plain_text(block, len(before), len(block) - len(self._behind))
        ):
            self.tokens += 1
            return block.replace(self._model, self._shown_model)
        held = len(self._rest)
        text = self._rest + block if held else block
        if b"\r" in text:
            text = self._with_plain_line_ends(text)
            held = 0
        shown: list[bytes] = []
        at, searched = 0, max(0, held - 1)
        try:
            while True:
                if self._before is not None and (run_end := self._run_end(text, at)) > at:
                    shown.append(text[at:run_end].replace(self._model, self._shown_model))
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

    def _run_end(self, text: bytes, start: int) -> int:
        """Where the chunks end that begin at `start` and are like the last one but for their texts. Counts their tokens."""
        before, behind = self._before, self._behind
        if before is None or self.done or not text.startswith(before, start):
            return start
        escape = text.find(b"\\", start)
        limit = len(text) if escape < 0 else escape
        at, count, length = start, 0, len(before)
        while text.startswith(before, at):
            text_end = text.find(b'"', at + length)
            if text_end == at + length or text_end > limit or not text.startswith(behind, text_end):
                break
            at = text_end + len(behind)
            count += 1
        if text.count(b"\n", start, at) != 2 * count:
            return start  # some text has a line end, which no JSON has
        self.tokens += count
        return at

    def _event(self, event: bytes) -> bytes:
        """One event as the client is to see it, b"" where it is not to see it."""
        lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if not lines:
            # Comments keep a connection alive; other fields have no meaning in this protocol. Before the first chunk
            # nothing goes to the client, so what came would be kept, however much an endpoint sends.
            return event + b"\n\n" if self.begun and event.startswith(b":") else b""
        # JSON may be spread over lines, but only between its tokens, where a space does as well.
        content = b" ".join(lines)
        if self.done:
            return b""
        if content == b"[DONE]":
            self.done = True
            return b""
        try:
            chunk = _decode_chunk(content)
            fields = _decode_fields(content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReplyMalformed(f"a stream event that is no completion chunk: {error}") from None
        if chunk.error is not None:
            raise _fault(chunk.error)
        self.begun = True
        self._note(chunk)
        if chunk.usage is not None and not chunk.choices and not self._shown.usage:
            return b""
        hides_usage = not self._shown.usage and fields.pop("usage", None) is not None
        hides_tier = self._tier_field is not None and "service_tier" in fields
        head = self._head
        if head is not None and event.startswith(head) and not hides_usage and not hides_tier:
            self._learn_text(head, event, chunk)
            return self._shown_head + event[len(head) :] + b"\n\n"
        return b"data: " + self._rewritten(event, fields) + b"\n\n"

    def _note(self, chunk: _Chunk) -> None:
        if chunk.usage is not None:
            self.usage = chunk.usage.tokens()
        for choice in chunk.choices:
            if choice.finish_reason in GIVEN_UP:
                raise ServerFault(f"the worker gave the call up: finish_reason {choice.finish_reason!r}")
            if choice.finish_reason:
                self._finished.add(choice.index)
            self.tokens += choice.shows_something

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

    def _learn_text(self, head: bytes, event: bytes, chunk: _Chunk) -> None:
        """From a chunk that is one token of one choice, and nothing else."""
        if chunk.usage is not None or len(chunk.choices) != 1:
            return
        choice = chunk.choices[0]
        if choice.finish_reason or not choice.shows_something or event.count(self._model) != 1:
            return
        for mark in _TEXTS:
            start = event.find(mark, len(head)) + len(mark)
            end = event.find(b'"', start)
            if start >= len(mark) and _plain_text(event, start, end):
                self._before, self._behind = event[:start], event[end:] + b"\n\n"
                return


def _fault(error: object) -> Refused:
    message = error.get("message") if isinstance(error, dict) else error
    return fault(str(message)[:500], before="the worker reported an error in its stream: ")
