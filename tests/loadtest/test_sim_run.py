import random

import pytest

from loadtest.sim import fleet, plain
from loadtest.sim.calls import SimCall
from loadtest.sim.fleet import Mishap
from loadtest.sim.outcome import outcome
from loadtest.sim.policy import Flight
from loadtest.sim.run import simulate
from loadtest.sim.scene import Result, Scene

NODES = fleet.equal()[:2]


def scene(calls: list[SimCall], mishaps: list[Mishap] | None = None, **changed: object) -> Scene:
    settings = {"hosted": (), "page_tokens": 128, "churn": fleet.CHURNS["20min"], "seed": 1, **changed}
    return Scene(NODES, calls=calls, mishaps=mishaps or [], **settings)


def call(at_s: float, output_tokens: int = 100) -> SimCall:
    return SimCall(at_s, 1280, output_tokens, tuple(range(10)))


class Noting(plain.RoundRobin):
    """Round robin that writes down what it is told."""

    def __init__(self, place) -> None:
        super().__init__(place)
        self.told: list[tuple] = []

    def ended(self, flight: Flight, now_s: float, failure: str | None) -> None:
        super().ended(flight, now_s, failure)
        self.told.append((flight.endpoint, round(now_s, 2), failure))


def noted(calls: list[SimCall], mishaps: list[Mishap]) -> tuple[Result, Noting]:
    made: list[Noting] = []

    def make(place) -> Noting:
        made.append(Noting(place))
        return made[0]

    return simulate(scene(calls, mishaps), make), made[0]


def test_a_call_takes_the_network_its_prompt_and_its_tokens():
    [done] = simulate(scene([call(0.0)]), plain.RoundRobin).done
    spec = NODES[0].spec
    assert done.ttft_s == pytest.approx(1280 / spec.work_per_s, rel=0.2)
    step_s = spec.step_s + spec.sequence_s
    assert done.e2e_s - done.ttft_s == pytest.approx(98 * step_s, rel=0.01)


def test_a_second_like_it_finds_its_prompt_cached():
    result = simulate(scene([call(0.0), call(10.0), call(20.0)]), plain.RoundRobin)
    assert [done.cached_tokens for done in result.done] == [0, 0, 1280 - 16]


def test_who_is_reset_before_the_first_token_is_served_elsewhere():
    result, policy = noted([call(0.0)], [Mishap(0.05, 1, "reset")])
    [done] = result.done
    assert (done.endpoint, done.attempts) == (0, 2)
    assert policy.told[0] == (1, 0.05, "reset")


def test_who_is_cut_off_after_the_first_token_is_broken():
    result, _ = noted([call(0.0)], [Mishap(1.0, 1, "reset")])
    [done] = result.done
    assert done.ttft_s is not None
    assert done.e2e_s is None


def test_silence_is_noticed_after_five_seconds():
    result, policy = noted([call(0.0), call(1.0), call(2.0)], [Mishap(0.05, 1, "silence")])
    failures = [told for told in policy.told if told[2] is not None]
    assert failures == [(1, 5.05, "silence"), (1, 5.05, "silence")]
    assert all(done.endpoint == 0 and done.e2e_s is not None for done in result.done)


def test_one_that_has_given_notice_gets_nothing_new_and_comes_back_empty():
    mishaps = [Mishap(5.0, 1, "notice"), Mishap(40.0, 1, "reset"), Mishap(100.0, 1, "back")]
    result, _ = noted([call(at_s) for at_s in (0.0, 10.0, 20.0, 110.0, 120.0)], mishaps)
    by_time = {done.at_s: done for done in result.done}
    assert [by_time[at_s].endpoint for at_s in (0.0, 10.0, 20.0)] == [1, 0, 0]
    assert sorted(by_time[at_s].cached_tokens for at_s in (110.0, 120.0)) == [0, 1280 - 16]


def test_where_nobody_is_left_the_call_fails():
    [done] = simulate(
        scene([call(50.0)], [Mishap(1.0, 0, "reset"), Mishap(1.0, 1, "reset")]), plain.RoundRobin
    ).done
    assert (done.ttft_s, done.endpoint) == (None, -1)


def test_the_same_seed_is_the_same_run():
    dice = random.Random(3)
    made = [call(dice.uniform(0, 300), dice.randint(1, 300)) for _ in range(500)]
    made.sort(key=lambda each: each.at_s)
    mishaps = fleet.mishaps(fleet.Churn(session_s=100.0), 2, 300.0, random.Random(1))
    first, second = (simulate(scene(made, mishaps), plain.PowerOfTwo) for _ in range(2))
    assert first == second
    assert len(first.done) == len(made)


def test_every_call_is_accounted_for_once_whatever_befalls_the_workers():
    dice = random.Random(5)
    made = sorted(
        (call(dice.uniform(0, 200), dice.randint(1, 500)) for _ in range(800)), key=lambda c: c.at_s
    )
    churn = fleet.Churn(session_s=30.0, away_s=(5.0, 20.0), slow_every_s=20.0, slow_for_s=(1.0, 30.0))
    mishaps = fleet.mishaps(churn, 2, 200.0, random.Random(2))
    result = simulate(scene(made, mishaps, churn=churn), plain.LeastInFlight)
    assert sorted(done.at_s for done in result.done) == [each.at_s for each in made]


def test_the_figures_are_those_of_the_calls():
    made = [call(float(at_s)) for at_s in range(0, 100, 10)]
    setting = scene(made)
    found = outcome(simulate(setting, plain.RoundRobin), setting, warm_up_s=30.0)
    assert found.calls == 7
    assert found.ttft_p50_s <= found.ttft_p95_s <= found.ttft_p99_s
    assert found.within_slo == 1.0
    assert found.hit_rate == pytest.approx((1280 - 16) / 1280)
    assert (found.spilled, found.broken, found.failed) == (0.0, 0.0, 0.0)
    usd = 1280 * fleet.WORKER_USD_PER_MILLION[0] + 100 * fleet.WORKER_USD_PER_MILLION[1]
    assert found.usd_per_1000 == pytest.approx(usd / 1000)
