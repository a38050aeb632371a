from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from usage_rows import Collected, a_row

from gateway.journal import Journal, Segment
from gateway.mover import Mover, moving

if TYPE_CHECKING:
    from collections.abc import Iterator

APPENDING = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from gateway.journal import Journal
from usage_rows import a_row
journal = Journal.open(Path(sys.argv[1]), segment_bytes=50_000)
number = 0
while True:
    call_id = f"{os.getpid()}-{number}"
    journal.append(a_row(call_id))
    os.write(1, call_id.encode() + b"\\n")
    number += 1
    if number % 50 == 0:
        journal.roll()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@contextmanager
def full_disk() -> Iterator[None]:
    """A limit on the size of files: the writes that would pass it are short, and then fail, as on a full disk.

    No fixture, since pytest writes to a file of its own, perhaps, before it tears fixtures down.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def recovered(folder: Path) -> Collected:
    collected = Collected()
    mover = Mover(Journal.open(folder), collected)
    mover.move()
    mover.release()
    return collected


def test_a_row_is_on_disk_as_one_line_once_append_has_returned(folder: Path):
    journal = Journal.open(folder)
    journal.append(a_row("1"))
    journal.append(a_row("2"))
    (segment,) = folder.glob("*.journal")
    assert len(segment.read_bytes().splitlines()) == 2
    assert journal.unmoved_bytes == segment.stat().st_size


def test_a_process_killed_at_any_moment_has_lost_no_row_whose_append_returned(folder: Path, tmp_path: Path):
    dice = random.Random(7)  # noqa: S311  no secret
    printed: list[str] = []
    for round_number in range(8):
        with (tmp_path / "ids").open("wb") as ids:
            child = subprocess.Popen(
                [sys.executable, "-c", APPENDING, folder, Path(__file__).parent], stdout=ids
            )
            while not ids.tell() and not os.path.getsize(tmp_path / "ids"):  # noqa: PTH202  as short as can be
                time.sleep(0.001)
            time.sleep(dice.random() * 0.05)
            child.kill()
            child.wait()
        lines = (tmp_path / "ids").read_bytes().split(b"\n")
        printed += [line.decode() for line in lines[:-1]]
        assert lines, round_number
    found = recovered(folder).call_ids
    assert len(found) == len(set(found))
    assert set(printed) <= set(found)
    assert len(found) <= len(printed) + 8  # a child may die between the append and the print
    assert list(folder.glob("*.corrupt")) == []
    assert len(printed) > 8


def test_a_segment_of_a_living_process_is_adopted_by_nobody(folder: Path):
    living = Journal.open(folder)
    living.append(a_row("1"))
    assert recovered(folder).rows == []
    assert Segment.adopt(living.segments[0].path) is None


def test_a_dead_segment_is_adopted_once(folder: Path):
    folder.mkdir()
    (folder / "1-dead.journal").write_bytes(b"")
    segment = Segment.adopt(folder / "1-dead.journal")
    assert segment is not None
    assert Segment.adopt(folder / "1-dead.journal") is None
    segment.discard()
    assert Segment.adopt(folder / "1-dead.journal") is None


def test_a_segment_is_closed_when_it_is_large_or_old_but_never_empty(folder: Path):
    journal = Journal.open(folder, segment_bytes=1000, segment_age_s=3600)
    journal.roll()
    journal.append(a_row("1"))
    journal.roll()
    assert len(journal.segments) == 1
    journal.append(a_row("2"))
    journal.append(a_row("3"))
    journal.roll()
    assert [segment.closed for segment in journal.segments] == [True, False]

    old = Journal.open(folder, segment_age_s=0)
    old.roll()
    assert len(old.segments) == 1
    old.append(a_row("1"))
    old.roll()
    assert len(old.segments) == 2


def test_a_row_that_the_disk_took_only_a_part_of_waits_in_memory_and_spoils_no_other(folder: Path):
    journal = Journal.open(folder)
    with full_disk():
        for number in range(20):
            journal.append(a_row(str(number)))
    assert journal.backlog > 0
    assert journal.failed_writes == journal.backlog
    content = journal.segments[0].path.read_bytes()
    assert content.endswith(b"}\n")
    assert len(content.splitlines()) == 20 - journal.backlog


async def test_rows_that_the_disk_does_not_take_go_straight_to_the_database(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    journal, collected = Journal.open(folder), Collected()
    with full_disk():
        for number in range(20):
            journal.append(a_row(str(number)))
        assert journal.backlog > 0
        async with moving(journal, collected):
            pass
    assert sorted(collected.call_ids, key=int) == [str(number) for number in range(20)]
    assert journal.backlog == 0
    assert caplog.text.count("rows wait in memory") == 1
    assert "no usage row waits in memory any more" in caplog.text


def test_rows_in_memory_are_written_once_the_disk_takes_them_again(folder: Path):
    journal = Journal.open(folder)
    with full_disk():
        for number in range(20):
            journal.append(a_row(str(number)))
        rows = journal.waiting()
        assert not journal.rewrite(rows)
    assert journal.rewrite(rows)
    journal.forget(rows)
    assert journal.backlog == 0
    assert len(journal.segments[0].path.read_bytes().splitlines()) == 20


def test_a_row_that_comes_after_the_end_is_in_the_log_at_least(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    journal = Journal.open(folder)
    mover = Mover(journal, Collected())
    journal.close()
    mover.move()
    mover.release()
    journal.append(a_row("too-late"))
    assert journal.lost_rows == 1
    assert "too-late" in caplog.text
