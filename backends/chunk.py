"""One chunk of a completion stream, as far as the gateway looks at it; what it says stays the bytes that came."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct

from backends.usage import WireUsage  # noqa: TC001 - msgspec reads annotations at run time

NOTHING = (b"", b"null", b'""', b"[]")
"""Values that show nothing."""


class Delta(Struct):
    role: Raw = Raw()
    content: Raw = Raw()
    reasoning: Raw = Raw()
    reasoning_content: Raw = Raw()
    tool_calls: Raw = Raw()
    refusal: Raw = Raw()

    @property
    def beside_content(self) -> dict[str, Raw]:
        """What it shows beside content, by the field's name."""
        parts = {
            "reasoning": self.reasoning,
            "reasoning_content": self.reasoning_content,
            "tool_calls": self.tool_calls,
            "refusal": self.refusal,
        }
        return {name: part for name, part in parts.items() if bytes(part) not in NOTHING}

    @property
    def shows_something(self) -> bool:
        parts = (self.content, self.reasoning, self.reasoning_content, self.tool_calls, self.refusal)
        return any(bytes(part) not in NOTHING for part in parts)


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    text: Raw = Raw()
    finish_reason: str | None = None
    token_ids: Raw = Raw()
    prompt_token_ids: Raw = Raw()
    logprobs: Raw = Raw()

    @property
    def content(self) -> bytes:
        """As JSON."""
        return bytes(self.text if self.delta is None else self.delta.content)

    @property
    def shows_something(self) -> bool:
        return bytes(self.text) not in NOTHING or (self.delta is not None and self.delta.shows_something)


class Chunk(Struct):
    choices: list[Choice] = []
    usage: WireUsage | None = None
    error: Any = None
    prompt_token_ids: Raw = Raw()


decode_chunk = msgspec.json.Decoder(Chunk).decode


def has_ids(chunk: Chunk) -> bool:
    told = (
        chunk.prompt_token_ids,
        *(ids for each in chunk.choices for ids in (each.token_ids, each.prompt_token_ids)),
    )
    return any(bytes(ids).startswith(b"[") for ids in told)


def tells_only_ids(chunk: Chunk) -> bool:
    """Whether a worker would not have sent the chunk but for the ids that it tells."""
    if len(chunk.choices) != 1 or chunk.usage is not None:
        return False
    choice = chunk.choices[0]
    return (
        choice.delta == Delta()
        and choice.finish_reason is None
        and bytes(choice.logprobs) in NOTHING
        and bytes(choice.token_ids).startswith(b"[")
    )
