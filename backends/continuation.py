"""A stream that goes on at another endpoint: its reply turned into the rest of the first one.

The client sees one stream: the first one's id, its kind of chunks, no second role, one end, and usage in which its prompt
counts once. Every chunk is decoded: few streams break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct

from backends.base import AttemptFailed, ReplyMalformed, ServerFault
from backends.chunk import NOTHING
from backends.sse import CompletionStream
from backends.usage import GIVEN_UP
from routing.types import Usage

if TYPE_CHECKING:
    from backends.chunk import Choice, Chunk
    from backends.member import Attempt
    from backends.said import Said
    from backends.sse import Shown
    from backends.stops import Stops

_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode


class Seam(Struct, frozen=True):
    """Where a stream goes on, and how."""

    chat: bool
    """Whether the client is shown chunks of a chat."""
    own_tokens: int
    """Of the answer, that the endpoint was given as written."""
    by_ids: bool
    """Whether it goes on from the token, with a plain completion, so that the ids of all tokens stay known."""
    prompt_tokens: int
    """Of the client's own prompt."""
    estimated: bool = False
    """Whether they are estimated."""
    cached_tokens: int | None = None
    """Of these, as the endpoint has said that read them first."""
    told_again: int = 0
    """Tokens that come again of which the client has been told: by their ids or logprobs, not by their text."""
    stops: Stops | None = None
    top_logprobs: int = 0
    """That a chat has asked for, of each token."""
    min_tokens: int = 0
    """Of the whole answer, before which no stop string ends it."""


class _Logprobs(Struct):
    """Of a plain completion."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class Continued(CompletionStream):
    """The rest of a stream. What it says is added to what the others have said."""

    said: Said

    def __init__(self, shown: Shown, event_limit_bytes: int, said: Said, seam: Seam) -> None:
        super().__init__(shown, event_limit_bytes, said)
        self.told: Usage | None = None
        """What the client has used in all, once that is known."""
        self.cut_short = False
        """It is at its end, at a stop string, though the endpoint writes on."""
        self._seam = seam
        self._count = 0
        self._shift: int | None = None
        """From where a token begins in this piece to where it does in the whole answer."""

    @property
    def tokens(self) -> int:
        """Of this piece."""
        return self._count

    @property
    def own_tokens(self) -> int:
        """Of the answer, that were written before."""
        return self._seam.own_tokens

    @property
    def prompt_cached(self) -> int | None:
        return self._seam.cached_tokens

    @property
    def answers(self) -> bool:
        return self._count > 0 or self.done or self.finished

    @property
    def leaves_nothing(self) -> bool:
        return not self.cut_short

    def _note(self, chunk: Chunk) -> None:
        if chunk.usage is not None:
            self.usage = chunk.usage.tokens()
            self._tell(self.usage)
        for choice in chunk.choices:
            if choice.finish_reason in GIVEN_UP:
                raise ServerFault(f"the worker gave the call up: finish_reason {choice.finish_reason!r}")

    def _seen(self, event: bytes, chunk: Chunk, fields: dict[str, Raw]) -> bytes:
        del event
        if not chunk.choices:
            return self._usage_chunk(fields.get("system_fingerprint"))
        try:
            return self._rest_of(chunk, fields)
        except (msgspec.DecodeError, ValueError, LookupError) as error:
            raise ReplyMalformed(f"a stream event that is no completion chunk: {error}") from None

    def _rest_of(self, chunk: Chunk, fields: dict[str, Raw]) -> bytes:
        """A chunk of the one choice, as the client is to see it."""
        choice, seam, said = chunk.choices[0], self._seam, self.said
        ids = _list_of(choice.token_ids)
        self._count += len(ids) or choice.shows_something
        again = max(0, seam.told_again - self._count + len(ids))
        text = "" if choice.content in NOTHING else msgspec.json.decode(choice.content, type=str)
        finish = choice.finish_reason or None
        stop_reason = _decode(fields["choices"])[0].get("stop_reason") if finish else None
        if seam.stops is not None:
            may_stop = seam.own_tokens + self._count > seam.min_tokens
            text, found = seam.stops.feed(text, may_stop=may_stop)
            if found is not None:
                finish, stop_reason, self.done, self.cut_short = "stop", found, True, True
            elif finish:
                text += seam.stops.rest()
        shown: dict[str, Any] = {"content": text} if text else {}
        if choice.delta is not None:
            shown |= choice.delta.beside_content
        self._take_down(choice, text, ids)
        if finish:
            self._finished.add(0)
            said.finish_reason = finish
        logprobs = self._logprobs(choice.logprobs, again)
        told_ids = (ids[again:] or None) if self._shown.ids else None
        if not (shown or finish or logprobs or told_ids):
            return b""
        worded = self._worded(shown, logprobs, finish, stop_reason, told_ids)
        usage = self.told if self._shown.usage and chunk.usage is not None else None
        return self._chunk([worded], usage) + (self._end_at_stop() if self.cut_short else b"")

    def _take_down(self, choice: Choice, text: str, ids: list[int]) -> None:
        said, listed = self.said, None
        if self._seam.by_ids:
            listed = b",".join(b"%d" % each for each in ids)
            if listed and self._count == len(ids):  # its first
                said.goes_on_behind(self._seam.own_tokens)
        else:
            said.knows_ids = False
        if choice.delta is not None:
            said.note_delta(choice.delta)
        if text:
            said.shown(text.encode(), listed)
        else:
            said.silent(listed)

    def _worded(
        self,
        shown: dict[str, Any],
        logprobs: object,
        finish: str | None,
        stop_reason: object,
        ids: list[int] | None,
    ) -> dict[str, Any]:
        """A choice in the client's kind of chunk, as vLLM words it."""
        if self._seam.chat:
            told = {"stop_reason": stop_reason} if finish else {}
            delta = shown or {"content": ""}
            said = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            return {**said, **told, "token_ids": ids}
        return {
            "index": 0,
            "text": shown.get("content", ""),
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": stop_reason,
            "prompt_token_ids": None,
            "token_ids": ids,
        }

    def _logprobs(self, raw: Raw, again: int) -> object:
        """Those of the tokens of which the client has not been told, in the client's kind of chunk."""
        if bytes(raw) in NOTHING:
            return None
        if self._seam.chat and not self._seam.by_ids:
            return raw
        given = msgspec.json.decode(raw, type=_Logprobs)
        if self._seam.chat:
            return _of_chat(given, again, self._seam.top_logprobs)
        if again >= len(given.tokens):
            return None
        if self._shift is None:
            self._shift = self.said.text_offset - given.text_offset[again]
        offsets = [each + self._shift for each in given.text_offset[again:]]
        self.said.text_offset = offsets[-1] + len(given.tokens[-1])
        return _Logprobs(
            offsets, given.token_logprobs[again:], given.tokens[again:], given.top_logprobs[again:]
        )

    def _tell(self, used: Usage) -> None:
        """What the client has used: its own prompt once, and all of the answer.

        What of the prompt was cached, the endpoint that read it first may have said; else that counts which this one says.
        """
        seam = self._seam
        cached_tokens = used.cached_tokens if seam.cached_tokens is None else seam.cached_tokens
        self.told = Usage(
            seam.prompt_tokens,
            min(cached_tokens, seam.prompt_tokens),
            seam.own_tokens + used.completion_tokens,
            estimated=seam.estimated,
        )

    def _end_at_stop(self) -> bytes:
        """The endpoint will not report: it is left in its midst."""
        seam = self._seam
        self.usage = Usage(seam.prompt_tokens + seam.own_tokens, 0, self._count, estimated=seam.estimated)
        self._tell(self.usage)
        return self._usage_chunk(None)

    def _usage_chunk(self, fingerprint: Raw | None) -> bytes:
        if self.told is None or not self._shown.usage:
            return b""
        return self._chunk([], self.told, fingerprint)

    def _chunk(self, choices: list[Any], usage: Usage | None, fingerprint: Raw | None = None) -> bytes:
        return chunk_of(self.said, choices, usage, fingerprint)


async def first_block(attempt: Attempt, stream: Continued) -> tuple[bytes, AttemptFailed | None]:
    """The first that a stream shows that goes on, and with what it has failed right behind. Where it raises, it is over."""
    block, failed = b"", None
    try:
        while not stream.answers:
            raw = await attempt.reply.read()
            if not raw:
                stream.end()
            block += stream.feed(raw)
    except AttemptFailed as failure:
        if not stream.tokens:
            await attempt.__aexit__(type(failure), failure, None)
            raise
        failed = failure  # what it showed before is still in the stream
    except BaseException as error:
        await attempt.__aexit__(type(error), error, None)
        raise
    attempt.first_token()
    return block, failed


def chunk_of(said: Said, choices: list[Any], usage: Usage | None, fingerprint: Raw | None = None) -> bytes:
    """An event of the stream whose account this is."""
    chunk: dict[str, Any] = {**said.head, "choices": choices}
    if usage is not None:
        chunk["usage"] = {
            "prompt_tokens": usage.prompt_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if not choices:
            chunk["usage"]["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if fingerprint is not None:
        chunk["system_fingerprint"] = fingerprint
    return b"data: %b\n\n" % _encode(chunk)


def _list_of(ids: Raw) -> list[int]:
    return msgspec.json.decode(ids, type=list[int]) if bytes(ids) not in NOTHING else []


def _of_chat(given: _Logprobs, again: int, most: int) -> dict[str, Any] | None:
    """Logprobs of a plain completion as a chat has them. A plain one tells one more of the likeliest: the token itself."""
    content = [
        {
            "token": token,
            "logprob": logprob,
            "bytes": list(token.encode()),
            "top_logprobs": [
                {"token": other, "logprob": value, "bytes": list(other.encode())}
                for other, value in list((top or {}).items())[:most]
            ],
        }
        for token, logprob, top in zip(
            given.tokens[again:], given.token_logprobs[again:], given.top_logprobs[again:], strict=True
        )
    ]
    return {"content": content} if content else None
