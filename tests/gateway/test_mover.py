from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usage_rows import Collected, a_row, a_share, summed

from gateway.journal import Journal
from gateway.mover import Mover, moving
from gateway.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

METERING = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from gateway.journal import Journal
from gateway.mover import moving
from gateway.store import Store
from usage_rows import a_row, a_share

SHARES = a_share("w1", "late"), a_share("w2", "answer")

async def main():
    journal = Journal.open(Path(sys.argv[1]), segment_bytes=20_000)
    with Store.open(sys.argv[2]) as store:
        async with moving(journal, store, every_s=0.001):
            number = 0
            while True:
                call_id = f"{os.getpid()}-{number}"
                journal.append(a_row(call_id, shares=SHARES))
                os.write(1, call_id.encode() + b"\\n")
                number += 1
                if number % 10 == 0:
                    await asyncio.sleep(0.001)

asyncio.run(main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def stored_call_ids(url: str) -> set[str]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute("SELECT call_id FROM usage").fetchall()
    connection.close()
    return {row[0] for row in rows}


def stored_shares(url: str) -> list[int]:
    """How many each call has, of those that have any."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    rows = connection.execute("SELECT count(*) FROM usage_shares GROUP BY call_id").fetchall()
    connection.close()
    return [row[0] for row in rows]


def lines(*call_ids: str) -> bytes:
    return b"".join(msgspec.json.encode(a_row(call_id)) + b"\n" for call_id in call_ids)


def moved(folder: Path, store: object) -> Mover:
    journal = Journal.open(folder)
    mover = Mover(journal, store)
    journal.close()
    mover.move()
    mover.release()
    return mover


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is waited for happens in a thread
            await asyncio.sleep(0.005)


class Metering:
    """A process that meters into a folder and a database, and tells the call ids whose append has returned."""

    def __init__(self, folder: Path, url: str, ids: Path) -> None:
        self.ids = ids
        with ids.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", METERING, folder, url, Path(__file__).parent], stdout=out
            )

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait_until_it_appends(self) -> None:
        while not self.ids.stat().st_size:
            time.sleep(0.001)

    @property
    def printed(self) -> set[str]:
        return {line.decode() for line in self.ids.read_bytes().split(b"\n")[:-1]}


# Killed


def test_killed_while_rows_are_moved_none_is_lost_and_none_counts_twice(
    folder: Path, store: Store, url: str, tmp_path: Path
):
    dice = random.Random(11)  # noqa: S311  no secret
    printed: set[str] = set()
    for number in range(6):
        child = Metering(folder, url, tmp_path / f"ids-{number}")
        child.wait_until_it_appends()
        time.sleep(dice.random() * 0.2)
        child.kill()
        printed |= child.printed
    half_moved = stored_call_ids(url)
    moved(folder, store)
    calls = sum(total.calls for total in summed(store, "tenant").values())
    assert calls == len(stored_call_ids(url))
    assert printed <= stored_call_ids(url)
    assert calls <= len(printed) + 6  # a child may die between the append and the print
    assert stored_shares(url) == [2] * calls
    assert half_moved
    assert list(folder.iterdir()) == []


def test_two_processes_share_a_folder_and_one_takes_over_what_the_other_leaves(
    folder: Path, url: str, tmp_path: Path
):
    one, two = (Metering(folder, url, tmp_path / f"ids-{number}") for number in range(2))
    one.wait_until_it_appends()
    two.wait_until_it_appends()
    time.sleep(0.2)
    one.kill()
    deadline = time.monotonic() + 20
    while not one.printed <= stored_call_ids(url):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    two.kill()
    with Store.open(url) as store:
        moved(folder, store)
    assert one.printed | two.printed <= stored_call_ids(url)
    assert len(stored_call_ids(url)) <= len(one.printed | two.printed) + 2
    assert list(folder.iterdir()) == []


# What is in a segment


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=5), max_size=5), st.data())
def test_cut_off_at_any_byte_a_segment_gives_every_row_that_is_whole(
    call_ids: list[str], data: st.DataObject
):
    content = lines(*call_ids)
    cut = data.draw(st.integers(0, len(content)))
    ends = [len(lines(*call_ids[: count + 1])) - 1 for count in range(len(call_ids))]
    whole = sum(end <= cut for end in ends)
    rest = cut - (ends[whole - 1] + 1 if whole else 0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "1-dead.journal").write_bytes(content[:cut])
        collected = Collected()
        mover = moved(Path(folder), collected)
        assert collected.call_ids == call_ids[:whole]
        assert mover.torn_lines == (rest > 0)
        assert mover.corrupt_lines == 0
        assert list(Path(folder).iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line and line.strip()), max_size=4
    )
)
def test_lines_that_are_no_rows_are_set_aside_and_hold_up_no_others(garbage: list[bytes]):
    content = b"".join(line + b"\n" + lines(str(number)) for number, line in enumerate(garbage))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "1-dead.journal").write_bytes(content)
        collected = Collected()
        mover = moved(Path(folder), collected)
        assert collected.call_ids == [str(number) for number in range(len(garbage))]
        assert mover.corrupt_lines == len(garbage)
        aside = Path(folder) / "1-dead.corrupt"
        assert (aside.read_bytes() if aside.exists() else b"") == b"".join(line + b"\n" for line in garbage)


@pytest.mark.parametrize(
    "garbage",
    [lines("x").replace(b'"call_id":"x"', b'"call_id":"\x8f"').strip(), b"[" * 200_000],
    ids=["no UTF-8 within a row", "nested too deeply"],
)
def test_a_line_that_cannot_even_be_decoded_holds_up_no_others(folder: Path, garbage: bytes):
    folder.mkdir()
    (folder / "1-dead.journal").write_bytes(lines("1") + garbage + b"\n" + lines("2") + garbage)
    collected = Collected()
    mover = moved(folder, collected)
    assert collected.call_ids == ["1", "2"]
    assert (mover.corrupt_lines, mover.torn_lines) == (1, 1)
    assert (folder / "1-dead.corrupt").read_bytes() == garbage + b"\n"


OLD_LINE = (
    b'{"call_id":"old","time_ms":1700000000000,"request_id":"r","tenant":"acme","key_id":"key_1","model":"llama",'
    b'"endpoint":"w1","tier":"default","api":"chat","stream":true,"status":200,"outcome":"ok","attempts":1,'
    b'"prompt_tokens":10,"cached_tokens":4,"completion_tokens":20,"estimated":false,"ttft_ms":12.5,'
    b'"duration_ms":99.25,"charge_nano_usd":3,"cost_nano_usd":2}\n'
)


def test_a_segment_from_before_there_were_shares_is_read_and_written_still(folder: Path):
    folder.mkdir()
    (folder / "1-dead.journal").write_bytes(OLD_LINE)
    collected = Collected()
    moved(folder, collected)
    assert collected.rows == [a_row("old")]
    assert lines("old") == OLD_LINE  # a call of one endpoint alone takes no byte more


def test_shares_come_through_the_journal_as_they_were(folder: Path):
    row = a_row("1", waste_nano_usd=2, shares=(a_share("w1", "late"), a_share("w2", "answer")))
    journal, collected = Journal.open(folder), Collected()
    journal.append(row)
    Mover(journal, collected).move()
    assert collected.rows == [row]


def test_a_line_longer_than_a_read_is_read_whole(folder: Path):
    folder.mkdir()
    long = "x" * 1_000_000
    (folder / "1-dead.journal").write_bytes(lines("1", long, "2") + b"y" * 600_000 + b"\n" + lines("3"))
    collected = Collected()
    mover = moved(folder, collected)
    assert collected.call_ids == ["1", long, "2", "3"]
    assert mover.corrupt_lines == 1


def test_a_row_that_the_database_can_never_hold_is_set_aside_alone(folder: Path, store: Store, url: str):
    folder.mkdir()
    impossible = msgspec.json.encode(a_row("impossible", charge_nano_usd=2**63)) + b"\n"
    (folder / "1-dead.journal").write_bytes(lines("1", "2", "3") + impossible + lines("4"))
    mover = moved(folder, store)
    assert stored_call_ids(url) == {"1", "2", "3", "4"}
    assert (mover.moved_rows, mover.corrupt_lines) == (4, 1)
    assert (folder / "1-dead.corrupt").read_bytes() == impossible


def test_a_segment_that_cannot_be_read_holds_up_no_others(folder: Path, caplog: pytest.LogCaptureFixture):
    folder.mkdir()
    (folder / "1-folder.journal").mkdir()
    (folder / "2-dead.journal").write_bytes(lines("1"))
    collected = Collected()
    mover = Mover(Journal.open(folder), collected)
    for _ in range(3):
        mover.move()
    mover.release()
    assert collected.call_ids == ["1"]
    assert caplog.text.count("Is a directory") == 1


# The loop


async def test_rows_arrive_while_the_block_runs_and_the_rest_before_it_is_left(
    folder: Path, store: Store, url: str
):
    journal = Journal.open(folder)
    async with moving(journal, store, every_s=0.01) as mover:
        journal.append(a_row("1"))
        await until(lambda: stored_call_ids(url) == {"1"})
        assert journal.unmoved_bytes == 0
        for number in range(5000):
            journal.append(a_row(str(number)))
    assert len(stored_call_ids(url)) == 5000
    assert mover.moved_rows == 5000
    assert list(folder.iterdir()) == []


async def test_a_row_appended_twice_counts_once(folder: Path, store: Store, url: str):
    journal = Journal.open(folder)
    async with moving(journal, store) as mover:
        journal.append(a_row("1"))
        journal.append(a_row("1"))
    assert mover.moved_rows == 1
    assert stored_call_ids(url) == {"1"}


async def test_while_the_database_is_away_rows_stay_in_the_journal_and_it_is_said_once(
    folder: Path, store: Store, url: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "gateway.mover")
    journal = Journal.open(folder, segment_bytes=2000)
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("ALTER TABLE usage RENAME TO gone")
    async with moving(journal, store, every_s=0.005):
        for number in range(100):
            journal.append(a_row(str(number)))
            await asyncio.sleep(0.001)
        await until(lambda: len(caplog.records) > 0)
        assert journal.unmoved_bytes > 0
        connection.execute("ALTER TABLE gone RENAME TO usage")
        await until(lambda: journal.unmoved_bytes == 0)
        await until(lambda: len(caplog.records) > 1)
    connection.close()
    assert stored_call_ids(url) == {str(number) for number in range(100)}
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


async def test_the_lag_grows_while_the_database_is_away_and_is_gone_when_it_is_back(
    folder: Path, store: Store, url: str
):
    journal = Journal.open(folder)
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    async with moving(journal, store, every_s=0.005):
        assert journal.lag_s == 0
        connection.execute("ALTER TABLE usage RENAME TO gone")
        journal.append(a_row("1"))
        await until(lambda: journal.lag_s > 0.2)
        before_s = journal.lag_s
        await asyncio.sleep(0.05)
        assert journal.lag_s > before_s
        connection.execute("ALTER TABLE gone RENAME TO usage")
        await until(lambda: journal.lag_s == 0)
    connection.close()


async def test_what_a_database_that_is_away_does_not_take_at_the_end_is_moved_by_the_next_start(
    folder: Path, store: Store, url: str
):
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("ALTER TABLE usage RENAME TO gone")
    journal = Journal.open(folder)
    began = time.monotonic()
    async with moving(journal, store, closing_s=0.2):
        journal.append(a_row("1"))
    assert time.monotonic() - began < 5
    assert len(list(folder.glob("*.journal"))) == 1
    connection.execute("ALTER TABLE gone RENAME TO usage")
    connection.close()
    async with moving(Journal.open(folder), store):
        pass
    assert stored_call_ids(url) == {"1"}


async def test_a_segment_deleted_under_a_running_gateway_is_still_moved(folder: Path, store: Store, url: str):
    journal = Journal.open(folder)
    async with moving(journal, store, every_s=60):
        await asyncio.sleep(0.05)
        journal.append(a_row("1"))
        for path in folder.iterdir():
            os.unlink(path)  # noqa: PTH108  as rm does
    assert stored_call_ids(url) == {"1"}
