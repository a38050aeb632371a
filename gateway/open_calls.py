"""A page of the calls under way, in a file beside the journal: what a gateway that is killed has left unaccounted for.

The journal knows calls that have ended. One that is still under way when its process dies has been answered in part, and
somebody has worked for it. So each has a slot in a file that is mapped into memory: written once when it begins, and then
one number, the tokens so far, which is a store to memory for each block that goes by. What a process has stored there
outlives it; the machine it does not.

Like a segment of the journal, a page is locked for as long as its process lives, and whoever gets the lock adopts it: each
slot in use then becomes a usage row with the outcome `gateway_died`.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Self

import msgspec
from msgspec import Struct, structs

from gateway.journal import open_locked
from gateway.ledger import UsageRow, amount_nano_usd
from routing.types import Price, Usage

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 16_384
SLOT_BYTES = 2048
SUFFIX = ".calls"
DIED = "gateway_died"

_HEADER = struct.Struct("<24sQQ")
_MAGIC = b"tidegate open calls 1"
_HEADER_BYTES = 4096


class OpenCall(Struct, frozen=True, array_like=True, gc=False):
    """What is known of a call before it ends."""

    row: UsageRow
    """As it would be if nothing came of it."""
    charge: Price
    cost: Price
    most_nano_usd: int | None = None
    """The charge never exceeds it, where a budget bounds the call."""

    def died(self, completion_tokens: int) -> UsageRow:
        """Its row, after so many tokens. The tenant owes for what has been written to it: nothing where nothing was."""
        if not completion_tokens:
            return structs.replace(self.row, outcome=DIED, estimated=True)
        usage = Usage(self.row.prompt_tokens, 0, completion_tokens, estimated=True)
        charge_nano_usd = amount_nano_usd(self.charge, usage)
        if self.most_nano_usd is not None:
            charge_nano_usd = min(charge_nano_usd, self.most_nano_usd)
        return structs.replace(
            self.row,
            outcome=DIED,
            estimated=True,
            completion_tokens=completion_tokens,
            charge_nano_usd=charge_nano_usd,
            cost_nano_usd=amount_nano_usd(self.cost, usage),
        )


class OpenCalls:
    """The page of this process. To be opened by it, not before a fork, and used on its event loop.

    A call whose slot is None is not noted: there are too many, or too much is to be said of it.
    """

    def __init__(self, path: Path, fd: int, slots: int, slot_bytes: int) -> None:
        self.path = path
        self.not_noted = 0
        self._fd = fd
        self._slot_bytes = slot_bytes
        os.ftruncate(fd, _size(slots, slot_bytes))
        self._page = mmap.mmap(fd, 0)
        self._page[: _HEADER.size] = _HEADER.pack(_MAGIC, slots, slot_bytes)
        self._whole = whole = memoryview(self._page)
        self._lengths = whole[_HEADER_BYTES : _HEADER_BYTES + 8 * slots].cast("Q")
        self.tokens = whole[_HEADER_BYTES + 8 * slots : _HEADER_BYTES + 16 * slots].cast("Q")
        """By slot: `tokens[slot] = 17`. In a slot that is not taken it does no harm."""
        self._free = list(range(slots - 1, -1, -1))
        self._encode = msgspec.msgpack.Encoder().encode

    @classmethod
    def open(cls, folder: Path, owner: str, slots: int = SLOTS, slot_bytes: int = SLOT_BYTES) -> Self:
        path = folder / f"{owner}{SUFFIX}"
        # Under a name that nobody adopts until it is locked.
        new = path.with_suffix(".new")
        fd = open_locked(new, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if fd is None:
            raise OSError(errno.EAGAIN, "somebody else has locked it", str(new))
        new.rename(path)
        return cls(path, fd, slots, slot_bytes)

    def __len__(self) -> int:
        return len(self._lengths) - len(self._free)

    def begun(self, call: OpenCall) -> int | None:
        """Its slot from now on."""
        said = self._encode(call)
        if not self._free or len(said) > self._slot_bytes:
            self.not_noted += 1
            return None
        slot = self._free.pop()
        at = _blob_at(len(self._lengths), self._slot_bytes, slot)
        self.tokens[slot] = 0
        self._page[at : at + len(said)] = said
        self._lengths[slot] = len(said)  # last: until then it is not in use
        return slot

    def ended(self, slot: int | None) -> None:
        """Its row is in the journal."""
        if slot is not None:
            self._lengths[slot] = 0
            self._free.append(slot)

    def close(self, *, discard: bool = True) -> None:
        """Without `discard` it stays, to be adopted: the process has something on lease that it could not account for."""
        for view in (self.tokens, self._lengths, self._whole):
            view.release()
        self._page.close()  # it has the descriptor twice, and the lock with it
        if discard:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)


class Abandoned:
    """The page of a process that is gone."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.owner = path.name.removesuffix(SUFFIX)
        self._fd = fd

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """The page at `path`, if its process is dead and nobody else has adopted it."""
        try:
            fd = open_locked(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        return None if fd is None else cls(path, fd)

    def rows(self) -> list[UsageRow]:
        """Of the calls that were under way."""
        size = os.fstat(self._fd).st_size
        if size < _HEADER_BYTES:
            return []  # killed while it made the page
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as page:
            magic, slots, slot_bytes = _HEADER.unpack_from(page)
            if magic.rstrip(b"\0") != _MAGIC or size < _size(slots, slot_bytes):
                return []
            rows = []
            numbers = struct.unpack_from(f"<{2 * slots}Q", page, _HEADER_BYTES)
            for slot, length in enumerate(numbers[:slots]):
                if length:
                    at = _blob_at(slots, slot_bytes, slot)
                    call = msgspec.msgpack.decode(page[at : at + length], type=OpenCall)
                    rows.append(call.died(numbers[slots + slot]))
            return rows

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Others may adopt it."""
        os.close(self._fd)


def _blob_at(slots: int, slot_bytes: int, slot: int) -> int:
    return _HEADER_BYTES + 16 * slots + slot * slot_bytes


def _size(slots: int, slot_bytes: int) -> int:
    return _blob_at(slots, slot_bytes, slots)
