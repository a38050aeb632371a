"""One chunk of a completion stream, as far as the gateway looks at it; what it says stays the bytes that came."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from backends.usage import WireUsage  # noqa: TC001 - msgspec reads annotations at run time

NOTHING = (b"", b"null", b'""', b"[]")
"""Values that show nothing."""


_ABSENT = Raw()
"""Of a field that did not come: nearly all fields of nearly all chunks."""


class Delta(Struct):
    role: Raw = _ABSENT
    content: Raw = _ABSENT
    reasoning: Raw = _ABSENT
    reasoning_content: Raw = _ABSENT
    tool_calls: Raw = _ABSENT
    refusal: Raw = _ABSENT

    @property
    def beside_content(self) -> dict[str, Raw]:
        """What it shows beside content, by the field's name."""
        if (
            self.reasoning is _ABSENT
            and self.tool_calls is _ABSENT
            and self.reasoning_content is _ABSENT
            and self.refusal is _ABSENT
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
    text: Raw = _ABSENT
    finish_reason: str | None = None
    token_ids: Raw = _ABSENT
    prompt_token_ids: Raw = _ABSENT
    logprobs: Raw = _ABSENT

    @property
    def content(self) -> bytes:
        """As JSON."""
        return bytes(self.text if self.delta is None else self.delta.content)

    @property
    def shows_something(self) -> bool:
        if self.delta is not None and self.delta.shows_something:
            return True
        return self.text is not _ABSENT and bytes(self.text) not in NOTHING


class Chunk(Struct):
    choices: list[Choice] = []
    usage: WireUsage | None = None
    error: Any = None
    prompt_token_ids: Raw = _ABSENT


decode_chunk = msgspec.json.Decoder(Chunk).decode


def is_list(ids: Raw) -> bool:
    """Whether ids are told."""
    return ids is not _ABSENT and bytes(ids).startswith(b"[")


def has_ids(chunk: Chunk) -> bool:
    if is_list(chunk.prompt_token_ids):
        return True
    for choice in chunk.choices:  # noqa: SIM110 - a generator costs more than what it looks through
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
