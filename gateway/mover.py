"""Carries usage rows from the journal to the database, in batches, behind the calls.

The mover reads the segments in the journal's folder, its own and those of dead processes, records their rows, and
deletes a segment once it is closed and all of it is committed. Reading a segment twice does no harm: the database counts
a call_id once. While the database is away the rows stay where they are. A line that is no row is set aside in a
`.corrupt` file beside its segment and holds nothing up.

When nothing is left of a dead process' segments, the calls that it had under way are recorded too (`gateway.open_calls`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from backends.base import UNREADABLE
from gateway.database import StoreAway
from gateway.journal import Journal, Segment
from gateway.ledger import UsageRow
from gateway.open_calls import SUFFIX, Abandoned
from gateway.store import RowsRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

_READ_BYTES = (
    256 << 10
)  # decoding holds the interpreter, and the event loop with it, for less than a millisecond
_BATCH_ROWS = 2000
_LONGEST_PAUSE_S = 30.0

_decoder = msgspec.json.Decoder(UsageRow)


class RowStore(Protocol):
    """Where rows go. It raises StoreAway where the same rows may be taken later, RowsRefused where never."""

    def record(self, rows: Sequence[UsageRow]) -> int: ...


class Follower(Protocol):
    """Who wants to know what has been moved. It is told in the mover's thread."""

    def recorded(self, rows: Sequence[UsageRow]) -> None:
        """The database has these."""
        ...

    def accounted(self, page: Abandoned) -> None:
        """And all that a dead process has left. The page is the follower's now, to be discarded."""
        ...

    def caught_up(self) -> None:
        """It has all that there was when it last looked. This is told on the event loop."""
        ...


class _Batch(msgspec.Struct):
    """Rows of one segment that go to the database together."""

    end: int
    """Where in the segment the next batch begins."""
    rows: list[UsageRow]
    corrupt: list[bytes]
    torn: int = 0


class Mover:
    """Carries rows from all segments in a folder to the database. Blocks; to be used by one thread at a time."""

    def __init__(self, journal: Journal, store: RowStore, follower: Follower | None = None) -> None:
        self.moved_rows = 0
        """Rows that were new to the database."""
        self.torn_lines = 0
        """Last lines cut short by the death of their process: calls whose client never got the last byte."""
        self.corrupt_lines = 0
        """Lines set aside."""
        self._journal = journal
        self._store = store
        self._follower = follower
        self._adopted: list[Segment] = []
        self._abandoned: list[Abandoned] = []
        self._stuck: set[Path] = set()

    def move(self) -> None:
        """Record all rows there are now, and delete the segments that are done with. StoreAway ends it."""
        self._adopt()
        for segments in (self._adopted, self._journal.segments):
            for segment in tuple(segments):
                closed = segment.closed  # asked before reading: its end is then in what is read
                try:
                    self._move_segment(segment, closed=closed)
                    if closed:
                        segment.discard()
                        segments.remove(segment)
                except OSError as failure:
                    self._report_stuck(segment.path, failure)
                else:
                    self._stuck.discard(segment.path)
        self._account_for_open_calls()

    def _account_for_open_calls(self) -> None:
        for page in tuple(self._abandoned):
            # A row in the journal says more of a call than its slot: it has to be in the database first.
            if any(self._journal.folder.glob(f"{page.owner}.*.journal")):
                continue
            self.record(page.rows(), page.path)
            self._abandoned.remove(page)
            if self._follower is None:
                page.discard()
            else:
                self._follower.accounted(page)

    def record(self, rows: Sequence[UsageRow], aside: Path | None = None) -> None:
        """Record `rows`. Those that the database will never take are found by halving, and set aside."""
        try:
            self.moved_rows += self._store.record(rows)
            if self._follower is not None:
                self._follower.recorded(rows)
        except RowsRefused as refusal:
            if len(rows) == 1:
                log.error("the database refuses a usage row: %s", refusal)  # noqa: TRY400  no bug of ours
                self._set_aside(aside or self._journal.folder / "memory", [msgspec.json.encode(rows[0])])
                if self._follower is not None:
                    self._follower.recorded(rows)  # it never will be, and is not waited for
                return
            half = len(rows) // 2
            self.record(rows[:half], aside)
            self.record(rows[half:], aside)

    @property
    def is_stuck(self) -> bool:
        """Whether a segment could not be moved when it was last tried."""
        return bool(self._stuck)

    def caught_up(self) -> None:
        """All that earlier processes have left is in the database, as far as it can be moved."""
        if self._follower is not None:
            self._follower.caught_up()

    def release(self) -> None:
        """Close all files. Segments with rows left in them can then be adopted by others."""
        for segment in (*self._adopted, *self._journal.segments):
            segment.release()
        for page in self._abandoned:
            page.release()

    def _adopt(self) -> None:
        for path in self._journal.folder.glob("*.journal"):
            # Own segments, and those adopted before, are locked through another descriptor: they give None.
            try:
                segment = Segment.adopt(path)
            except OSError as failure:
                self._report_stuck(path, failure)
                continue
            if segment is not None:
                log.info("adopting %s, %d bytes, left by a process that is gone", path, segment.size)
                self._adopted.append(segment)
        for path in self._journal.folder.glob(f"*{SUFFIX}"):
            try:
                page = Abandoned.adopt(path)
            except OSError as failure:
                self._report_stuck(path, failure)
                continue
            if page is not None:
                self._abandoned.append(page)

    def _report_stuck(self, path: Path, failure: OSError) -> None:
        """Say, once, that a segment has to be tried again. The others go on meanwhile."""
        if path not in self._stuck:
            log.error("a segment of the journal cannot be moved or deleted now: %s", failure)
        self._stuck.add(path)

    def _move_segment(self, segment: Segment, *, closed: bool) -> None:
        end = (
            segment.size
        )  # what is appended from here on is the next round's: a busy segment must not hold up others
        while segment.moved < end and (batch := _read(segment, closed=closed)).end > segment.moved:
            self.record(batch.rows, segment.path)
            if batch.corrupt:
                self._set_aside(segment.path, batch.corrupt)
            if batch.torn:
                self.torn_lines += batch.torn
                log.warning("%s ends within a line, which no client saw the end of", segment.path)
            segment.moved = batch.end

    def _set_aside(self, beside: Path, lines: list[bytes]) -> None:
        path = beside.with_suffix(".corrupt")
        with path.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in lines))
        self.corrupt_lines += len(lines)
        log.error("%d lines of the journal are no rows that can be recorded, see %s", len(lines), path)


def _read(segment: Segment, *, closed: bool) -> _Batch:
    """The next rows of a segment; with `closed` also what comes after the last newline."""
    batch = _Batch(end=segment.moved, rows=[], corrupt=[])
    limit = _READ_BYTES
    while len(batch.rows) < _BATCH_ROWS:
        chunk = segment.read(batch.end, limit)
        whole = chunk.rfind(b"\n") + 1
        if whole:
            _decode_lines(chunk[:whole], batch)
            batch.end += whole
        elif len(chunk) == limit:
            limit *= 2  # a line longer than all that was read
        else:
            if closed and chunk:
                _decode_tail(chunk, batch)
                batch.end += len(chunk)
            break
    return batch


def _decode_lines(lines: bytes, batch: _Batch) -> None:
    try:
        batch.rows += _decoder.decode_lines(lines)
    except UNREADABLE:
        for line in lines.split(b"\n"):
            try:
                batch.rows.append(_decoder.decode(line))
            except UNREADABLE:
                if line:
                    batch.corrupt.append(line)


def _decode_tail(tail: bytes, batch: _Batch) -> None:
    """The last line of a dead process. It may be whole but for its newline."""
    try:
        batch.rows.append(_decoder.decode(tail))
    except UNREADABLE:
        batch.torn += 1


@asynccontextmanager
async def moving(
    journal: Journal,
    store: RowStore,
    follower: Follower | None = None,
    *,
    every_s: float = 0.5,
    closing_s: float = 10.0,
) -> AsyncIterator[Mover]:
    """Move rows while the block runs and, once it has ended and no call is left, what remains.

    `closing_s` bounds the last part: what the database does not take by then is moved by the next start.
    """
    mover = Mover(journal, store, follower)
    stop = asyncio.Event()
    loop = asyncio.create_task(_move_until(stop, journal, mover, every_s))
    try:
        yield mover
    finally:
        stop.set()
        await loop
        journal.close()
        await _finish(journal, mover, closing_s)
        mover.release()


async def _move_until(stop: asyncio.Event, journal: Journal, mover: Mover, every_s: float) -> None:
    pause_s, trouble = every_s, ""
    while not stop.is_set():
        failure = await _pass(journal, mover)
        if failure and not trouble:
            log.warning("usage rows wait in the journal: %s", failure)
        if trouble and not failure:
            log.info("usage rows are moved to the database again")
        trouble = failure
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if trouble else every_s
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause_s)


async def _finish(journal: Journal, mover: Mover, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while failure := await _pass(journal, mover):
        if time.monotonic() > deadline:
            log.error("%d bytes of usage rows stay for the next start: %s", journal.unmoved_bytes, failure)
            break
        await asyncio.sleep(limit_s / 20)
    journal.abandon()


async def _pass(journal: Journal, mover: Mover) -> str:
    """Move what there is now; what kept some of it from being moved, or ""."""
    begun_s = time.monotonic()
    try:
        while rows := journal.waiting():
            if not journal.rewrite(rows):
                await asyncio.to_thread(mover.record, rows)
            journal.forget(rows)
            await asyncio.sleep(0)
        journal.roll()
        await asyncio.to_thread(mover.move)
        mover.caught_up()
        if not mover.is_stuck:
            journal.moved_until_s = begun_s
    except (StoreAway, OSError) as failure:
        return str(failure)
    except (
        Exception
    ) as failure:  # a loop that must outlive anything: the rows are on disk and it is tried again
        log.exception("usage rows could not be moved")
        return repr(failure)
    return ""
