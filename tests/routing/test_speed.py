import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from routing.gpu import GPUS, UNKNOWN_GPU, kv_tokens_for, prior_for
from routing.pace import BELIEVED_S, CHUNK_TOKENS, MOST_FASTER, PRIOR_S, Peers
from routing.speed import MOST_OTHERS, Speed, Ticket
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


@pytest.mark.parametrize(
    ("spelling", "card"),
    [
        ("rtx-4090", "4090"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("RTX4090", "4090"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("l40s", "l40s"),
        ("L4", "l4"),
    ],
)
def test_a_gpu_is_known_by_any_usual_spelling(spelling: str, card: str):
    assert prior_for(spelling) == prior_for(card)
    assert prior_for(spelling).work_per_s == pytest.approx(GPUS[card].tflops * 1e12 * 0.5 / 16e9)


@pytest.mark.parametrize("gpu", [None, "", "abacus", "a4000"])
def test_an_unknown_gpu_is_taken_for_a_middling_one(gpu: str | None):
    assert prior_for(gpu) == prior_for("4090")
    rates = sorted(card.tflops for card in GPUS.values())
    assert rates[2] < UNKNOWN_GPU.tflops < rates[-3]


def test_priors_are_ordered_as_the_cards_are():
    l4, rtx, h100 = prior_for("l4"), prior_for("rtx-4090"), prior_for("h100")
    assert l4.work_per_s < rtx.work_per_s < h100.work_per_s
    assert l4.step_s > rtx.step_s > h100.step_s


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


def decode(
    speed: Speed,
    *,
    seconds_per_token: float,
    streams: int = 4,
    tokens: int = 101,
    rounds: int = 4,
    at_s: float = 0.0,
):
    for _ in range(rounds):
        tickets = [speed.start(at_s, 16.0) for _ in range(streams)]
        for ticket in tickets:
            speed.first_token(ticket, at_s + 0.02)
        at_s += 0.02 + (tokens - 1) * seconds_per_token
        for ticket in tickets:
            speed.finish(ticket, at_s, tokens)
    return at_s


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_the_pace_of_streams_is_learned_for_the_batch_they_ran_in(factor: float):
    speed = Speed("a100")
    expected = speed.load(0.0, 3).itl_s
    end_s = decode(speed, seconds_per_token=expected * factor)
    assert speed.load(end_s, 3).itl_s == pytest.approx(expected * factor, rel=0.35)
    assert speed.load(end_s, 30).itl_s > speed.load(end_s, 3).itl_s


def running(speed: Speed, at_s: float, streams: int = 4) -> list[Ticket]:
    """Streams that have just begun."""
    tickets = [speed.start(at_s, 16.0) for _ in range(streams)]
    for ticket in tickets:
        speed.first_token(ticket, at_s)
    return tickets


@pytest.mark.parametrize("looks", [1, 7, 50])
def test_a_stream_looked_at_while_it_runs_teaches_as_much_in_all_as_one_seen_at_its_end(looks: int):
    at_once, by_and_by = Speed("a100"), Speed("a100")
    for speed in (at_once, by_and_by):
        (ticket,) = running(speed, 0.0, streams=1)
        if speed is by_and_by:
            for look in range(1, looks + 1):
                speed.progress(ticket, 4.0 * look / looks, 1 + 100 * look // looks)
        speed.finish(ticket, 4.0, 101)
    # What came first has faded a little more by then.
    assert by_and_by.load(4.0, 0).itl_s == pytest.approx(at_once.load(4.0, 0).itl_s, rel=0.02)


def test_a_worker_that_slows_down_under_its_streams_looks_slow_within_seconds_and_well_again_as_soon_as_it_is():
    speed = Speed("a100")
    usual_s = speed.load(0.0, 3).itl_s
    now_s = decode(speed, seconds_per_token=usual_s, rounds=40)
    usual_s = speed.load(now_s, 4).itl_s
    tickets, tokens = running(speed, now_s), 1.0
    for slowness, limit in ((10.0, 4.0), (1.0, 1.5)):
        for _ in range(6):
            now_s += 0.5
            tokens += 0.5 / (usual_s * slowness)
            for ticket in tickets:
                speed.progress(ticket, now_s, int(tokens))
        looks = speed.load(now_s, 4).itl_s / usual_s
        assert looks > limit if slowness > 1.0 else looks < limit


def test_that_streams_were_slow_is_not_believed_for_ever_where_none_runs_any_more():
    speed = Speed("a100")
    usual_s = speed.load(0.0, 3).itl_s
    now_s = decode(speed, seconds_per_token=usual_s, rounds=40)
    tickets = running(speed, now_s)
    for tokens in (2, 3, 4):
        now_s += 1.0
        for ticket in tickets:
            speed.progress(ticket, now_s, tokens)
    for ticket in tickets:
        speed.finish(ticket, now_s, 4)
    assert speed.load(now_s, 3).itl_s > 5 * usual_s
    assert speed.load(now_s + BELIEVED_S, 3).itl_s < 2 * usual_s


def test_a_stream_is_judged_by_the_batches_it_lived_through():
    speed = Speed("a100")
    prior = prior_for("a100")
    alone_s = prior.step_s + prior.sequence_s
    pair_s = prior.step_s + 2 * prior.sequence_s
    first = speed.start(0.0, 16.0)
    speed.first_token(first, 0.02)
    joins_s = 0.02 + 1000 * alone_s
    second = speed.start(joins_s - 0.02, 16.0)
    speed.first_token(second, joins_s)
    speed.finish(first, joins_s + 1000 * pair_s, 2001)
    assert speed.load(joins_s + 1000 * pair_s, 0).itl_s == pytest.approx(alone_s, rel=1e-3)


def test_calls_of_others_are_in_the_batch_and_what_they_take_is_not_put_down_to_the_endpoint():
    speed, alone = Speed("a100"), Speed("a100").load(0.0, 0)
    speed.shared_with(60, 5, 0.0)
    shared = speed.load(0.0, 0)
    assert (shared.inflight, shared.decoding) == (65, 60)
    assert shared.itl_s == Speed("a100").load(0.0, 60).itl_s
    end_s = decode(speed, seconds_per_token=shared.itl_s, streams=1, rounds=50)
    assert speed.load(end_s, 0).itl_s == pytest.approx(shared.itl_s, rel=0.02)
    speed.shared_with(0, 0, end_s)
    left = speed.load(end_s, 0)
    assert (left.inflight, left.decoding, left.crowding) == (0, 0, alone.crowding)
    assert left.itl_s == pytest.approx(alone.itl_s, rel=0.02)


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


def test_streams_one_after_another_at_the_expected_pace_change_nothing():
    speed = Speed("a100")
    alone_s = speed.load(0.0, 0).itl_s
    end_s = decode(speed, seconds_per_token=alone_s, streams=1, tokens=2, rounds=200)
    assert speed.load(end_s, 0).itl_s == pytest.approx(alone_s, rel=1e-6)


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


def test_a_stream_beside_replies_that_come_as_one_piece_is_expected_to_share_the_batch_with_them():
    alone, beside = Speed("a100"), Speed("a100")
    for _ in range(63):
        beside.start(0.0, 0.0, watched=False)
    for speed in (alone, beside):
        ticket = speed.start(0.0, 0.0)
        speed.first_token(ticket, 0.0)
        speed.finish(ticket, 30.0, 1000)
    assert beside.load(30.0, 0).itl_s < alone.load(30.0, 0).itl_s


def streamed(speed: Speed, at_s: float, itl_s: float, tokens: int = 100) -> float:
    """A stream of `tokens` of a short prompt; when it has ended."""
    ticket = speed.start(at_s, 100.0)
    first_s = at_s + 0.02
    speed.first_token(ticket, first_s)
    end_s = first_s + (tokens - 1) * itl_s
    speed.finish(ticket, end_s, tokens)
    return end_s


def test_what_one_endpoint_shows_of_a_model_is_soon_believed_of_the_others():
    peers = Peers()
    seen, unseen, stranger = Speed("4090", peers), Speed("4090", peers), Speed("4090")
    guessed = unseen.load(0.0, 0)
    now_s = 0.0
    for _ in range(10):
        now_s = streamed(seen, now_s, guessed.itl_s / 4)
    known, expected = seen.load(now_s, 0), unseen.load(now_s, 0)
    assert expected.itl_s == pytest.approx(known.itl_s, rel=0.1)
    assert expected.itl_s < guessed.itl_s / 3
    assert stranger.load(now_s, 0).itl_s == guessed.itl_s


def test_cards_of_one_model_still_differ_by_their_class():
    peers = Peers()
    seen, better = Speed("4090", peers), Speed("h100", peers)
    ratio = Speed("4090").load(0.0, 0).itl_s / Speed("h100").load(0.0, 0).itl_s
    now_s = 0.0
    for _ in range(10):
        now_s = streamed(seen, now_s, 0.002)
    assert seen.load(now_s, 0).itl_s / better.load(now_s, 0).itl_s == pytest.approx(ratio, rel=0.1)


def test_an_endpoint_is_known_by_its_own_calls_whatever_its_peers_show():
    peers = Peers()
    slow, quick = Speed("4090", peers), Speed("4090", peers)
    ends_s = 0.0
    for _ in range(50):
        ends_s = max(streamed(slow, ends_s, 0.05), streamed(quick, ends_s, 0.005, tokens=1000))
    assert slow.load(ends_s, 0).itl_s == pytest.approx(0.05, rel=0.1)
    assert quick.load(ends_s, 0).itl_s == pytest.approx(0.005, rel=0.2)


def test_a_slow_endpoint_does_not_make_those_look_slow_that_could_take_over():
    peers = Peers()
    slow, unseen = Speed("4090", peers), Speed("4090", peers)
    guessed = unseen.load(0.0, 0)
    hung = slow.start(0.0, 10_000.0)
    slow.finish(hung, 60.0)
    now_s = streamed(slow, 60.0, guessed.itl_s * 10)
    expected = unseen.load(now_s, 0)
    assert (expected.itl_s, expected.work_per_s) == (guessed.itl_s, guessed.work_per_s)


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


@pytest.mark.parametrize(("gpu", "tokens"), [("h100", 427_000), ("4090", 42_700), ("t4", 16_384)])
def test_a_cards_memory_tells_how_many_tokens_it_can_keep(gpu: str, tokens: int):
    assert kv_tokens_for(gpu) == pytest.approx(tokens, rel=0.01)


def test_streams_that_stand_still_while_prompts_are_read_do_not_make_a_worker_look_slow_at_tokens():
    reading, quiet = Speed(), Speed()
    guessed = quiet.load(0.0, 1).itl_s
    prior = prior_for(None)
    step_s = prior.step_s + prior.sequence_s
    for speed, stalled_s in ((reading, CHUNK_TOKENS / prior.work_per_s), (quiet, 0.0)):
        at_s = 0.0
        for _ in range(20):
            stream = speed.start(at_s, 100.0)
            speed.first_token(stream, at_s)
            if stalled_s:  # another prompt is read for as long as the stream goes on
                prompt = speed.start(at_s, 1e9)
            at_s += 100 * (step_s + stalled_s)
            speed.finish(stream, at_s, 101)
            if stalled_s:
                speed.finish(prompt, at_s)
        assert speed.load(at_s, 0).itl_s == pytest.approx(guessed, rel=0.05)


def test_a_full_cache_does_not_make_a_worker_look_much_faster_than_its_peers():
    peers = Peers()
    full, other = Speed("4090", peers), Speed("4090", peers)
    at_s = 0.0
    for _ in range(50):
        ticket = full.start(at_s, 100.0)
        full.first_token(ticket, at_s)
        at_s += 1.0
        full.finish(ticket, at_s, 10_000)
    assert full.load(at_s, 0).itl_s >= MOST_FASTER * other.load(at_s, 0).itl_s * 0.99


def test_prompts_that_a_provider_reads_beside_do_not_count_against_its_pace():
    hosted = Speed(parallel=True)
    guessed = hosted.load(0.0, 1).itl_s
    at_s = 0.0
    for _ in range(30):
        stream, other = hosted.start(at_s, 100.0), hosted.start(at_s, 100.0)
        hosted.first_token(stream, at_s + 0.5)
        at_s += 0.5 + 100 * guessed
        hosted.finish(stream, at_s, 101)
        hosted.finish(other, at_s)
    assert hosted.load(at_s, 0).itl_s == pytest.approx(guessed, rel=0.05)
