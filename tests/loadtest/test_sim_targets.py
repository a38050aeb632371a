from types import SimpleNamespace

import pytest

from loadtest.report import markdown_table
from loadtest.sim.targets import CHAT, MISDECLARED, OURS, SPILL, TARGETS, Scenario, Target, ask, rows
from loadtest.simulate import OURS_HIDING, PEERS, Runs


def answers(**p99_s: float):
    def run(scenario: Scenario, seed: int, policy: str):
        return SimpleNamespace(ttft_p99_s=seed * p99_s[policy] * (1.1 if scenario is MISDECLARED else 1.0))

    return run


def test_a_ratio_is_to_the_best_of_those_named_and_averaged_as_ratios_are():
    target = Target("p99", CHAT, "ttft_p99_s", most=0.6, against=("a", "b"))
    answer = ask(target, (1, 2), answers(tidegate=1.0, a=4.0, b=2.0))
    assert answer.figures == (0.5, 0.5)
    assert answer.figure == pytest.approx(0.5)
    assert answer.met


def test_a_reference_compares_us_with_ourselves():
    target = Target("p99", MISDECLARED, "ttft_p99_s", most=1.05, reference=CHAT)
    answer = ask(target, (1,), answers(tidegate=2.0))
    assert answer.figure == pytest.approx(1.1)
    assert not answer.met
    assert "| p99 | at most 1.05 | 1.1 | 1.1 | no |" in markdown_table(*rows([answer]))


def test_the_targets_name_policies_that_there_are():
    assert {peer for target in TARGETS for peer in target.against} <= {*PEERS, *OURS_HIDING}
    assert all((target.most is None) != (target.least is None) for target in TARGETS)


def test_a_run_is_made_once_and_takes_its_tier_from_the_scenario():
    run = Runs(minutes=0.5, trace=None)
    found = run(SPILL, 1, OURS)
    assert run(SPILL, 1, OURS) is found
    assert found.calls > 100
    assert run(SPILL, 1, "round-robin").spilled == 0.0
