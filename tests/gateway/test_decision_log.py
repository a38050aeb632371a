"""The decision log by itself: what is sampled, what a line holds, how files rotate, and what happens where the disk says no."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from usage_rows import a_row

from gateway.decision_log import WAITING_DECISIONS, DecisionLog, Line, RotatingFile
from routing.decision import Decision
from routing.types import Call, Endpoint, Load, Tier

FULL_DISK = Path("/dev/full")
DECISION = Decision(
    Call("llama", Tier("default", 5.0, 1e6), 100),
    tuple((Endpoint(name, "llama", "llama"), Load(work_per_s=1000.0)) for name in ("near", "far")),
    0.5,
    256.0,
)


def keep(log: DecisionLog, call_id: str) -> None:
    log.planned(call_id, "llama", DECISION, DECISION.plan())
    log.ended(a_row(call_id))


def lines(path: Path) -> list[Line]:
    return msgspec.json.Decoder(Line).decode_lines(path.read_bytes())


def test_a_line_tells_what_was_decided_and_what_became_of_it(tmp_path: Path):
    path = tmp_path / "decisions.jsonl"
    with DecisionLog(RotatingFile(path, 10**6, 1), 1.0).writing() as log:
        log.planned("call-1", "smart", DECISION, DECISION.plan())
        ended = a_row("call-1", endpoint="near", attempts=2, ttft_ms=120.0, outcome="ok")
        log.ended(ended)
        log.ended(a_row("call-2"))  # was not sampled
    (line,) = lines(path)
    assert (line.call_id, line.asked_model, line.tenant, line.time_ms) == (
        *("call-1", "smart"),
        *(ended.tenant, ended.time_ms),
    )
    assert line.decision == DECISION
    assert line.ranked == [(each.endpoint.name, each.score_nano_usd) for each in DECISION.plan().ranked]
    assert (line.ended.endpoint, line.ended.attempts, line.ended.ttft_s) == ("near", 2, 0.12)
    assert (log.written, log.dropped) == (1, 0)
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_decision_of_a_call_with_several_has_its_line(tmp_path: Path):
    path = tmp_path / "decisions.jsonl"
    with DecisionLog(RotatingFile(path, 10**6, 1), 1.0).writing() as log:
        for model in ("big", "small"):
            log.planned("call-1", model, DECISION, DECISION.plan())
        log.ended(a_row("call-1"))
    assert [line.asked_model for line in lines(path)] == ["big", "small"]


def test_the_share_that_is_asked_for_is_sampled():
    # Out of 20,000 at 0.1, fewer than 1,750 or more than 2,250 come once in a billion runs.
    log = DecisionLog(RotatingFile(FULL_DISK, 100, 1), 0.1)
    assert 1750 < Counter(log.samples() for _ in range(20_000))[True] < 2250
    log = DecisionLog(RotatingFile(FULL_DISK, 100, 1), 1.0)
    assert all(log.samples() for _ in range(1000))


def test_a_full_file_gives_way_to_the_next_and_the_oldest_is_deleted(tmp_path: Path):
    path = tmp_path / "decisions.jsonl"
    file = RotatingFile(path, max_bytes=100, keep=2)
    for number in range(10):
        file.append(b"%039d\n" % number)  # two fit
    file.close()
    kept = {each.name: [int(line) for line in each.read_text().split()] for each in tmp_path.iterdir()}
    assert kept == {"decisions.jsonl": [8, 9], "decisions.jsonl.1": [6, 7], "decisions.jsonl.2": [4, 5]}


def test_a_file_of_an_earlier_run_is_gone_on_with(tmp_path: Path):
    path = tmp_path / "decisions.jsonl"
    for number in range(3):
        file = RotatingFile(path, max_bytes=100, keep=1)
        file.append(b"%039d\n" % number)
        file.close()
    assert path.read_text().split() == [f"{2:039}"]
    assert (tmp_path / "decisions.jsonl.1").read_text().split() == [f"{0:039}", f"{1:039}"]


def test_a_line_larger_than_a_file_has_one_to_itself(tmp_path: Path):
    path = tmp_path / "decisions.jsonl"
    file = RotatingFile(path, max_bytes=10, keep=1)
    for text in (b"a" * 50, b"b" * 50):
        file.append(text + b"\n")
    file.close()
    assert path.read_bytes() == b"b" * 50 + b"\n"


def test_a_file_that_cannot_be_written_is_said_at_the_start(tmp_path: Path):
    with pytest.raises(OSError, match="no-such-folder"):
        RotatingFile(tmp_path / "no-such-folder" / "decisions.jsonl", 100, 1)


def test_what_the_disk_does_not_take_is_counted_and_said_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR), DecisionLog(RotatingFile(FULL_DISK, 100, 1), 1.0).writing() as log:
        for number in range(3):
            keep(log, f"call-{number}")
    assert (log.written, log.dropped) == (0, 3)
    assert [record.message for record in caplog.records] == [
        "the decision log cannot be written, decisions are dropped: [Errno 28] No space left on device"
    ]


def test_where_nobody_writes_decisions_beyond_a_bound_are_dropped_and_counted():
    log = DecisionLog(RotatingFile(FULL_DISK, 100, 1), 1.0)  # its thread is not started
    for number in range(WAITING_DECISIONS + 7):
        keep(log, f"call-{number}")
    assert log.dropped == 7
