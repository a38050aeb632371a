"""Which token comes next.

Free text is a function of nothing but the token ids so far (and the seed): a running checksum over them picks the
word, the last few decide whether a sentence or the answer may end. So a prompt with what was emitted appended, sent to
any worker of the same seed, is continued exactly as the undisturbed answer would have been. An answer that must be
JSON is a script written beforehand; as with a real constrained decoder, continuing half of one is not possible.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol
from zlib import crc32

from loadtest.simworker.tokenizer import EOS, FIRST_WORD, PERIOD, WORDS, is_word

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHORTEST_SENTENCE = 5
_MIX = 0x9E3779B97F4A7C15


class Source(Protocol):
    roll: int
    """What has been drawn for the token last given; logprobs are made of it."""

    def next(self, *, may_end: bool) -> int: ...


def checksum(ids: Sequence[int], seed: int = 0) -> int:
    return crc32(array("I", ids).tobytes(), seed & 0xFFFFFFFF)


class FreeText:
    """Sentences of at least five words; an answer ends after every fourth of them, on average after 45 tokens."""

    __slots__ = ("_last", "_run", "_state", "roll")

    def __init__(self, prompt_ids: Sequence[int], seed: int) -> None:
        self._state = checksum(prompt_ids, seed)
        self._last = prompt_ids[-1] if prompt_ids else EOS
        self._run = _words_at_end(prompt_ids[:-1] if self._last == PERIOD else prompt_ids)
        self.roll = 0

    def next(self, *, may_end: bool) -> int:
        # A checksum alone is linear in its input; the multiplication spreads it over the high bits.
        self.roll = roll = (self._state * _MIX & 0xFFFFFFFFFFFFFFFF) >> 24
        chance = roll & 0xFF
        enough = self._run >= _SHORTEST_SENTENCE
        if self._last == PERIOD:
            ends = enough and may_end and chance < 64
            token = EOS if ends else FIRST_WORD + (roll >> 8) % len(WORDS)
            self._run = 1
        elif enough and chance < 43:
            token = PERIOD
        else:
            token = FIRST_WORD + (roll >> 8) % len(WORDS)
            self._run += 1
        self._last = token
        self._state = crc32(token.to_bytes(4, "little"), self._state)
        return token


class Script:
    """An answer that is known from the start, then the end."""

    __slots__ = ("_at", "_state", "_tokens", "roll")

    def __init__(self, tokens: Sequence[int], prompt_checksum: int) -> None:
        self._tokens = tokens
        self._at = 0
        self._state = prompt_checksum
        self.roll = 0

    def next(self, *, may_end: bool) -> int:  # noqa: ARG002  (a script ends where it ends)
        self.roll = ((self._state + self._at) * _MIX & 0xFFFFFFFFFFFFFFFF) >> 24
        token = self._tokens[self._at] if self._at < len(self._tokens) else EOS
        self._at += 1
        return token


def _words_at_end(ids: Sequence[int]) -> int:
    count = 0
    for token in reversed(ids[-_SHORTEST_SENTENCE:]):
        if not is_word(token):
            break
        count += 1
    return count
