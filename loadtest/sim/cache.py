"""The prefix cache of a simulated worker: pages of the KV cache by the hash of the prompt up to and with each.

As vLLM's: pages of running sequences are pinned; pages that nobody runs on any more stay until their place is needed,
least recently used first and the end of a prompt before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PagedCache:
    """Pages are counted, not stored. A page is named by a chained hash, so equal names mean equal prefixes."""

    __slots__ = ("_free", "_pinned", "_unnamed", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        """Pages."""
        self._pinned: dict[int, int] = {}
        """Pages of running sequences, with how many run on each."""
        self._free: OrderedDict[int, None] = OrderedDict()
        """Pages that nobody runs on, the next to be overwritten first."""
        self._unnamed = 0
        """Pages of running sequences that no prompt can hit yet: ends of prompts, and answers in the making."""

    def __len__(self) -> int:
        return len(self._pinned) + len(self._free) + self._unnamed

    @property
    def usage(self) -> float:
        """The part that running sequences hold, which is what vLLM's metric says."""
        return (len(self._pinned) + self._unnamed) / self.capacity

    def hits(self, pages: Sequence[int]) -> int:
        """How many pages from the first on are there."""
        pinned, free = self._pinned, self._free
        found = 0
        for page in pages:
            if page not in pinned and page not in free:
                break
            found += 1
        return found

    def admit(self, pages: Sequence[int], unnamed: int) -> bool:
        """Pin the pages of a prompt and `unnamed` more; False, and nothing done, where they do not fit now."""
        pinned, free = self._pinned, self._free
        fresh = sum(1 for page in pages if page not in pinned)
        if len(pinned) + self._unnamed + fresh + unnamed > self.capacity:
            return False
        for page in pages:
            if page in pinned:
                pinned[page] += 1
            else:
                free.pop(page, None)
                pinned[page] = 1
        self._unnamed += unnamed
        while len(self) > self.capacity:
            free.popitem(last=False)
        return True

    def release(self, pages: Sequence[int], unnamed: int, answer: Sequence[int] = ()) -> None:
        """A sequence has ended; `answer` names those of its unnamed pages that a later prompt may begin with."""
        pinned, free = self._pinned, self._free
        self._unnamed -= unnamed
        for page in reversed(answer):
            if page not in pinned:
                free[page] = None
                free.move_to_end(page)
        for page in reversed(pages):
            left = pinned[page] - 1
            if left:
                pinned[page] = left
            else:
                del pinned[page]
                free[page] = None
        while len(self) > self.capacity:
            free.popitem(last=False)

    def drop(self, pages: Sequence[int]) -> None:
        """These were never written, unless somebody else runs on them."""
        for page in pages:
            self._free.pop(page, None)
