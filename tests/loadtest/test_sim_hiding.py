"""The simulation of second attempts and of answers that go on elsewhere."""

from __future__ import annotations

import pytest
from msgspec import structs

from loadtest.sim import fleet, hiding
from loadtest.sim.calls import SimCall
from loadtest.sim.fleet import Mishap
from loadtest.sim.outcome import outcome
from loadtest.sim.run import simulate
from loadtest.sim.scene import Result, Scene
from loadtest.sim.targets import HIDING, RESUMING
from loadtest.sim.worker import Job, Worker
from loadtest.simulate import OURS_HIDING, ours, simulated_tier

NODES = fleet.equal()[:3]


def scene(calls: list[SimCall], *mishaps: Mishap) -> Scene:
    return Scene(
        NODES, hosted=(), calls=calls, page_tokens=128, mishaps=list(mishaps), churn=fleet.CHURNS["20min"], seed=1
    )  # fmt: skip


def call(at_s: float = 0.0, output_tokens: int = 100) -> SimCall:
    return SimCall(at_s, 1280, output_tokens, tuple(range(10)))


def run(name: str, *mishaps: Mishap, calls: list[SimCall] | None = None, slowness: float = 5.0) -> Result:
    seen = scene(calls or [call()], *mishaps)
    seen = structs.replace(seen, churn=structs.replace(seen.churn, slowness=slowness))
    return simulate(seen, ours(name, simulated_tier("default")))


def chosen(name: str = "tidegate") -> int:
    [done] = run(name).done
    return done.endpoint


def test_a_call_at_a_worker_that_falls_silent_is_answered_by_another_long_before_it_is_noticed():
    silent = Mishap(0.05, chosen(), "silence")
    [without], [hedged] = run("tidegate", silent).done, run("tidegate+hedge", silent).done
    assert without.ttft_s > 5.0
    assert hedged.ttft_s < 1.5
    assert hedged.endpoint != chosen()
    assert run("tidegate+hedge", silent).toll.hedges == 1


def test_an_answer_that_breaks_off_goes_on_elsewhere_and_its_prompt_is_read_again():
    reset = Mishap(1.0, chosen(), "reset")
    broken, resumed = run("tidegate", reset), run(RESUMING, reset)
    assert broken.done[0].e2e_s is None
    [done] = resumed.done
    [undisturbed] = run("tidegate").done
    assert done.ttft_s == pytest.approx(undisturbed.ttft_s)
    assert undisturbed.e2e_s < done.e2e_s < undisturbed.e2e_s + 1.0
    assert done.endpoint != chosen()
    assert resumed.toll.resumes == 1
    # What was made before is kept; read again are the prompt and what was made.
    assert 1280 <= resumed.toll.wasted_tokens < 1280 + 100
    assert resumed.toll.worked_tokens == resumed.toll.wasted_tokens + 1280 + 100


def test_all_that_a_worker_did_for_a_call_that_broke_off_is_waste():
    toll = run("tidegate", Mishap(1.0, chosen(), "reset")).toll
    assert 0 < toll.wasted_tokens == toll.worked_tokens


def test_where_everything_goes_well_nothing_is_hedged_resumed_or_wasted():
    calls = [call(float(second)) for second in range(20)]
    toll = run(HIDING, calls=calls).toll
    assert (toll.hedges, toll.resumes, toll.wasted_tokens) == (0, 0, 0)


def test_a_stream_whose_worker_slows_down_goes_on_elsewhere_from_where_it_is():
    slow = Mishap(0.5, chosen(), "slow")
    long = [call(output_tokens=400)]
    stays, moves = (run(name, slow, calls=long, slowness=20.0) for name in (RESUMING, HIDING))
    assert (stays.toll.moves, moves.toll.moves) == (0, 1)
    [stayed], [moved] = stays.done, moves.done
    assert moved.ttft_s == stayed.ttft_s
    assert moved.e2e_s < 0.6 * stayed.e2e_s
    assert moved.endpoint != chosen()
    # What it made before counts; read again are the prompt and that, and lost is what it made until the other one answered.
    assert moves.toll.worked_tokens == moves.toll.wasted_tokens + 1280 + 400
    assert 1280 < moves.toll.wasted_tokens < 1280 + 400


def test_a_stream_that_is_to_be_moved_stays_where_the_other_worker_goes_down():
    slow = [
        Mishap(0.5, chosen(), "slow"),
        *(Mishap(0.0, other, "reset") for other in range(3) if other != chosen()),
    ]
    [done] = run(HIDING, *slow, calls=[call(output_tokens=400)], slowness=20.0).done
    assert done.e2e_s is not None
    assert done.endpoint == chosen()


def worker_with(*jobs: Job) -> Worker:
    worker = Worker(NODES[0].spec, 128)
    for job in jobs:
        worker.submit(0.0, job)
    return worker


def job(first_page: int = 0) -> Job:
    return Job(1280, 50, tuple(range(first_page, first_page + 10)))


def test_one_that_is_given_up_while_it_waits_has_cost_nothing():
    first, second = job(), job(100)
    worker = worker_with(first, second)
    assert worker.abort(0.01, second) == (0, 0)
    assert (list(worker.waiting), worker.running) == ([], 1)


def test_of_one_that_is_given_up_while_it_is_read_the_cache_holds_what_was_read():
    first, second = job(), job(100)
    worker = worker_with(first, second)
    read, made = worker.abort(0.1, first)
    assert 0 < read < 1280
    assert made == 0
    assert worker.cache.hits(first.pages) == read // 128
    assert (list(worker.waiting), worker.running) == ([], 1)
    assert worker.progress(second) == (0, 0)


def test_one_that_is_given_up_while_it_writes_makes_room():
    first = job()
    worker = worker_with(first)
    read, made = worker.abort(0.5, first)
    assert read == 1280
    assert 0 < made < 50
    assert worker.running == 0
    assert worker.cache.hits(first.pages) == 10


def test_the_table_has_a_line_for_each_way_to_hide_churn():
    whole = scene([call(float(second)) for second in range(10)])
    for name in OURS_HIDING:
        found = outcome(simulate(whole, ours(name, simulated_tier("default"))), whole, 0.0)
        line = hiding.row("20min", name, [found, found])
        assert len(line) == len(hiding.COLUMNS)
        assert line[6:] == ["0.00%"] * 6


def a_whole(at_s: float = 0.0, output_tokens: int = 100) -> SimCall:
    return structs.replace(call(at_s, output_tokens), whole=True)


def test_a_whole_reply_that_is_expected_to_take_long_goes_on_elsewhere_from_where_it_broke_off():
    reset = Mishap(1.0, chosen(), "reset")
    result = run(RESUMING, reset, calls=[a_whole()])
    [done] = result.done
    assert done.e2e_s is not None
    assert done.ttft_s == done.e2e_s
    assert result.toll.resumes == 1
    assert result.toll.worked_tokens == result.toll.wasted_tokens + 1280 + 100


def test_a_whole_reply_that_breaks_off_is_begun_anew_where_nothing_is_gone_on_with():
    reset = Mishap(1.0, chosen(), "reset")
    result = run("tidegate", reset, calls=[a_whole()])
    [done] = result.done
    assert done.e2e_s is not None
    assert done.endpoint != chosen()
    assert result.toll.resumes == 0
    assert result.toll.worked_tokens == result.toll.wasted_tokens + 1280 + 100


def test_a_short_whole_reply_that_takes_far_too_long_is_had_elsewhere_once():
    calls = [a_whole(2.0 * number, output_tokens=60) for number in range(701)]
    [*_, undisturbed] = run(HIDING, calls=calls).done
    silent = Mishap(1400.1, undisturbed.endpoint, "silence")
    churn = structs.replace(fleet.CHURNS["20min"], silence_s=240.0)
    result = simulate(
        structs.replace(scene(calls, silent), churn=churn), ours(HIDING, simulated_tier("default"))
    )
    [*_, last] = result.done
    assert result.toll.anew == 1
    assert last.endpoint != undisturbed.endpoint
    assert 5.0 < last.e2e_s < 60.0


def test_calls_that_lose_all_workers_at_once_are_served_when_they_are_back():
    calls = [call(second * 0.05, output_tokens=50) for second in range(100)]
    blips = [Mishap(2.0, index, "blip") for index in range(3)]
    done = run(HIDING, *blips, calls=calls).done
    assert len(done) == 100
    assert all(each.e2e_s is not None for each in done)
