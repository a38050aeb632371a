"""Token counts as OpenAI-shaped replies carry them, and whole replies made presentable.

A worker's reply is metered and shown under the public model name without decoding what it says: the top level is read
as raw pieces, and every piece but `model` goes to the client byte for byte.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from backends.base import ReplyMalformed, ServerFault
from backends.refusal import fault
from routing.types import Usage

GIVEN_UP = ("abort", "error")
"""Finish reasons with which a vLLM worker ends what it could not finish: no whole answer."""
MOST_TOKENS = 1_000_000_000
"""More than any call can have; beyond it a count is a defect, and would not fit where it is kept."""
BYTES_PER_TOKEN = 4
"""Of text, where a worker did not say how many tokens it was."""


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class WireUsage(Struct):
    """`usage` on the wire."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    def tokens(self) -> Usage:
        """The counts, made sane: none is negative or absurd, and no more tokens are cached, or thought, than there are."""
        prompt, details = _sane(self.prompt_tokens), self.prompt_tokens_details
        cached = 0 if details is None else min(prompt, _sane(details.cached_tokens))
        completion, thought = _sane(self.completion_tokens), self.completion_tokens_details
        reasoning = 0 if thought is None else min(completion, _sane(thought.reasoning_tokens))
        return Usage(prompt, cached, completion, reasoning_tokens=reasoning)


def _sane(count: int | None) -> int:
    if count is not None and 0 <= count <= MOST_TOKENS:
        return count
    return min(max(0, count or 0), MOST_TOKENS)


class _Choice(Struct):
    finish_reason: str | None = None


class _Saying(Struct):
    text: Raw = Raw()
    message: Raw = Raw()


class _SayingReply(Struct):
    choices: list[_Saying] | None = None


class _Reply(Struct):
    model: Raw = Raw()
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: Any = None


_GIVEN_UP = frozenset(GIVEN_UP)
_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_saying = msgspec.json.Decoder(_SayingReply).decode
_decode_message = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


class WholeReply(Struct, frozen=True):
    body: bytes
    """As the client is to see it."""
    usage: Usage
    """Where the worker did not report it, `estimated`: completion tokens from the text, no prompt tokens."""


def whole_reply(body: bytes, model: str, tier: str | None, choices: int | None) -> WholeReply:
    """A whole, non-streamed reply under the public name `model`, with `service_tier` where the client asked for one.

    `choices` is how many of them must have finished; None where the API has none (embeddings). Raises ReplyMalformed, or
    ServerFault where the worker gave the call up.
    """
    try:
        reply = _decode_reply(body)
        usage = _estimated(body) if reply.usage is None else reply.usage.tokens()
        shown = _presented(body, bytes(reply.model), model, tier)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReplyMalformed(f"a reply that is no completion: {error}") from None
    if reply.error is not None:  # OpenRouter's, where a provider fails behind it
        raise fault(_said(reply.error), before="the endpoint reported an error in its reply: ")
    if choices is not None:
        finished = [choice.finish_reason for choice in reply.choices or () if choice.finish_reason]
        if len(finished) < choices:
            raise ReplyMalformed(f"a reply with {len(finished)} finished choices of {choices}")
        if not _GIVEN_UP.isdisjoint(finished):
            raise ServerFault("the worker gave the call up")
    return WholeReply(shown, usage)


def _presented(body: bytes, served_model: bytes, model: str, tier: str | None) -> bytes:
    """`body` with the public name in place of `served_model`, which is JSON, and with the tier."""
    if tier is None and served_model and body.count(b'"model"') == 1:
        at = body.find(b'"model":') + 8
        at += body[at : at + 1] == b" "
        # Not within another object, as it could be where the reply spells its own field otherwise.
        if body.count(b"{", 0, at) == 1 and body.startswith(served_model, at):
            return b"%b%b%b" % (body[:at], _encode(model), body[at + len(served_model) :])
    fields = _decode_fields(body)
    if "model" in fields:
        fields["model"] = Raw(_encode(model))
    if tier is not None:
        fields["service_tier"] = Raw(_encode(tier))
    return _encode(fields)


def _said(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:500]


def _estimated(body: bytes) -> Usage:
    """Completion tokens by the length of what the choices say, at least one for each that says anything."""
    tokens = 0
    for choice in _decode_saying(body).choices or ():
        said = _text_bytes(choice.text)
        if bytes(choice.message).startswith(b"{"):
            said += sum(
                _text_bytes(part) for name, part in _decode_message(choice.message).items() if name != "role"
            )
        tokens += max(1, said // BYTES_PER_TOKEN) if said else 0
    return Usage(0, 0, tokens, estimated=True)


def _text_bytes(value: Raw) -> int:
    text = bytes(value)
    return 0 if text in (b"", b"null", b'""', b"[]", b"{}") else len(text) - 2
