import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.sim.worker import CHUNK_TOKENS, Event, Job, Spec, Worker, prefill_work

SPEC = Spec(work_per_s=1000.0, step_s=0.01, sequence_s=0.001, kv_tokens=100_000)


def run_out(worker: Worker) -> list[Event]:
    events = worker.events()
    while (next_s := worker.next_s()) < float("inf"):
        worker.advance(next_s)
        events += worker.events()
    return events


def job(prompt_tokens: int, output_tokens: int = 1, pages: tuple[int, ...] = ()) -> Job:
    return Job(prompt_tokens, output_tokens, pages)


def test_the_first_token_comes_when_the_prompt_has_been_read():
    worker = Worker(SPEC, 100)
    worker.submit(0.0, job(1000))
    first = run_out(worker)[0]
    assert first.at_s == pytest.approx(prefill_work(1000, 0) / 1000 + 0.01)


def test_what_is_cached_is_not_read_again():
    worker = Worker(SPEC, 100)
    worker.submit(0.0, job(1000, pages=tuple(range(10))))
    worker.submit(0.0, job(1050, pages=tuple(range(10))))
    firsts = [event for event in run_out(worker) if not event.last]
    assert firsts[1].job.cached_tokens == 1000
    assert firsts[1].at_s - firsts[0].at_s == pytest.approx(prefill_work(1050, 1000) / 1000, rel=0.2)


def test_tokens_come_as_fast_as_the_batch_allows():
    worker = Worker(SPEC, 100)
    for _ in range(10):
        worker.submit(0.0, job(16, 101))
    events = run_out(worker)
    ends = [event.at_s for event in events if event.last]
    # All together after the first tenth of a second: 100 steps of 10 ms + 10 x 1 ms.
    assert max(ends) == pytest.approx(100 * 0.02, rel=0.1)


def test_a_prompt_that_is_read_nearly_stops_all_others():
    alone, stalled = Worker(SPEC, 100), Worker(SPEC, 100)
    for worker in (alone, stalled):
        worker.submit(0.0, job(16, 101))
    stalled.submit(0.5, job(4000))
    [quick] = [event.at_s for event in run_out(alone) if event.last]
    slow = max(event.at_s for event in run_out(stalled) if event.last)
    steps = prefill_work(4000, 0) / CHUNK_TOKENS
    assert slow - quick == pytest.approx(steps * CHUNK_TOKENS / 1000, rel=0.05)


def test_a_worker_slowed_down_takes_so_many_times_as_long():
    worker = Worker(SPEC, 100)
    worker.slow_down(0.0, 5.0)
    worker.submit(0.0, job(1000))
    assert run_out(worker)[0].at_s == pytest.approx(5 * (prefill_work(1000, 0) / 1000 + 0.01))


def test_who_does_not_fit_the_kv_cache_waits_for_one_to_end():
    worker = Worker(SPEC, 100)
    worker.submit(0.0, job(60_000, 500, pages=tuple(range(600))))
    worker.submit(0.0, job(60_000, 500, pages=tuple(range(1000, 1600))))
    events = run_out(worker)
    assert [event.last for event in events] == [False, True, False, True]


def test_waiting_is_what_queueing_theory_says():
    """M/D/1: with utilisation u and service time d the mean wait is u d / 2 (1 - u)."""
    spec = Spec(work_per_s=10_000.0, step_s=1e-6, sequence_s=0.0, kv_tokens=10**9)
    worker, dice = Worker(spec, 100), random.Random(1)
    service_s = prefill_work(1000, 0) / 10_000
    utilisation, arrived, firsts, now_s = 0.7, {}, {}, 0.0
    for _ in range(20_000):
        now_s += dice.expovariate(utilisation / service_s)
        each = job(1000)
        arrived[each] = now_s
        worker.submit(now_s, each)
    for event in run_out(worker):
        if not event.last:
            firsts[event.job] = event.at_s
    waits = [firsts[each] - at_s - service_s for each, at_s in arrived.items()]
    expected_s = utilisation * service_s / (2 * (1 - utilisation))
    assert sum(waits) / len(waits) == pytest.approx(expected_s, rel=0.1)


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5000), st.integers(1, 50)), min_size=1, max_size=20)
)
def test_everybody_gets_a_first_and_a_last_token_in_that_order_and_all_room_is_given_back(arrivals):
    worker, now_s = Worker(SPEC, 100), 0.0
    for gap_s, prompt_tokens, output_tokens in arrivals:
        now_s += gap_s
        worker.submit(now_s, job(prompt_tokens, output_tokens, tuple(range(prompt_tokens // 100))))
    events = run_out(worker)
    for kind in (False, True):
        assert len({event.job for event in events if event.last is kind}) == len(arrivals)
    assert [event.at_s for event in events if event.last] == sorted(e.at_s for e in events if e.last)
    assert worker.cache.usage == 0.0
