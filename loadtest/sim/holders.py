"""Which endpoint was sent which prefix: the index that the peers' policies are built on, bounded as each bounds its own."""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Holders:
    """Pages by endpoint, as one set of bits per page. An endpoint forgets its least recently sent pages first."""

    def __init__(
        self, endpoints: int, capacities: Sequence[float] | None = None, lifetime_s: float = inf
    ) -> None:
        self._bits: dict[int, int] = {}
        self._pages: list[OrderedDict[int, float]] = [OrderedDict() for _ in range(endpoints)]
        """Of each endpoint, with when each was sent, longest ago first."""
        self._capacities = [inf] * endpoints if capacities is None else capacities
        self._lifetime_s = lifetime_s

    def held(self, endpoint: int) -> int:
        """Pages of an endpoint."""
        return len(self._pages[endpoint])

    def matches(self, pages: Sequence[int], now_s: float) -> list[int]:
        """How many pages, from the first on, each endpoint was sent."""
        if self._lifetime_s < inf:
            self._expire(now_s)
        found = [0] * len(self._pages)
        alive = (1 << len(found)) - 1
        for depth, page in enumerate(pages):
            here = self._bits.get(page, 0) & alive
            if here != alive:
                self._note(found, alive & ~here, depth)
                alive = here
                if not alive:
                    return found
        self._note(found, alive, len(pages))
        return found

    @staticmethod
    def _note(found: list[int], bits: int, depth: int) -> None:
        while bits:
            low = bits & -bits
            found[low.bit_length() - 1] = depth
            bits ^= low

    def add(self, endpoint: int, pages: Sequence[int], now_s: float) -> None:
        own, bits, flag = self._pages[endpoint], self._bits, 1 << endpoint
        # From the end on, so that the beginning of a prompt is forgotten after its end.
        for page in reversed(pages):
            own[page] = now_s
            own.move_to_end(page)
            bits[page] = bits.get(page, 0) | flag
        self.trim(endpoint, self._capacities[endpoint])

    def trim(self, endpoint: int, capacity: float) -> None:
        own = self._pages[endpoint]
        while len(own) > capacity:
            page, _ = own.popitem(last=False)
            self._unset(page, endpoint)

    def drop(self, endpoint: int) -> None:
        self.trim(endpoint, 0)

    def _expire(self, now_s: float) -> None:
        for endpoint, own in enumerate(self._pages):
            while own:
                page, sent_s = next(iter(own.items()))
                if sent_s >= now_s - self._lifetime_s:
                    break
                del own[page]
                self._unset(page, endpoint)

    def _unset(self, page: int, endpoint: int) -> None:
        left = self._bits[page] & ~(1 << endpoint)
        if left:
            self._bits[page] = left
        else:
            del self._bits[page]
