"""The KV blocks a worker remembers, as vLLM's prefix cache does.

Full blocks only, each hashed together with all before it, the least recently used forgotten first. The last block of
a prompt is always computed anew, since the first token needs its hidden state.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class PrefixCache:
    def __init__(self, blocks: int, block_size: int) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self.queried_tokens = 0
        self.hit_tokens = 0
        self._held: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def lookup(self, ids: Sequence[int], salt: str | None) -> int:
        """How many tokens of the prompt need no prefill."""
        self.queried_tokens += len(ids)
        hits = 0
        for block in self._hashes(ids[: len(ids) - 1], salt):
            if block not in self._held:
                break
            self._held.move_to_end(block)
            hits += 1
        self.hit_tokens += hits * self.block_size
        return hits * self.block_size

    def store(self, ids: Sequence[int], salt: str | None) -> None:
        """Remember all full blocks of `ids`."""
        for block in self._hashes(ids, salt):
            self._held[block] = None
            self._held.move_to_end(block)
            if len(self._held) > self.blocks:
                self._held.popitem(last=False)

    def needed(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def _hashes(self, ids: Sequence[int], salt: str | None) -> list[int]:
        chain, size = hash(salt), self.block_size
        hashes = []
        for start in range(0, len(ids) - size + 1, size):
            chain = hash((chain, *ids[start : start + size]))
            hashes.append(chain)
        return hashes
