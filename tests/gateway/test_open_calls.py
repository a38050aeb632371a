from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from usage_rows import a_row

from gateway.open_calls import Abandoned, OpenCall, OpenCalls
from routing.types import Price

if TYPE_CHECKING:
    from pathlib import Path

CHARGE, COST = Price(1_000_000, 2_000_000), Price(500_000, 1_000_000)


def begun(call_id: str, **changes: object) -> OpenCall:
    fresh = {
        "completion_tokens": 0,
        "charge_nano_usd": 0,
        "cost_nano_usd": 0,
        "outcome": "",
        "cached_tokens": 0,
    }
    return OpenCall(a_row(call_id, **fresh), CHARGE, COST, **changes)


def test_what_a_killed_process_had_under_way_is_there_with_the_tokens_it_had_stored(tmp_path: Path):
    encoded = [msgspec.msgpack.encode(begun(f"call-{number}", most_nano_usd=11_000)) for number in range(3)]
    program = f"""
import os, pathlib, msgspec
from gateway.open_calls import OpenCall, OpenCalls
page = OpenCalls.open(pathlib.Path({str(tmp_path)!r}), "1-dead")
one, two, three = (page.begun(msgspec.msgpack.decode(each, type=OpenCall)) for each in {encoded!r})
page.tokens[one] = 1
page.tokens[one] = 17
page.ended(two)
print("ready", flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert done.stdout == b"ready\n"
    page = Abandoned.adopt(tmp_path / "1-dead.calls")
    assert page is not None
    assert page.owner == "1-dead"
    one, three = page.rows()
    assert (one.call_id, one.outcome, one.estimated) == ("call-0", "gateway_died", True)
    assert (one.prompt_tokens, one.completion_tokens) == (10, 17)
    assert one.charge_nano_usd == 11_000  # 44,000 by the price: no more than its budget's hold
    assert one.cost_nano_usd == 22_000
    assert (three.call_id, three.completion_tokens, three.charge_nano_usd) == ("call-2", 0, 0)
    page.discard()
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_living_process_is_nobody_elses(tmp_path: Path):
    page = OpenCalls.open(tmp_path, "1-live")
    assert Abandoned.adopt(page.path) is None
    page.close(discard=False)
    left = Abandoned.adopt(page.path)
    assert left is not None
    assert left.rows() == []
    left.discard()


def test_a_slot_is_used_again_once_its_call_has_ended(tmp_path: Path):
    page = OpenCalls.open(tmp_path, "1-live", slots=2)
    one, two = page.begun(begun("one")), page.begun(begun("two"))
    assert {one, two} == {0, 1}
    assert page.begun(begun("three")) is None
    assert page.not_noted == 1
    page.tokens[one] = 9
    page.ended(one)
    page.ended(None)
    assert page.begun(begun("four")) == one
    assert page.tokens[one] == 0
    assert len(page) == 2
    page.close()
    assert not page.path.exists()


def test_a_call_of_which_too_much_is_to_be_said_is_not_noted(tmp_path: Path):
    page = OpenCalls.open(tmp_path, "1-live")
    assert page.begun(begun("x" * 3000)) is None
    page.close()


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 10_000])
def test_a_page_that_was_not_finished_has_no_calls(tmp_path: Path, content: bytes):
    (tmp_path / "1-dead.calls").write_bytes(content)
    page = Abandoned.adopt(tmp_path / "1-dead.calls")
    assert page is not None
    assert page.rows() == []
    page.discard()
