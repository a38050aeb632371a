"""Policies that look at load alone, and what all policies but Tidegate's keep count of."""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.policy import Flight, Place


class Counting:
    """What any gateway can count: calls in flight, and tokens sent whose first reply has not come."""

    def __init__(self, place: Place) -> None:
        self.place = place
        count = len(place.nodes) + len(place.hosted)
        self.inflight = [0] * count
        self.pending_tokens = [0] * count
        """Of prompts, as far as `uncached` says they have to be read."""

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        raise NotImplementedError

    def uncached(self, flight: Flight, now_s: float) -> int:  # noqa: ARG002 - for policies that know of caches
        """Tokens of the prompt that the endpoint has to read."""
        return flight.call.prompt_tokens

    def sent(self, flight: Flight, now_s: float) -> None:
        tokens = self.uncached(flight, now_s)
        flight.note = tokens
        self.inflight[flight.endpoint] += 1
        self.pending_tokens[flight.endpoint] += tokens

    def first_token(self, flight: Flight, now_s: float) -> None:  # noqa: ARG002 - of the protocol
        self._read(flight)

    def ended(self, flight: Flight, now_s: float, failure: str | None) -> None:  # noqa: ARG002 - of the protocol
        self._read(flight)
        self.inflight[flight.endpoint] -= 1

    def gone(self, endpoint: int, now_s: float) -> None:
        """Load alone is counted; what was in flight ends as any other."""

    def back(self, endpoint: int, now_s: float) -> None:
        """As above."""

    def _read(self, flight: Flight) -> None:
        if isinstance(flight.note, int):
            self.pending_tokens[flight.endpoint] -= flight.note
            flight.note = None


def least(open_to: Sequence[int], key: Callable[[int], float], roll: float) -> int | None:
    """The one with the least `key`; equals take turns by `roll`."""
    if not open_to:
        return None
    keys = [key(endpoint) for endpoint in open_to]
    best = min(keys)
    equals = [endpoint for endpoint, found in zip(open_to, keys, strict=True) if found == best]
    return equals[int(roll * len(equals))]


class RandomChoice(Counting):
    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        return open_to[int(roll * len(open_to))] if open_to else None


class RoundRobin(Counting):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._turn = 0

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        if not open_to:
            return None
        self._turn += 1
        return open_to[self._turn % len(open_to)]


class PowerOfTwo(Counting):
    """Of two drawn at random the one with fewer calls in flight."""

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        count = len(open_to)
        if count < 2:
            return open_to[0] if open_to else None
        # One roll for both: the pair's number among all ordered pairs.
        first, second = divmod(int(roll * count * (count - 1)), count - 1)
        pair = (open_to[first], open_to[second + (second >= first)])
        return min(pair, key=self.inflight.__getitem__)


class LeastInFlight(Counting):
    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        return least(open_to, self.inflight.__getitem__, roll)


class LeastPendingTokens(Counting):
    """Fewest prompt tokens sent whose first reply token has not come; among equals fewest calls in flight."""

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        return least(open_to, lambda each: self.pending_tokens[each] * 1000 + self.inflight[each], roll)


class Chwbl(Counting):
    """Consistent hashing with bounded loads, as KubeAI: 256 places on the ring for each, at most 1.25 of the mean load.

    KubeAI docs/concepts/load-balancing.md: PrefixHash, meanLoadFactor 125, replication 256, prefixCharLength 100. The
    first page of a prompt stands for its first 100 characters.
    """

    REPLICATION = 256
    LOAD_FACTOR = 1.25

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        ring = [
            (_hash(f"{node.name}{number}"), index)
            for index, node in enumerate(place.nodes)
            for number in range(self.REPLICATION)
        ]
        ring.sort()
        self._hashes = [key for key, _ in ring]
        self._owners = [owner for _, owner in ring]

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:  # noqa: ARG002 - of the protocol
        if not open_to:
            return None
        allowed = set(open_to)
        total = sum(self.inflight[endpoint] for endpoint in open_to)
        most = self.LOAD_FACTOR * (total + 1) / len(open_to)
        key = _hash(str(call.pages[0])) if call.pages else int(roll * 2**64)
        start = bisect_left(self._hashes, key)
        for step in range(len(self._owners)):
            owner = self._owners[(start + step) % len(self._owners)]
            if owner in allowed and self.inflight[owner] + 1 <= most:
                return owner
        return least(open_to, self.inflight.__getitem__, roll)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
