"""What a worker says of tokens: those of a prompt, and the text of some. It takes no call for that.

    told = await prompt_tokens(member, body, patience_s)
    ids, text = await text_of(member, ids, patience_s)

Both raise AttemptFailed, which has been counted with the member, CallRejected, or CannotGoOn.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

from backends import handover
from backends.base import AttemptFailed, CallTimeout, ConnectTimeout
from backends.handover import CannotGoOn
from backends.refusal import refusal

if TYPE_CHECKING:
    from backends.member import Member

_Kind = TypeVar("_Kind", bound=Struct)

_REPLY_BYTES = 64 * 1024 * 1024
_MOST_HALF = 4
"""Tokens, at the most, that are a part of one character."""


class Tokens(Struct):
    """A reply of /tokenize."""

    tokens: list[int]
    max_model_len: int


class _Text(Struct):
    """A reply of /detokenize."""

    prompt: str


async def prompt_tokens(member: Member, body: bytes, patience_s: float) -> Tokens:
    """Those of the prompt that `body` asks for."""
    return _read(await _ask(member, "/tokenize", body, patience_s), Tokens)


async def text_of(member: Member, ids: list[int], patience_s: float) -> tuple[list[int], str]:
    """The ids without those at the end that are a part of a character only, and their text."""
    for _ in range(_MOST_HALF):
        body = handover.text_request(ids, member.endpoint.served_model)
        reply = await _ask(member, "/detokenize", body, patience_s)
        text = _read(reply, _Text).prompt
        if handover.whole_characters(text):
            return ids, text
        ids = ids[:-1]
    raise CannotGoOn("the answer so far does not end with a character")


def _read(reply: bytes, kind: type[_Kind]) -> _Kind:
    try:
        return msgspec.json.decode(reply, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CannotGoOn(f"what it says of tokens makes no sense: {error}") from None


async def _ask(member: Member, path: str, body: bytes, patience_s: float) -> bytes:
    try:
        try:
            status, reply = await member.backend.post(path, body, patience_s, _REPLY_BYTES)
        except CallTimeout:
            # It is not the call whose time is up, and nothing has been computed for it.
            raise ConnectTimeout(f"{path} did not answer within {patience_s:g} s") from None
        if status in (404, 405):
            raise CannotGoOn(f"there is no {path}")
        if status != 200:
            raise refusal(status, {}, reply)
    except AttemptFailed as failure:
        member.leave_alone(failure, time.monotonic())
        raise
    return reply
