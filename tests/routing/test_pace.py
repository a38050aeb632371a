import pytest

from routing.gpu import prior_for
from routing.pace import BELIEVED_S, CHUNK_TOKENS, MOST_FASTER, Peers
from routing.speed import Speed, Ticket


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


def test_streams_one_after_another_at_the_expected_pace_change_nothing():
    speed = Speed("a100")
    alone_s = speed.load(0.0, 0).itl_s
    end_s = decode(speed, seconds_per_token=alone_s, streams=1, tokens=2, rounds=200)
    assert speed.load(end_s, 0).itl_s == pytest.approx(alone_s, rel=1e-6)


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
