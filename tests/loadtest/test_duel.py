import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest import wrk
from loadtest.cli import app
from loadtest.duel import Checkout, Duel, Quartiles, markdown, quartiles
from loadtest.proxies import DidNotStartError, Setting


def test_a_ratio_is_taken_within_a_turn_so_that_a_slow_second_for_all_changes_nothing():
    # The machine was half as fast in the second turn; the second server costs a tenth more in each.
    duel = Duel({"JSON reply": {"a": [100.0, 200.0, 100.0], "b": [110.0, 220.0, 110.0]}}, "here")
    assert duel.ratios("JSON reply", "b") == Quartiles(*[pytest.approx(1.1)] * 3)
    assert duel.ratios("JSON reply", "a") == Quartiles(1, 1, 1)
    assert duel.times_us("JSON reply", "a") == Quartiles(100, 100, 150)
    assert "| b | 110, 110 | 1.10 (1.10 to 1.10) |" in markdown(duel)


def test_the_quartiles_of_one_turn_are_that_turn():
    assert quartiles([3.0]) == Quartiles(3, 3, 3)


def test_a_checkout_runs_its_own_code(tmp_path: Path):
    (tmp_path / "gateway").mkdir()
    (tmp_path / "gateway" / "__main__.py").write_text("raise SystemExit('of another version')")
    with pytest.raises(DidNotStartError, match="of another version"):
        Checkout(tmp_path).prepare(Setting(("http://127.0.0.1:1",), "m", "m", 1, tmp_path))


@pytest.mark.skipif(wrk.installed() is None, reason="wrk is not on PATH")
def test_two_checkouts_are_set_beside_each_other(tmp_path: Path):
    here = Path(__file__).parents[2]
    other = tmp_path / "other"
    other.symlink_to(here)
    to = tmp_path / "duel.json"
    options = ["--targets", "tidegate", "--checkout", str(other), "--turns", "1", "--endpoints", "2"]
    done = CliRunner().invoke(app, ["duel", *options, "--json", str(to)])
    assert done.exit_code == 0, done.output
    cpu_us = json.loads(to.read_text())["cpu_us"]
    assert {kind: list(of_kind) for kind, of_kind in cpu_us.items()} == {
        "JSON reply": ["tidegate", "other"],
        "burst stream": ["tidegate", "other"],
    }
    assert all(us > 0 for of_kind in cpu_us.values() for [us] in of_kind.values())


@pytest.mark.skipif(wrk.installed() is None, reason="wrk is not on PATH")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--targets", "tidegate,tidegate"], "two of the same name"),
        (["--targets", "tide"], "no such target: tide"),
        (["--checkout", "/nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_starts(options: list[str], said: str):
    done = CliRunner().invoke(app, ["duel", *options])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
