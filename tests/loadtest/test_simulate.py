import json
import re

import pytest
from typer.testing import CliRunner

from loadtest import simulate
from loadtest.cli import app
from loadtest.sim import plots
from loadtest.sim.scene import Scene


def setting(**changed: object) -> simulate.Setting:
    usual = {
        "workload": "chat",
        "trace": None,
        "load": 0.75,
        "fleet": "unequal",
        "churn": "20min",
        "minutes": 3.0,
        "seed": 1,
        "replicas": 1,
        "misdeclared": 0.0,
        "scrape_s": 0.05,
    }
    return simulate.Setting(**{**usual, **changed})


def outcomes_of(names: list[str], **changed: object):
    makers = simulate.makers_for(names, "default")
    console = simulate.Console(quiet=True)
    return simulate.simulate_all(setting(**changed), makers, console)[0]


def test_our_routing_beats_round_robin_clearly():
    found = outcomes_of(["tidegate", "round-robin"], minutes=2.0)
    ours, theirs = found["tidegate"], found["round-robin"]
    assert ours.ttft_p99_s < 0.1 * theirs.ttft_p99_s
    assert ours.hit_rate > theirs.hit_rate
    assert ours.within_slo > 0.9


def test_our_routing_is_the_same_run_for_the_same_seed():
    first, second = (outcomes_of(["tidegate"], workload="bursts", replicas=2, minutes=1.0) for _ in range(2))
    assert first == second


def test_where_waiting_is_worth_nothing_nobody_pays_for_hosted_and_where_it_is_worth_much_many_do():
    makers = simulate.makers_for(["tidegate"], "flex", values=[0.0, 1000.0])
    found, _ = simulate.simulate_all(
        setting(fleet="mixed", minutes=2.0, load=0.9), makers, simulate.Console(quiet=True)
    )
    free, dear = found["0 USD/h"], found["1000 USD/h"]
    assert free.spilled < 0.02
    assert dear.spilled > 0.2
    assert dear.usd_per_1000 > free.usd_per_1000


def test_peers_are_given_no_hosted_endpoints():
    scene, _ = simulate.scene_of(setting(fleet="mixed", minutes=0.5))
    assert scene.hosted
    assert isinstance(scene, Scene)
    assert simulate.without_hosted(scene).hosted == ()


def run(*arguments: str):
    return CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "200"})


def test_the_command_prints_a_table_and_writes_what_it_is_asked_for(tmp_path):
    report, written = tmp_path / "report.json", tmp_path / "table.md"
    arguments = ["--minutes", "1", "--policies", "tidegate,round-robin", "--json", str(report)]
    done = run(*arguments, "--markdown", str(written))
    assert done.exit_code == 0, done.output
    assert "round-robin" in done.output
    figures = json.loads(report.read_bytes())
    assert figures["outcomes"]["tidegate"]["calls"] > 100
    assert figures["setting"]["load"] == 0.75
    assert written.read_text().startswith("| policy |")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--policies", "best"], "no such policy: best"),
        (["--workload", "talk"], "talk is none of chat"),
        (["--workload", "trace"], "belong together"),
        (["--churn", "some"], "some is none of none"),
    ],
)
def test_what_cannot_be_simulated_is_said_before_anything_is(arguments: list[str], complaint: str):
    done = run(*arguments)
    assert done.exit_code == 2
    assert complaint in re.sub(r"[\s│]+", " ", done.output)


def test_pictures_are_drawn_where_matplotlib_is(tmp_path):
    pytest.importorskip("matplotlib")
    done = run("--minutes", "1", "--policies", "round-robin", "--plots", str(tmp_path / "to"))
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["load.svg", "ttft.svg"]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plots, "find_spec", lambda _: None)
    done = run("--minutes", "1", "--policies", "round-robin", "--plots", "to")
    assert done.exit_code == 2
    assert "tidegate[plots]" in done.output
