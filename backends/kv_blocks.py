"""What a vLLM worker's KV events say of its prefix cache: which blocks it holds, and so how many tokens.

The events are vLLM's (`vllm/distributed/kv_events.py`), in MessagePack. Of a block only its hash counts here: hashes are
made of token ids, and the gateway does not tokenize.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

MOST_BLOCKS = 2_000_000
"""Remembered of one worker, some 200 MB; far more than any card holds, so beyond it something is wrong."""

_GPU = (None, "GPU")
"""Where blocks are that count: those moved out to main memory or disk come back at a price of their own."""
_FIRST_GROUP = (None, 0)
"""Models with several kinds of attention tell of every group of layers; one of them stands for the prompt."""

BlockHash = int | bytes


class BlockStored(Struct, tag=True, frozen=True):
    block_hashes: list[BlockHash]
    block_size: int
    medium: str | None = None
    group_idx: int | None = None
    session_id: str | None = None
    """As sent with the call that had it stored; newer servers only."""


class BlockRemoved(Struct, tag=True, frozen=True):
    block_hashes: list[BlockHash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(Struct, tag=True, frozen=True):
    pass


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(Struct, frozen=True):
    ts: float
    events: list[Event]


class _WireBatch(Struct, array_like=True):
    ts: float
    events: list[Raw]


class _StoredArray(Struct, array_like=True, tag="BlockStored"):
    block_hashes: list[BlockHash]
    parent_block_hash: Raw
    token_ids: Raw
    block_size: int
    lora_id: Raw = Raw()
    medium: str | None = None


class _RemovedArray(Struct, array_like=True, tag="BlockRemoved"):
    block_hashes: list[BlockHash]
    medium: str | None = None


class _ClearedArray(Struct, array_like=True, tag="AllBlocksCleared"):
    pass


_decode_wire = msgspec.msgpack.Decoder(_WireBatch).decode
_decode_map = msgspec.msgpack.Decoder(Event).decode
_decode_array = msgspec.msgpack.Decoder(_StoredArray | _RemovedArray | _ClearedArray).decode
_ARRAYS = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})
"""First bytes of an array in MessagePack."""


def decode_batch(payload: bytes) -> Batch:
    """A message's events: maps as vLLM 0.32 writes them, or arrays as older ones do. Raises msgspec.DecodeError."""
    try:
        wire = _decode_wire(payload)
        return Batch(wire.ts, [_event(memoryview(raw)) for raw in wire.events])
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def _event(raw: memoryview) -> Event:
    if raw[0] not in _ARRAYS:
        event: Event = _decode_map(raw)
        return event
    match _decode_array(raw):
        case _StoredArray() as stored:
            return BlockStored(stored.block_hashes, stored.block_size, stored.medium)
        case _RemovedArray() as removed:
            return BlockRemoved(removed.block_hashes, removed.medium)
        case _:
            return AllBlocksCleared()


class HeldBlocks:
    """The blocks in one worker's cache. A hash may be stored more than once, and is removed once for each copy."""

    def __init__(self, most_blocks: int = MOST_BLOCKS) -> None:
        self.complete = False
        """Whether every event since the cache was last empty has been seen; else it holds more than is known here."""
        self.block_tokens = 0
        self._copies: dict[BlockHash, int] = {}
        self._most_blocks = most_blocks

    @property
    def tokens(self) -> int | None:
        """Held in all, or None where that is not known."""
        return len(self._copies) * self.block_tokens if self.complete else None

    def emptied(self) -> None:
        """It is known to be empty."""
        self._copies.clear()
        self.complete = True

    def lost(self) -> None:
        """Events have been missed: what it holds is not known."""
        self._copies.clear()
        self.complete = False

    def stored(self, event: BlockStored) -> int:
        """How many tokens this event tells of."""
        if event.medium not in _GPU or event.group_idx not in _FIRST_GROUP:
            return 0
        self.block_tokens = event.block_size
        copies = self._copies
        for block in event.block_hashes:
            copies[block] = copies.get(block, 0) + 1
        if len(copies) > self._most_blocks:
            self.lost()
        return len(event.block_hashes) * event.block_size

    def removed(self, event: BlockRemoved) -> bool:
        """Whether this event has made a block go with its last copy."""
        if event.medium not in _GPU or event.group_idx not in _FIRST_GROUP:
            return False
        copies = self._copies
        before = len(copies)
        for block in event.block_hashes:
            left = copies.get(block, 0) - 1
            if left > 0:
                copies[block] = left
            else:
                copies.pop(block, None)
        return len(copies) < before
