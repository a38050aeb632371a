import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.kv_blocks import AllBlocksCleared, Batch, BlockRemoved, BlockStored, HeldBlocks, decode_batch


def stored(*hashes: int, **more: object) -> BlockStored:
    return BlockStored(list(hashes), 16, **more)


def known() -> HeldBlocks:
    held = HeldBlocks()
    held.emptied()
    return held


def test_a_batch_of_vllm_is_decoded_without_what_does_not_count_here():
    wire = [
        1700000000.5,
        [
            {
                "type": "BlockStored",
                "block_hashes": [1, b"\x02" * 32],
                "parent_block_hash": None,
                "token_ids": list(range(32)),
                "block_size": 16,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None, ["salt"]],
                "session_id": "rid",
            },
            {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"},
            {"type": "AllBlocksCleared"},
        ],
        0,
    ]
    batch = decode_batch(msgspec.msgpack.encode(wire))
    assert batch == Batch(
        1700000000.5,
        [
            BlockStored([1, b"\x02" * 32], 16, "GPU", None, "rid"),
            BlockRemoved([1], "GPU"),
            AllBlocksCleared(),
        ],
    )


@pytest.mark.parametrize(
    "wire", [[], [1.0], [1.0, [{"type": "Unheard"}]], [1.0, [["BlockStored", [1]]]], "x"]
)
def test_what_is_no_batch_is_refused(wire: object):
    with pytest.raises(msgspec.DecodeError):
        decode_batch(msgspec.msgpack.encode(wire))


def test_the_arrays_of_older_servers_are_decoded_as_well():
    wire = [
        2.5,
        [
            ["BlockStored", [1, 2], None, list(range(32)), 16, None, "GPU", None],
            ["BlockStored", [3], 2, list(range(16)), 16, None],
            ["BlockRemoved", [1], "GPU"],
            ["BlockRemoved", [2]],
            ["AllBlocksCleared"],
        ],
    ]
    assert decode_batch(msgspec.msgpack.encode(wire)) == Batch(
        2.5,
        [
            BlockStored([1, 2], 16, "GPU"),
            BlockStored([3], 16),
            BlockRemoved([1], "GPU"),
            BlockRemoved([2]),
            AllBlocksCleared(),
        ],
    )


def test_blocks_are_counted_as_tokens_once_the_cache_was_seen_empty():
    held = HeldBlocks()
    held.stored(stored(1, 2))
    assert held.tokens is None
    held.emptied()
    assert held.tokens == 0
    assert held.stored(stored(1, 2, 3)) == 48
    assert held.tokens == 48
    assert held.removed(BlockRemoved([2]))
    assert held.tokens == 32
    held.lost()
    assert held.tokens is None


def test_a_block_stored_twice_is_there_until_both_copies_are_gone():
    held = known()
    held.stored(stored(1))
    held.stored(stored(1))
    assert held.tokens == 16
    assert not held.removed(BlockRemoved([1]))
    assert held.tokens == 16
    assert held.removed(BlockRemoved([1]))
    assert held.tokens == 0


def test_blocks_elsewhere_than_on_the_card_and_of_other_groups_do_not_count():
    held = known()
    assert held.stored(stored(1, medium="CPU")) == 0
    assert held.stored(stored(2, group_idx=1)) == 0
    assert held.stored(stored(3, medium="GPU", group_idx=0)) == 16
    assert not held.removed(BlockRemoved([3], medium="CPU"))
    assert held.tokens == 16


def test_more_blocks_than_any_card_holds_are_given_up():
    held = HeldBlocks(most_blocks=10)
    held.emptied()
    held.stored(stored(*range(11)))
    assert held.tokens is None


EVENTS = st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 8), max_size=4)), max_size=60)


@given(EVENTS)
def test_what_is_held_is_what_was_stored_more_often_than_removed(events: list[tuple[bool, list[int]]]):
    held, copies = known(), dict.fromkeys(range(9), 0)
    for stores, hashes in events:
        if stores:
            held.stored(stored(*hashes))
        else:
            held.removed(BlockRemoved(hashes))
        for block in hashes:
            copies[block] = copies[block] + 1 if stores else max(0, copies[block] - 1)
    assert held.tokens == held.block_tokens * sum(count > 0 for count in copies.values())


@given(st.binary(max_size=60))
def test_no_bytes_whatever_raise_anything_else(payload: bytes):
    with contextlib.suppress(msgspec.DecodeError):
        decode_batch(payload)
