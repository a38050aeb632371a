"""Which endpoint holds how much of a prompt's prefix in its cache, as far as can be told from what was sent there.

A prompt is cut into pieces of fixed size, each hashed together with all that stands before it, so that one number names
a whole prefix. The index remembers which endpoints have been sent which prefixes, and for each forgets the least recently
used ones when they no longer fit its KV cache, as the endpoint itself does. What has been sent counts as held at once:
the second of a burst of siblings then follows the first, or does not, by what that costs.

Of a conversation an endpoint holds more than it was sent, namely what it has written. So the end of each prompt has a name
as well, and takes the room of the answer; the next turn's prompt tells where it stood.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from routing.types import Turn

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECE_BYTES = 512
"""Of prompt text: smaller pieces tell prefixes apart more finely and cost more of them. Four to a kilobyte or so of text."""

PIECE_TOKENS = 128
"""What a piece is counted as, at four bytes a token, as in the estimate of prompts."""

MOST_PIECES = 1024
"""Of one prompt that are looked at: half a megabyte, 130,000 tokens. What comes behind them differs anyway."""

MOST_PIECES_HELD = 500_000
"""Remembered over all endpoints of a model, where the configuration does not say: some 120 MB when full."""

CAPACITY_FALLS = 0.95
CAPACITY_RISES = 1.02
"""How an endpoint's capacity is corrected when it reports fewer cached tokens than expected, or as many."""

LEAST_CAPACITY = 16
"""Pieces. Below it an endpoint would not even be known to hold what it is working on."""

RECENT = 32
"""Prompts sent to an endpoint last of which any can be taken back."""


def pieces_of(prompt: bytes, salt: bytes = b"") -> tuple[int, ...]:
    """The names of the prompt's prefixes, shortest first, one for each whole piece.

    `salt` sets apart what is not shared: a worker keeps the caches of different salts apart as well.
    """
    names: list[int] = []
    seed = xxh3_64_intdigest(salt) if salt else 0
    for start in range(0, min(len(prompt), MOST_PIECES * PIECE_BYTES) - PIECE_BYTES + 1, PIECE_BYTES):
        seed = xxh3_64_intdigest(prompt[start : start + PIECE_BYTES], seed)
        names.append(seed)
    return tuple(names)


class Ends(Struct, frozen=True):
    """Of a prompt that is a conversation, in bytes from its beginning."""

    whole: int
    asked: int = 0
    """Where the last answer in it begins; 0: there is none."""
    answered: int = 0
    """Where that answer ends."""


def turn_of(prompt: bytes, pieces: Sequence[int], ends: Ends, salt: bytes = b"") -> Turn:
    """Where a prompt of these pieces stands in its conversation."""
    whole = _name(prompt, pieces, ends.whole, salt)
    if not ends.asked:
        return Turn(whole)
    return Turn(whole, _name(prompt, pieces, ends.asked, salt), ends.answered // PIECE_BYTES)


def _name(prompt: bytes, pieces: Sequence[int], end: int, salt: bytes) -> int:
    """The name of `prompt` up to `end`, which need not be the end of a piece."""
    whole = min(end // PIECE_BYTES, len(pieces))
    seed = pieces[whole - 1] if whole else xxh3_64_intdigest(salt) if salt else 0
    return xxh3_64_intdigest(prompt[whole * PIECE_BYTES : end], seed)


class _Sent(Struct, gc=False):
    """A prompt that was sent to an endpoint, and what that has changed there."""

    pieces: Sequence[int]
    before: int
    """How many of its pieces were held before."""
    whole: int = 0
    """Its end, where that was not held before."""
    asked: tuple[int, int] | None = None
    """The end of the turn before and the pieces that it took, where those were held."""


class PrefixIndex:
    """Who holds which prefixes. Endpoints are places, small numbers; time is the order of calls."""

    def __init__(self, most_pieces: int = MOST_PIECES_HELD) -> None:
        self._most_pieces = most_pieces
        self._holders: dict[int, int] = {}
        """For each prefix, a bit for every place that holds it."""
        self._held: dict[int, OrderedDict[int, int]] = {}
        """For each place the prefixes it holds, least recently used first, with the pieces that each takes."""
        self._size: dict[int, int] = {}
        """For each place the pieces that all of those take."""
        self._recent: dict[int, deque[_Sent]] = {}
        """For each place the prompts sent there last."""
        self._limits: dict[int, int] = {}
        """For each place the pieces that it has room for, as declared or scraped."""
        self._capacity: dict[int, float] = {}
        """The same, corrected by what it reported."""
        self._all = 0
        self._share = most_pieces
        """Of them for each place."""

    def __len__(self) -> int:
        """Prefixes known, each counted once."""
        return len(self._holders)

    def add(self, place: int, kv_tokens: int) -> None:
        """An endpoint, with room for so many tokens in its cache."""
        self._held[place] = OrderedDict()
        self._size[place] = 0
        self._recent[place] = deque(maxlen=RECENT)
        self._all |= 1 << place
        self._share = self._most_pieces // len(self._held)
        self.resize(place, kv_tokens)
        for other, size in self._size.items():
            if size > self._share:
                self._shrink(other, self._share)

    def remove(self, place: int) -> None:
        self.forget(place)
        self._all &= ~(1 << place)
        del (
            self._held[place],
            self._size[place],
            self._recent[place],
            self._limits[place],
            self._capacity[place],
        )
        self._share = self._most_pieces // max(1, len(self._held))

    def resize(self, place: int, kv_tokens: int) -> None:
        """It has room for so many tokens."""
        self._limits[place] = max(LEAST_CAPACITY, kv_tokens // PIECE_TOKENS)
        self._capacity[place] = float(self._limits[place])
        self._evict(place)

    def forget(self, place: int) -> None:
        """Its cache is empty: it has been restarted."""
        for piece in self._held[place]:
            self._drop(piece, place)
        self._held[place].clear()
        self._size[place] = 0
        self._recent[place].clear()

    def trim(self, place: int, kv_tokens: int) -> None:
        """It is known to hold so many tokens at most, now."""
        self._shrink(place, kv_tokens // PIECE_TOKENS)

    def held(self, pieces: Sequence[int], turn: Turn | None = None) -> dict[int, int]:
        """How many of these pieces, from the first, each place holds; those that hold none are left out.

        Whoever was sent the turn before has written the answer to it, so it holds that as well.
        """
        found = self._by_pieces(pieces)
        if turn is not None and turn.asked and (places := self._holders.get(turn.asked, 0)):
            answered = min(turn.answered, len(pieces))
            while places:
                bit = places & -places
                place = bit.bit_length() - 1
                if found.get(place, 0) < answered:
                    found[place] = answered
                places ^= bit
        return found

    def _by_pieces(self, pieces: Sequence[int]) -> dict[int, int]:
        holders = self._holders
        still = self._all
        found: dict[int, int] = {}
        if not pieces:
            return found
        for count, piece in enumerate(pieces):
            now = holders.get(piece, 0) & still
            if now != still:
                if count:
                    _note(found, still & ~now, count)
                if not now:
                    return found
                still = now
        if still == self._all:  # as it is with a system prompt that all calls share
            return dict.fromkeys(self._held, len(pieces))
        _note(found, still, len(pieces))
        return found

    def place(
        self, place: int, pieces: Sequence[int], turn: Turn | None = None, output_tokens: float = 0.0
    ) -> None:
        """A prompt of these pieces has been sent there, the answer to which is expected to be so long."""
        held, holders, bit = self._held[place], self._holders, 1 << place
        sent = _Sent(pieces, 0)
        if turn is not None:
            self._turn(place, sent, turn, output_tokens)
        before = len(held)
        # The longest prefixes first, so that they are the first to be forgotten: without what stands before it, a piece
        # is of no use.
        for piece in reversed(pieces):
            if piece in held:
                held.move_to_end(piece)
            else:
                held[piece] = 1
                holders[piece] = holders.get(piece, 0) | bit
        fresh = len(held) - before
        sent.before = len(pieces) - fresh
        self._recent[place].append(sent)
        self._size[place] = size = self._size[place] + fresh
        if size > self._capacity[place] or len(held) > self._share:
            self._evict(place)

    def _turn(self, place: int, sent: _Sent, turn: Turn, output_tokens: float) -> None:
        """The end of a prompt stands for the answer as well, until that is a part of the next turn's prompt."""
        held = self._held[place]
        if turn.whole in held:
            held.move_to_end(turn.whole)
        else:
            sent.whole = turn.whole
            # What is left of the prompt is half a piece on average, and the last piece of the answer another half.
            self._take(place, turn.whole, 1 + int(output_tokens / PIECE_TOKENS))
        if turn.asked in held:
            sent.asked = turn.asked, held[turn.asked]
            self._free(place, turn.asked)

    def take_back(self, place: int, pieces: Sequence[int], share_read: float) -> None:
        """Of a prompt sent there, the very `pieces` that were placed, only a share was read, beyond what was held before.

        What has been sent there since counts as held as before. Where that is too long ago to be told, so does all.
        """
        recent = self._recent[place]
        at = next((at for at in reversed(range(len(recent))) if recent[at].pieces is pieces), None)
        if at is None:
            return
        sent = recent[at]
        kept = sent.before + int(share_read * (len(pieces) - sent.before))
        for other in islice(recent, at + 1, None):
            kept = max(kept, _shared(pieces, other.pieces))
        del recent[at]
        held = self._held[place]
        for piece in pieces[kept:]:
            if piece in held:
                self._free(place, piece)
        if sent.whole in held:
            self._free(place, sent.whole)
        if sent.asked is not None and sent.asked[0] not in held:
            self._take(place, *sent.asked)

    def correct(self, place: int, expected_tokens: int, reported_tokens: int) -> None:
        """It found so many tokens of a prompt in its cache where so many were expected: learn how much it has room for."""
        if reported_tokens < expected_tokens // 2:
            self._capacity[place] = max(LEAST_CAPACITY, self._capacity[place] * CAPACITY_FALLS)
            self._evict(place)
        else:
            self._capacity[place] = min(self._limits[place], self._capacity[place] * CAPACITY_RISES)

    def _evict(self, place: int) -> None:
        self._shrink(place, int(self._capacity[place]))

    def _shrink(self, place: int, most: int) -> None:
        held, size, share = self._held[place], self._size[place], self._share
        while size > most or len(held) > share:
            piece, takes = held.popitem(last=False)
            size -= takes
            self._drop(piece, place)
        self._size[place] = size

    def _take(self, place: int, name: int, pieces: int) -> None:
        self._held[place][name] = pieces
        self._size[place] += pieces
        self._holders[name] = self._holders.get(name, 0) | 1 << place

    def _free(self, place: int, name: int) -> None:
        self._size[place] -= self._held[place].pop(name)
        self._drop(name, place)

    def _drop(self, piece: int, place: int) -> None:
        left = self._holders[piece] & ~(1 << place)
        if left:
            self._holders[piece] = left
        else:
            del self._holders[piece]


def _note(found: dict[int, int], places: int, count: int) -> None:
    while places:
        bit = places & -places
        found[bit.bit_length() - 1] = count
        places ^= bit


def _shared(pieces: Sequence[int], others: Sequence[int]) -> int:
    """How many pieces two prompts have in common: as each is named with all before it, one search by halves tells."""
    low, high = 0, min(len(pieces), len(others))
    while low < high:
        middle = (low + high) // 2
        if pieces[middle] == others[middle]:
            low = middle + 1
        else:
            high = middle
    return low
