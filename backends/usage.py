"""Token counts as OpenAI-shaped replies carry them, and whole replies made presentable.

A worker's reply is metered and shown under the public model name without decoding what it says: the top level is read
as raw pieces, and every piece but `model` goes to the client byte for byte.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from backends.base import ReplyMalformed
from routing.types import Usage


class _PromptDetails(Struct):
    cached_tokens: int | None = None


class WireUsage(Struct):
    """`usage` on the wire."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None

    def tokens(self) -> Usage:
        """The counts, made sane: none is negative, and no more tokens are cached than there are."""
        prompt = max(0, self.prompt_tokens or 0)
        details = self.prompt_tokens_details
        cached = 0 if details is None else max(0, details.cached_tokens or 0)
        return Usage(prompt, min(cached, prompt), max(0, self.completion_tokens or 0))


class _Choice(Struct):
    finish_reason: Any = None


class _Reply(Struct):
    choices: list[_Choice] | None = None
    usage: WireUsage | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


class WholeReply(Struct, frozen=True):
    body: bytes
    """As the client is to see it."""
    usage: Usage | None
    """None where the worker did not report it."""


def whole_reply(body: bytes, model: str, tier: str | None, choices: int | None) -> WholeReply:
    """A whole, non-streamed reply under the public name `model`, with `service_tier` where the client asked for one.

    `choices` is how many of them must have finished; None where the API has none (embeddings). Raises ReplyMalformed.
    """
    try:
        reply = _decode_reply(body)
        fields = _decode_fields(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ReplyMalformed(f"a reply that is no completion: {error}") from None
    if choices is not None:
        finished = [c for c in reply.choices or () if c.finish_reason is not None]
        if len(finished) < choices:
            raise ReplyMalformed(f"a reply with {len(finished)} finished choices of {choices}")
    if "model" in fields:
        fields["model"] = Raw(_encode(model))
    if tier is not None:
        fields["service_tier"] = Raw(_encode(tier))
    return WholeReply(_encode(fields), None if reply.usage is None else reply.usage.tokens())
