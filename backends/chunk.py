"""One chunk of a completion stream, as far as the gateway looks at it; what it says stays the bytes that came."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from backends.usage import WireUsage  # noqa: TC001 - msgspec reads annotations at run time

NOTHING = (b"", b"null", b'""', b"[]")
"""Values that show nothing."""


is_plain = re.compile(rb'[^"\\\r\n]+').fullmatch
"""Whether a text between quotes is what it looks like, and is not empty."""

ABSENT = Raw()
"""Of a field that did not come: nearly all fields of nearly all chunks."""


class Delta(Struct):
    role: Raw = ABSENT
    content: Raw = ABSENT
    reasoning: Raw = ABSENT
    reasoning_content: Raw = ABSENT
    tool_calls: Raw = ABSENT
    refusal: Raw = ABSENT

    @property
    def beside_content(self) -> dict[str, Raw]:
        """What it shows beside content, by the field's name."""
        if (
            self.reasoning is ABSENT
            and self.tool_calls is ABSENT
            and self.reasoning_content is ABSENT
            and self.refusal is ABSENT
        ):
            return {}
        parts = {
            "reasoning": self.reasoning,
            "reasoning_content": self.reasoning_content,
            "tool_calls": self.tool_calls,
            "refusal": self.refusal,
        }
        return {name: part for name, part in parts.items() if bytes(part) not in NOTHING}

    @property
    def shows_something(self) -> bool:
        return bytes(self.content) not in NOTHING or bool(self.beside_content)


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    text: Raw = ABSENT
    finish_reason: str | None = None
    token_ids: Raw = ABSENT
    prompt_token_ids: Raw = ABSENT
    logprobs: Raw = ABSENT

    @property
    def content(self) -> bytes:
        """As JSON."""
        return bytes(self.text if self.delta is None else self.delta.content)

    @property
    def shows_something(self) -> bool:
        if self.delta is not None and self.delta.shows_something:
            return True
        return self.text is not ABSENT and bytes(self.text) not in NOTHING


class Chunk(Struct):
    choices: list[Choice] = []
    usage: WireUsage | None = None
    error: Any = None
    prompt_token_ids: Raw = ABSENT


decode_chunk = msgspec.json.Decoder(Chunk).decode


def is_list(ids: Raw) -> bool:
    """Whether ids are told."""
    return ids is not ABSENT and bytes(ids).startswith(b"[")


def has_ids(chunk: Chunk) -> bool:
    if is_list(chunk.prompt_token_ids):
        return True
    for choice in chunk.choices:
        if choice.token_ids is ABSENT and choice.prompt_token_ids is ABSENT:
            continue  # as in most
        if is_list(choice.token_ids) or is_list(choice.prompt_token_ids):
            return True
    return False


def tells_only_ids(chunk: Chunk) -> bool:
    """Whether a worker would not have sent the chunk but for the ids that it tells."""
    if len(chunk.choices) != 1 or chunk.usage is not None:
        return False
    choice = chunk.choices[0]
    return (
        is_list(choice.token_ids)
        and choice.delta == Delta()
        and choice.finish_reason is None
        and bytes(choice.logprobs) in NOTHING
    )


def texts_of(text: bytes, start: int, before: bytes, behind: bytes) -> list[bytes]:
    """The texts of the chunks that begin at `start` and are alike but for them, with this before each and this behind it."""
    begins = text.rfind(before)
    end = text.find(behind, begins + len(before))
    if end < 0:
        end = text.rfind(behind, start, begins)  # of the last one, half has come
    # Not split by what stands between two texts: of what is that long, Python would make a table for each that it finds.
    head, tail = len(before), 2 - len(behind)
    texts = [event[head:tail] for event in text[start : end - tail].split(b"\n\n")] if end > start else [b""]
    joined = (behind + before).join(texts)
    if joined == text[start + head : end] and b"" not in texts and is_plain(b"".join(texts)):
        return texts
    texts, at = [], start
    while text.startswith(before, at):
        end = text.find(behind, at + len(before))
        if not is_plain(text, at + len(before), end):
            break
        texts.append(text[at + len(before) : end])
        at = end + len(behind)
    return texts
