"""What one choice of a stream has said so far: all that is needed to have it said to its end elsewhere.

It is kept for every stream that could be gone on with, so it is small and cheap to add to: a token is its text and the
digits of its id. Whoever goes on with a stream adds to the same account, so that this can break as well.
"""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from backends.chunk import ABSENT, NOTHING, is_list

if TYPE_CHECKING:
    from msgspec import Raw

    from backends.chunk import Choice, Chunk, Delta


class _Offsets(Struct):
    """Logprobs of plain completions, as far as they tell where tokens begin."""

    text_offset: list[int] = []
    tokens: list[str] = []


_ids_only = re.compile(rb"(?:\d{1,18}(?:,\d{1,18})*)?").fullmatch
_decode_text = msgspec.json.Decoder(str).decode
_decode_offsets = msgspec.json.Decoder(_Offsets).decode


class Said:
    __slots__ = (
        "calls_tools",
        "finish_reason",
        "head",
        "ids",
        "knows_ids",
        "prompt_crc",
        "prompt_tokens",
        "reasoned",
        "reasons",
        "settled",
        "text",
        "text_offset",
        "tokens",
        "told",
        "unclear",
    )

    def __init__(self) -> None:
        self.head: dict[str, Raw] = {}
        """The fields that every chunk repeats, as the client sees them: id, object, created, model."""
        self.text = bytearray()
        """The content shown, as UTF-8."""
        self.ids = bytearray()
        """Of all tokens that have come, each with a comma behind it."""
        self.tokens = 0
        """How many have come, where their ids are known."""
        self.settled = 0
        """How many bytes of `ids` had come when content was last shown: their text has been shown, unless it is held back
        for a stop string."""
        self.told = 0
        """Tokens of which the client may have been told before the last piece began, by ids or logprobs if not by text."""
        self.knows_ids = True
        """Whatever was shown came with its ids."""
        self.prompt_tokens: int | None = None
        self.prompt_crc = 0
        """Of the prompt's ids, as `crc_of` has it. The ids themselves may be many."""
        self.text_offset = 0
        """Where the next token begins, by what the logprobs of plain completions have told."""
        self.calls_tools = self.reasons = self.unclear = False
        """What else has been shown than content: reasoning, which counts until content follows, or neither."""
        self.reasoned = False
        """There has been reasoning."""
        self.finish_reason: str | None = None

    @property
    def shows_something(self) -> bool:
        """Whether the client has seen anything of the answer."""
        return bool(self.text or self.calls_tools or self.reasons or self.unclear)

    def goes_on_behind(self, tokens: int) -> None:
        """So many stand. Whoever goes on writes those that came after them anew, if perhaps not the same."""
        self.told = max(self.told, self.tokens)
        kept = self.ids.split(b",", tokens)[:-1] if tokens < self.tokens else None
        if kept is not None:
            self.ids = bytearray(b"".join(each + b"," for each in kept))
            self.tokens, self.settled = tokens, min(self.settled, len(self.ids))

    def token_ids(self) -> list[int]:
        return ids_in(bytes(self.ids))

    def settled_ids(self) -> list[int]:
        return ids_in(bytes(self.ids[: self.settled]))

    def shown(self, text: bytes, ids: bytes | None) -> None:
        """A chunk has shown this content, and told these ids, without brackets."""
        self.text += text
        self.reasons = False
        if ids:
            self.silent(ids)
        elif ids is None:
            self.knows_ids = False
        self.settled = len(self.ids)

    def silent(self, ids: bytes | None) -> None:
        """A chunk has told these ids and shown no content."""
        if ids:
            self.tokens += ids.count(b",") + 1
            self.ids += ids
            self.ids += b","

    def take_down(self, choice: Choice, chunk: Chunk) -> None:
        """Add to the account what a chunk says."""
        if choice.prompt_token_ids is not ABSENT or chunk.prompt_token_ids is not ABSENT:
            self._note_prompt(choice, chunk)
        ids: bytes | None = None
        if choice.token_ids is not ABSENT and is_list(choice.token_ids):
            ids = bytes(choice.token_ids).translate(None, b" []")
            if not _ids_only(ids):
                ids = None
        delta, content = choice.delta, choice.content
        if delta is not None:
            self.note_delta(delta)
        if content in NOTHING:
            self.silent(ids)
            self.knows_ids &= ids is not None or not choice.shows_something
        else:
            try:
                self.shown(_decode_text(content).encode(), ids)
            except (msgspec.DecodeError, UnicodeDecodeError):  # half a surrogate pair, or no text at all
                self.unclear = True
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
        if delta is None and bytes(choice.logprobs).startswith(b"{"):
            self._note_offsets(choice.logprobs)

    def _note_prompt(self, choice: Choice, chunk: Chunk) -> None:
        for prompt in (choice.prompt_token_ids, chunk.prompt_token_ids):
            if is_list(prompt):
                self.prompt(bytes(prompt))

    def _note_offsets(self, logprobs: Raw) -> None:
        try:
            offsets = _decode_offsets(logprobs)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.unclear = True
            return
        if offsets.text_offset and offsets.tokens:
            self.text_offset = offsets.text_offset[-1] + len(offsets.tokens[-1])

    def note_delta(self, delta: Delta) -> None:
        """What is shown beside content, or follows when it has ended."""
        beside = delta.beside_content
        if not beside:
            return
        if "reasoning" in beside or "reasoning_content" in beside:
            self.reasons = self.reasoned = True
        self.calls_tools |= "tool_calls" in beside
        self.unclear |= "refusal" in beside

    def prompt(self, raw: bytes) -> None:
        """The prompt's ids, as JSON."""
        self.prompt_tokens, self.prompt_crc = raw.count(b",") + 1, crc_of(raw)


def ids_in(listed: bytes) -> list[int]:
    """Ids with a comma behind each."""
    return [int(each) for each in listed.split(b",")[:-1]]


def crc_of(raw: bytes) -> int:
    """The checksum of a JSON list of ids, however it is spaced."""
    return zlib.crc32(raw.translate(None, b" []\t\r\n"))
