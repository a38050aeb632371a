"""The write-ahead of metering: a finished call is on disk before its last byte goes out, and in the database soon after.

`Journal.append` is one write of one line to a segment, a file that one process appends to, so a gateway killed at any
moment has lost no call that its client saw finish. `gateway.mover` carries the rows on to the database.

A segment is locked (flock) by the process that made it for as long as that lives. Whoever gets the lock of a segment in
the folder has found one left by a dead process, and adopts it. The journal survives the death of the process, not of the
machine: nothing here waits for the disk.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Self

    from gateway.ledger import UsageRow

log = logging.getLogger(__name__)

SEGMENT_BYTES = 8 << 20
SEGMENT_AGE_S = 60.0
BACKLOG_ROWS = 100_000
"""Rows kept in memory while the disk takes none: some 50 MB."""

_RETRIED_ROWS = 2000
_TRIES_TO_CREATE = 100


class Segment:
    """One file of rows. Its process appends; the mover reads it from the start."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.size = os.fstat(fd).st_size
        self.moved = 0
        """Bytes from the start whose rows are committed."""
        self.closed = False
        """Nothing more will be appended."""
        self.opened_s = time.monotonic()
        self._fd = fd
        self._torn = False

    @classmethod
    def create(cls, folder: Path, owner: str = "") -> Self:
        """Its name begins with its owner's, by which all segments of one process can be told."""
        owner = owner or new_owner()
        for _ in range(_TRIES_TO_CREATE):
            path = folder / f"{owner}.{secrets.token_hex(4)}.journal"
            fd = open_locked(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
            if fd is not None:
                return cls(path, fd)
            # Another process took it for one left behind, in the moment before it was locked.
        raise OSError(errno.EAGAIN, "no segment could be locked", str(folder))

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """The segment at `path`, if the process that wrote it is dead and nobody else has adopted it."""
        try:
            fd = open_locked(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        if fd is None:
            return None
        segment = cls(path, fd)
        segment.closed = True
        return segment

    def write(self, lines: bytes) -> None:
        """Append, whole or not at all; OSError if not at all."""
        if self._torn:
            lines = b"\n" + lines  # so that what is torn spoils no row but its own
        written = os.write(self._fd, lines)
        if written < len(lines):
            self._cut_back()
            raise OSError(errno.ENOSPC, "the disk took a part only", str(self.path))
        self._torn = False
        self.size += written

    def _cut_back(self) -> None:
        """Take back what a short write left. The mover cannot have read it: it stops at the last newline."""
        try:
            os.ftruncate(self._fd, self.size)
        except OSError:
            self._torn = True
            self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, limit: int) -> bytes:
        """Through the descriptor, so that even a file somebody has unlinked is read to its end."""
        return os.pread(self._fd, limit, offset)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        os.close(self._fd)
        self._fd = -1  # a late write then fails, rather than go to whatever has that number next


def owners_in(folder: Path) -> set[str]:
    """Processes of which something is left there, living or not. Blocks."""
    return {path.name.partition(".")[0] for kind in ("*.journal", "*.calls") for path in folder.glob(kind)}


def new_owner() -> str:
    """A name that no other process has or will have."""
    return f"{os.getpid()}-{secrets.token_hex(6)}"


def open_locked(path: Path, flags: int) -> int | None:
    """A descriptor that holds the lock, unless another process has it, or had it until it deleted the file just now."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink > 0:
            return fd
    except BlockingIOError:
        pass
    except OSError:
        os.close(fd)
        raise
    os.close(fd)
    return None


class Journal:
    """Where rows are appended. To be opened by the process that appends, not before a fork, and used on its event loop."""

    def __init__(
        self, folder: Path, owner: str, segment: Segment, segment_bytes: int, segment_age_s: float
    ) -> None:
        self.folder = folder
        """Where all processes on this machine that meter into one database have their segments."""
        self.owner = owner
        """This process, by the name that no other has."""
        self.segments = [segment]
        """Own segments, the last one open."""
        self.failed_writes = 0
        self.lost_rows = 0
        self.moved_until_s = time.monotonic()
        """All rows that were there then are in the database."""
        self._open = segment
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._closed = False
        self._backlog: deque[UsageRow] = deque()
        self._encode = msgspec.json.Encoder().encode

    @classmethod
    def open(
        cls, folder: Path, *, segment_bytes: int = SEGMENT_BYTES, segment_age_s: float = SEGMENT_AGE_S
    ) -> Self:
        folder.mkdir(parents=True, exist_ok=True)
        owner = new_owner()
        return cls(folder, owner, Segment.create(folder, owner), segment_bytes, segment_age_s)

    def append(self, row: UsageRow) -> None:
        """Put `row` on disk with one write. Never fails: what the disk does not take is kept and tried again."""
        try:
            self._open.write(self._encode(row) + b"\n")
        except OSError as failure:
            self._keep(row, failure)

    @property
    def backlog(self) -> int:
        """Rows that are in memory only."""
        return len(self._backlog)

    @property
    def unmoved_bytes(self) -> int:
        """What is on disk and not yet in the database."""
        return sum(segment.size - segment.moved for segment in self.segments)

    @property
    def lag_s(self) -> float:
        """How old the oldest row may be that is not in the database; 0 where there is none."""
        return time.monotonic() - self.moved_until_s if self.backlog or self.unmoved_bytes else 0.0

    def _keep(self, row: UsageRow, failure: OSError) -> None:
        self.failed_writes += 1
        if self._closed or len(self._backlog) >= BACKLOG_ROWS:
            self._give_up(row)
            return
        if not self._backlog:
            log.error("the journal cannot be written, usage rows wait in memory: %s", failure)
        self._backlog.append(row)

    def waiting(self) -> list[UsageRow]:
        """The oldest of the rows that are in memory only."""
        return list(islice(self._backlog, _RETRIED_ROWS))

    def rewrite(self, rows: Sequence[UsageRow]) -> bool:
        """Try once more to write `rows`, all of them or none."""
        try:
            self._open.write(b"".join(self._encode(row) + b"\n" for row in rows))
        except OSError:
            self.failed_writes += 1
            return False
        return True

    def forget(self, rows: Sequence[UsageRow]) -> None:
        """Drop `rows`, the oldest in memory: they are safe elsewhere."""
        for _ in rows:
            self._backlog.popleft()
        if not self._backlog:
            log.warning("no usage row waits in memory any more")

    def roll(self) -> None:
        """Begin a new segment if the open one is large or old. Where none can be made, the old one serves on."""
        size, age_s = self._open.size, time.monotonic() - self._open.opened_s
        if size == 0 or (size < self._segment_bytes and age_s < self._segment_age_s):
            return
        try:
            fresh = Segment.create(self.folder, self.owner)
        except OSError as failure:
            log.warning("no new segment of the journal, the old one goes on: %s", failure)
            return
        self.segments.append(fresh)
        self._open.closed = True
        self._open = fresh

    def abandon(self) -> None:
        """The process ends: rows that are still in memory only go to the log."""
        while self._backlog:
            self._give_up(self._backlog.popleft())

    def _give_up(self, row: UsageRow) -> None:
        self.lost_rows += 1
        log.error("a usage row fits neither disk nor memory, here it is: %s", self._encode(row).decode())

    def close(self) -> None:
        """Nothing is appended any more. What the mover does not get to is adopted at the next start."""
        self._closed = True
        for segment in self.segments:
            segment.closed = True
