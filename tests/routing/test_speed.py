import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from routing.gpu import prior_for
from routing.pace import PRIOR_S
from routing.speed import MOST_OTHERS, Speed
from routing.types import Load


def learned(load: Load):
    """Without what only says how much has been sent there."""
    return structs.replace(load, arrivals_per_s=0.0, busy=0.0)


def serve(
    speed: Speed,
    *,
    rate: float,
    work: float = 2000.0,
    calls: int = 20,
    at_s: float = 0.0,
    base_s: float = 0.02,
):
    """Calls one after another on an endpoint that prefills `rate` per second; returns when the last has ended."""
    for _ in range(calls):
        ticket = speed.start(at_s, work)
        at_s += base_s + work / rate
        speed.first_token(ticket, at_s)
        speed.finish(ticket, at_s, 1)
    return at_s


@pytest.mark.parametrize(("declared", "true_rate"), [("h100", 2500.0), ("t4", 12_000.0), (None, 6000.0)])
def test_a_wrongly_declared_gpu_is_forgotten_within_half_a_minute_of_work(
    declared: str | None, true_rate: float
):
    speed = Speed(declared)
    end_s = serve(speed, rate=true_rate, work=8000.0, calls=math.ceil(30 * true_rate / 8000))
    assert 0.5 * true_rate < speed.load(end_s, 0).work_per_s < 2 * true_rate


def test_what_was_learned_fades_back_to_the_prior():
    speed = Speed("a100")
    end_s = serve(speed, rate=1000.0)
    assert speed.load(end_s, 0).work_per_s < 0.5 * prior_for("a100").work_per_s
    assert speed.load(end_s + 600, 0).work_per_s == pytest.approx(prior_for("a100").work_per_s, rel=0.01)


def test_work_sent_is_pending_until_its_first_token():
    speed = Speed()
    first, second = speed.start(0.0, 1000.0), speed.start(0.0, 500.0)
    assert speed.load(0.0, 2).pending_work == pytest.approx(1500.0)
    speed.first_token(first, 0.2)
    assert speed.load(0.2, 2).pending_work == pytest.approx(500.0)
    speed.finish(second, 0.2)
    assert speed.load(0.2, 1).pending_work == 0.0


def test_pending_work_shrinks_while_the_head_is_being_prefilled():
    speed = Speed()
    speed.start(0.0, 4000.0)
    seen = [speed.load(t, 1).pending_work for t in (0.0, 0.2, 0.4, 0.6)]
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == 4000.0
    assert 0.0 < seen[-1] < 2000.0


def test_a_stalled_worker_looks_slower_the_longer_it_stalls_before_anything_has_come_back():
    speed = Speed()
    prior = speed.load(0.0, 0).work_per_s
    speed.start(0.0, 1000.0)
    rates = [speed.load(t, 1).work_per_s for t in (0.1, 1.0, 5.0, 20.0)]
    assert rates[0] == pytest.approx(prior)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < prior / 5


def test_progress_and_proof_of_slowness_meet_without_a_jump():
    speed = Speed()
    speed.start(0.0, 1000.0)
    due_s = 0.02 + 1000.0 / speed.load(0.0, 1).work_per_s
    before, after = speed.load(due_s - 1e-9, 1), speed.load(due_s + 1e-9, 1)
    assert before.work_per_s == pytest.approx(after.work_per_s, rel=1e-6)
    assert before.pending_work == pytest.approx(after.pending_work, abs=1e-3)


def test_a_late_first_token_weighs_more_than_a_long_past_without_trouble():
    busy, new = Speed(), Speed()
    for second in range(120):
        ticket = busy.start(float(second), 0.9 * busy.load(float(second), 0).work_per_s)
        busy.first_token(ticket, second + 0.9)
        busy.finish(ticket, second + 0.9)
    for speed in (busy, new):
        speed.start(120.0, 10.0)
    for_s = 2.0
    slower = [
        speed.load(120.0 + for_s, 1).work_per_s / speed.load(120.0, 1).work_per_s for speed in (busy, new)
    ]
    assert slower[0] == pytest.approx(slower[1], rel=0.05)
    assert slower[0] == pytest.approx(PRIOR_S / (PRIOR_S + for_s), rel=0.05)


def test_one_late_first_token_says_little_of_a_provider_that_has_long_been_quick():
    hosted = Speed(parallel=True)
    for second in range(120):
        ticket = hosted.start(float(second), 0.9 * hosted.load(float(second), 0).work_per_s)
        hosted.first_token(ticket, second + 0.9)
        hosted.finish(ticket, second + 0.9)
    hosted.start(120.0, 10.0)
    assert hosted.load(122.0, 1).work_per_s > 0.9 * hosted.load(120.0, 1).work_per_s


def test_a_stall_is_remembered_after_the_call_is_given_up():
    speed = Speed()
    ticket = speed.start(0.0, 1000.0)
    stalled = speed.load(5.0, 1).work_per_s
    speed.finish(ticket, 5.0)
    assert speed.load(5.0, 0).work_per_s == pytest.approx(stalled, rel=1e-6)


def test_calls_given_up_together_after_one_stall_count_its_time_once():
    speed, lone = Speed(), Speed()
    for ticket in [speed.start(0.0, 100.0) for _ in range(20)]:
        speed.finish(ticket, 5.0)
    lone.finish(lone.start(0.0, 100.0), 5.0)
    assert speed.load(5.0, 0).work_per_s == pytest.approx(lone.load(5.0, 0).work_per_s, rel=0.01)


def test_a_client_that_leaves_early_teaches_nothing():
    speed = Speed()
    prior = speed.load(0.0, 0)
    speed.finish(speed.start(0.0, 8000.0), 0.1)
    assert learned(speed.load(0.1, 0)) == prior


def test_time_spent_on_a_call_that_left_is_not_charged_to_the_next():
    speed, free = Speed(), Speed()
    left, stays = speed.start(0.0, 4000.0), speed.start(0.0, 4000.0)
    speed.finish(left, 0.5)
    speed.first_token(stays, 1.5)
    ticket = free.start(0.48, 4000.0)
    free.first_token(ticket, 1.5)
    assert speed.load(1.5, 0).work_per_s == pytest.approx(free.load(1.5, 0).work_per_s)


def test_any_origin_of_the_clock_will_do():
    far = [Speed().load(now_s, 0) for now_s in (-1e9, 0.0, 1e9)]
    assert far[0] == far[1] == far[2]


def test_a_refused_connection_does_not_make_an_endpoint_look_fast_or_slow():
    speed = Speed()
    prior = speed.load(0.0, 0)
    for at_s in range(100):
        speed.finish(speed.start(float(at_s), 100.0), at_s + 0.0005)
    assert learned(speed.load(99.1, 0)) == prior


def test_queued_prompts_are_timed_from_the_first_token_before_them():
    speed = Speed()
    tickets = [speed.start(0.0, 2000.0) for _ in range(40)]
    for place, ticket in enumerate(tickets, start=1):
        speed.first_token(ticket, 0.02 + place * 0.5)
    assert speed.load(20.02, 40).work_per_s == pytest.approx(4000.0, rel=0.05)


def test_prompts_prefilled_in_one_batch_are_rated_together():
    speed = Speed()
    at_s = 0.0
    for _ in range(30):
        tickets = [speed.start(at_s, 1000.0) for _ in range(4)]
        at_s += 0.02 + 1.0
        for ticket in tickets:
            speed.first_token(ticket, at_s)
    assert speed.load(at_s, 0).work_per_s == pytest.approx(4000.0, rel=0.1)


def test_fixed_costs_are_learned_from_short_prompts_sent_alone():
    speed = Speed()
    serve(speed, rate=1e6, work=16.0, calls=60, base_s=0.12)
    assert speed.load(100.0, 0).base_ttft_s == pytest.approx(0.12, rel=0.1)


def test_a_slow_first_token_hardly_raises_fixed_costs():
    speed = Speed()
    end_s = serve(speed, rate=1e6, work=16.0, calls=5, base_s=0.01)
    before = speed.load(end_s, 0).base_ttft_s
    serve(speed, rate=1e6, work=16.0, calls=1, base_s=8.0, at_s=end_s)
    assert speed.load(end_s, 0).base_ttft_s < before * 1.2


def test_a_worker_is_not_believed_to_run_more_calls_of_others_than_any_does():
    speed = Speed()
    speed.shared_with(10**18, 10**18, 0.0)
    assert speed.load(0.0, 0).inflight == 2 * MOST_OTHERS


def test_a_ticket_finished_twice_counts_once():
    speed = Speed()
    first, second = speed.start(0.0, 100.0), speed.start(0.0, 100.0)
    speed.first_token(first, 0.1)
    speed.first_token(first, 0.2)
    for _ in range(3):
        speed.finish(first, 0.3, 5)
    speed.first_token(first, 0.4)
    assert speed.load(0.1, 1).pending_work <= 100.0
    speed.finish(second, 0.5)
    assert speed.load(0.5, 0).pending_work == 0.0


def test_a_clock_that_steps_back_stands_still():
    speed = Speed()
    ticket = speed.start(100.0, 100.0)
    speed.first_token(ticket, 50.0)
    speed.finish(ticket, 10.0, 50)
    assert speed.load(0.0, 0) == speed.load(100.0, 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "start_unwatched", "first_token", "progress", "finish", "load", "shared"]),
        st.floats(-5.0, 5.0) | st.sampled_from([0.0, 3600.0, 1e6]),
        st.floats(0.0, 1e6),
        st.integers(0, 20),
    ),
    max_size=80,
)


@given(STEPS, st.sampled_from([None, "h100", "t4"]))
def test_no_interleaving_makes_a_figure_negative_or_infinite(
    steps: list[tuple[str, float, float, int]], gpu: str | None
):
    speed = Speed(gpu)
    now_s, tickets, work_left = 1000.0, [], {}
    for what, passed_s, work, number in steps:
        now_s += passed_s
        if what.startswith("start"):
            work_left[len(tickets)] = work
            tickets.append(speed.start(now_s, work, watched=what == "start"))
        elif what == "shared":
            speed.shared_with(number, number // 2, now_s)
        elif what != "load" and tickets:
            index = number % len(tickets)
            # The prefill of an unwatched ticket is pending for as long as predicted, even if it has ended.
            if tickets[index].watched and what != "progress":
                work_left.pop(index, None)
            if what == "progress":
                speed.progress(tickets[index], now_s, number)
            elif what == "first_token":
                speed.first_token(tickets[index], now_s)
            else:
                speed.finish(tickets[index], now_s, number)
        load = speed.load(now_s, number)
        assert 0.0 < load.work_per_s < 1e12
        assert 0.0 < load.itl_s < 1e6
        assert 0.0 <= load.base_ttft_s < 1e6
        assert 0.0 <= load.pending_work <= sum(work_left.values()) * (1 + 1e-9) + 1e-3
        assert load == speed.load(now_s, number)
    for ticket in tickets:
        speed.finish(ticket, now_s)
    assert speed.load(now_s, 0).pending_work == 0.0


def test_short_prompts_queued_behind_a_long_one_teach_nothing_of_fixed_costs():
    speed = Speed()
    before = speed.load(0.0, 0).base_ttft_s
    for ticket in [speed.start(0.0, work) for work in (8000.0, *[16.0] * 50)]:
        speed.first_token(ticket, 5.0)
    assert speed.load(5.0, 0).base_ttft_s == before


def test_a_call_that_hung_for_hours_is_forgotten_within_minutes():
    speed = Speed()
    prior = speed.load(0.0, 0).work_per_s
    speed.first_token(speed.start(0.0, 100.0), 36_000.0)
    assert speed.load(36_000.0, 0).work_per_s < prior / 10
    assert speed.load(36_300.0, 0).work_per_s == pytest.approx(prior, rel=0.05)


def test_a_reply_that_comes_as_one_piece_teaches_nothing():
    speed = Speed()
    before = speed.load(0.0, 0)
    at_s = 0.0
    for _ in range(50):
        ticket = speed.start(at_s, 200.0, watched=False)
        at_s += 5.0
        speed.first_token(ticket, at_s)
        speed.finish(ticket, at_s, 400)
    assert learned(speed.load(at_s, 0)) == before


def test_a_reply_that_comes_as_one_piece_is_pending_for_as_long_as_its_prefill_should_take():
    speed = Speed()
    rate = speed.load(0.0, 0).work_per_s
    speed.start(0.0, 4 * rate, watched=False)
    speed.start(0.0, rate, watched=False)
    assert speed.load(0.0, 2).pending_work == pytest.approx(5 * rate)
    assert speed.load(2.0, 2).pending_work == pytest.approx(3 * rate)
    assert speed.load(600.0, 2).pending_work == 0.0
    assert speed.load(600.0, 2).work_per_s == rate


def test_replies_that_have_all_ended_leave_no_work_pending():
    speed = Speed()
    speed.finish(speed.start(0.0, 1e9, watched=False), 1.0)
    assert speed.load(1.0, 0).pending_work == 0.0
    speed.start(2.0, 1000.0, watched=False)
    assert speed.load(2.0, 1).pending_work == pytest.approx(1000.0)


def test_a_short_prompt_behind_a_hidden_prefill_teaches_nothing_of_fixed_costs():
    speed = Speed()
    before = speed.load(0.0, 0).base_ttft_s
    speed.start(0.0, 1e6, watched=False)
    speed.first_token(speed.start(0.0, 16.0), 5.0)
    assert speed.load(5.0, 0).base_ttft_s == before


def test_what_is_sent_there_shows_as_arrivals_and_as_the_share_of_its_time_that_it_takes():
    speed = Speed()
    rate = speed.load(0.0, 0).work_per_s
    for at_s in range(200):  # one call a second, each a quarter of a second's work
        speed.finish(speed.start(float(at_s), rate / 4), at_s + 0.01)
    load = speed.load(199.5, 0)
    assert load.arrivals_per_s == pytest.approx(1.0, rel=0.05)
    assert load.busy == pytest.approx(0.25, rel=0.05)
    later = speed.load(199.5 + 20.0, 0)
    assert later.arrivals_per_s == pytest.approx(load.arrivals_per_s / 2)


def test_nothing_is_busier_than_all_of_the_time():
    speed = Speed()
    for _ in range(50):
        speed.start(0.0, 1e6)
    assert speed.load(0.0, 50).busy == 1.0


def test_a_parallel_endpoint_has_no_queue_and_stalls_nobody():
    hosted = Speed(parallel=True)
    first, *_ = [hosted.start(0.0, 5000.0) for _ in range(20)]
    hosted.first_token(first, 0.6)
    load = hosted.load(0.6, 20)
    assert (load.pending_work, load.decoding, load.arrivals_per_s, load.busy) == (0.0, 0, 0.0, 0.0)
    assert load.itl_s == Speed().load(0.0, 0).itl_s


def test_a_parallel_endpoints_rate_is_that_of_each_call_by_itself():
    hosted = Speed(parallel=True)
    for second in range(30):
        tickets = [hosted.start(float(second), 5000.0) for _ in range(10)]
        for ticket in tickets:
            hosted.first_token(ticket, second + 0.52)
            hosted.finish(ticket, second + 0.52, 1)
    assert hosted.load(30.0, 0).work_per_s == pytest.approx(10_000, rel=0.05)


def test_what_prompts_read_beside_a_stream_should_take_does_not_count_as_time_that_it_ran():
    speed, rate = Speed("rtx-4090"), prior_for("rtx-4090").work_per_s
    now_s = serve(speed, rate=rate)
    stream = speed.start(now_s, 100.0)
    first_s = now_s + 0.12
    speed.first_token(stream, first_s)
    assert speed.wrote_s(stream, first_s + 2.0) == pytest.approx(2.0)
    beside = speed.start(first_s + 2.0, 4.0 * rate)  # four seconds, and the time to get there
    assert speed.wrote_s(stream, first_s + 5.0) == pytest.approx(2.0, abs=0.3)
    assert speed.wrote_s(stream, first_s + 16.0) == pytest.approx(12.0, abs=0.5), "late, which is no excuse"
    speed.first_token(beside, first_s + 16.0)
    assert speed.wrote_s(stream, first_s + 17.0) == pytest.approx(13.0, abs=0.5)
