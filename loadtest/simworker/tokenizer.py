"""Text to token ids and back, without loss.

Answers are made of the words below, so that emitted text, read again, is cut into the very tokens that were emitted:
each word opens with a space and no other piece may contain one inside. Whatever else a prompt contains becomes tokens
of up to three bytes, whose id is the bytes themselves; three, because ids then stay far below 2**31.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BOS, EOS, SYSTEM, USER, ASSISTANT, TOOL, IMAGE = 1, 2, 3, 4, 5, 6, 7
SPECIAL = {
    BOS: b"<s>",
    EOS: b"</s>",
    SYSTEM: b"<|system|>",
    USER: b"<|user|>",
    ASSISTANT: b"<|assistant|>",
    TOOL: b"<|tool|>",
    IMAGE: b"<|image|>",
}
PERIOD = 16
FIRST_WORD = 32
FIRST_BYTES = 4096
VOCABULARY = FIRST_BYTES + 256 + 256**2 + 256**3

_WORDS = """
anchor angle ashore barge basin bay beacon beam bell berth bight blue boat bottom bow brackish breaker breeze bridge
bright brine buoy cable calm canal canvas cape captain cargo channel chart clear cliff cloud coast cold compass coral
course cove crane crest crew cross current curve dawn deck deep delta depth dock dolphin drift dune dusk ebb eddy
estuary evening falls far fathom ferry field fish flag fleet float flood floor flow foam fog forward foul gale gate
gently glass grain gravel green grey gulf gull gust harbour haul haven heavy helm high hold horizon hull ice inlet
island jetty keel kelp knot lagoon lamp land lantern late launch lee level light line lock log long low lunar marsh
mast meadow mild mist moon mooring morning mud narrow neap night north oar ocean open outer pier pilot plain point
pool port pull quay quiet race rain reach reef ripple rise river rock rope rough rudder rush sail salt sand sea seal
shallow shell shelf shift shingle ship shoal shore silt silver slack slow sluice sound south spar spray spring squall
stern still stone storm strait strand stream strong surf surge swell swift tack tar tender tide timber tower trade
turn under undertow up vessel village voyage wake warm wash watch water wave weather weir west whale wharf white wide
wind winter wood yard yawl année über señor žába łódź море прилив вода 潮 海 波 港 月 물결 바다 🌊 🌙 ⚓ 🐚
"""
WORDS = tuple(b" " + word.encode() for word in _WORDS.split())
_BYTES_OF: dict[int, bytes] = {**SPECIAL, PERIOD: b".", **dict(enumerate(WORDS, FIRST_WORD))}
_ID_OF = {text: token for token, text in _BYTES_OF.items()}

_PIECE = re.compile(rb"<\|[a-z]+\|>|</?s>| ?[^\s.,!?;:<]+|.", re.DOTALL)
_PIECES_REMEMBERED = 65_536


class Tokenizer:
    """Encodes and decodes; remembers how pieces seen before were cut, since prompts repeat them."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        known = self._known
        ids: list[int] = []
        # A lone surrogate is valid JSON but no text that UTF-8 could carry.
        for piece in _PIECE.findall(text.encode(errors="replace")):
            tokens = known.get(piece)
            if tokens is None:
                if len(known) >= _PIECES_REMEMBERED:
                    known.clear()
                known[piece] = tokens = _cut(piece)
            ids += tokens
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(token_bytes, ids)).decode(errors="replace")


def token_bytes(token: int) -> bytes:
    """The bytes of one token, none for a reserved one; ValueError where no token has this id."""
    if 0 <= token < FIRST_BYTES:
        return _BYTES_OF.get(token, b"")
    value = token - FIRST_BYTES
    for length in (1, 2, 3):
        if 0 <= value < 256**length:
            return value.to_bytes(length, "big")
        value -= 256**length
    raise ValueError(f"Token id {token} is out of vocabulary")


def is_word(token: int) -> bool:
    return FIRST_WORD <= token < FIRST_WORD + len(WORDS)


def chat_prompt(turns: Sequence[tuple[int, list[int]]], *, generate: bool, continue_final: bool) -> list[int]:
    """The chat template: turns of (role, content) as one prompt, as the tiny model of the captures has it."""
    ids = [BOS]
    for role, content in turns:
        ids.append(role)
        ids += content
        ids.append(EOS)
    if continue_final:
        ids.pop()
    if generate:
        ids.append(ASSISTANT)
    return ids


def _cut(piece: bytes) -> tuple[int, ...]:
    token = _ID_OF.get(piece)
    if token is not None:
        return (token,)
    return tuple(_bytes_token(piece[start : start + 3]) for start in range(0, len(piece), 3))


def _bytes_token(chunk: bytes) -> int:
    shorter = sum(1 << 8 * length for length in range(1, len(chunk)))
    return FIRST_BYTES + shorter + int.from_bytes(chunk)
