"""Where all endpoints of a model are out: who is asked all the same, when, and by how many calls."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from plan_inputs import CALLS, SNAPSHOTS

from routing.ejection import HOPE_S, PASSING, RESORT_SHARE, Ejection, FailureKind
from routing.filters import filters_for
from routing.pipeline import plan
from routing.pool import Pool
from routing.trial import DOUBLING_S, MOST_DOUBLINGS, Trial
from routing.types import Call, Endpoint, Tier

MIDDLE = 0.5
"""The roll that jitters by nothing."""
TIER = Tier("default", max_ttft_s=5.0, waiting_nano_usd_per_s=1e6)
CALL = Call("m", TIER, prompt_tokens=100, max_tokens=100)
KINDS: tuple[FailureKind, ...] = (
    "connect",
    "connect_timeout",
    "reset",
    "engine_dead",
    "model_missing",
    "timeout",
    "server_error",
)


def failing(pool: Pool, now_s: float, kind: FailureKind = "reset") -> Pool:
    """The pool, of which all endpoints fail now, twice."""
    for standing in pool:
        standing.failed(now_s, kind, MIDDLE)
        standing.failed(now_s, kind, MIDDLE)
    return pool


def pool_of(number: int) -> Pool:
    pool = Pool()
    for place in range(number):
        pool.add(Endpoint(f"e{place}", "m", "m"))
    return pool


def send(pool: Pool, now_s: float):
    """The run of a call sent now; None where it finds nobody."""
    planned = pool.plan(CALL, now_s, 0.0)
    return pool.standings[planned.ranked[0].endpoint.name].begin(CALL, now_s) if planned.ranked else None


@given(
    CALLS,
    SNAPSHOTS,
    st.lists(st.sampled_from([None, 0.0, 0.2]), min_size=6, max_size=6),
    st.floats(0, 1, exclude_max=True),
)
def test_those_that_are_out_are_asked_only_where_nobody_else_could_serve_the_call(
    call, snapshot, resorts_s, roll
):
    snapshot = [
        (endpoint, structs.replace(load, resort_s=resort_s if load.unavailable else None))
        for (endpoint, load), resort_s in zip(snapshot, resorts_s, strict=False)
    ]
    made = plan(call, snapshot, roll)
    able = [
        (endpoint, load)
        for endpoint, load in snapshot
        if all(reject(call, endpoint) is None for _, reject in filters_for(call))
    ]
    ranked = {candidate.endpoint.name for candidate in made.ranked}
    loads = {endpoint.name: load for endpoint, load in snapshot}
    if any(load.unavailable is None for _, load in able):
        assert not made.last_resort
        assert all(loads[name].unavailable is None for name in ranked)
    else:
        due = {endpoint.name for endpoint, load in able if load.resort_s == 0.0}
        assert made.last_resort == bool(due)
        assert ranked <= due
    for rejection in made.rejected:
        if rejection.filter == "availability" and not made.last_resort and not made.ranked:
            load = loads[rejection.endpoint.name]
            assert load.resort_s != 0.0
            if load.resort_s is not None:
                assert rejection.retry_after_s in (load.resort_s, load.retry_after_s)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_asked_in_a_quarter_of_the_time_unless_nobody_can_be_there(kind: FailureKind):
    pool = failing(pool_of(3), 10.0, kind)
    early = pool.plan(CALL, 10.1, 0.0)
    late = pool.plan(CALL, 10.0 + RESORT_SHARE, 0.0)
    assert not early.ranked
    assert bool(late.ranked) == late.last_resort == (kind in PASSING)
    assert early.retry_after_s == pytest.approx(0.15 if kind in PASSING else 0.9)
    assert all(standing.soon(10.1) == (kind in PASSING) for standing in pool)


def test_none_is_asked_while_another_one_gets_calls():
    pool = failing(pool_of(3), 10.0)
    pool.add(Endpoint("new", "m", "m"))
    made = pool.plan(CALL, 10.5, 0.0)
    assert [candidate.endpoint.name for candidate in made.ranked] == ["new"]
    assert not made.last_resort


def test_who_drains_or_has_joined_or_fails_its_checks_is_not_asked():
    pool = failing(pool_of(3), 10.0)
    draining, new, sick = pool
    draining.depart(None, draining=True)
    new.ejection.join(10.0)
    sick.ejection.health(10.0, ok=False)
    assert not pool.plan(CALL, 10.5, 0.0).ranked
    assert not any(standing.soon(10.5) for standing in pool)


@given(st.integers(1, 5), st.lists(st.floats(0.0, 0.2), max_size=60))
def test_no_more_than_one_call_at_first_and_twice_as_many_each_quarter_of_a_second_until_it_answers(
    endpoints: int, pauses_s: list[float]
):
    pool, now_s = failing(pool_of(endpoints), 10.0), 10.0 + RESORT_SHARE
    sent: dict[str, list[float]] = {standing.endpoint.name: [] for standing in pool}
    for pause_s in pauses_s:
        now_s += pause_s
        for _ in range(100):
            planned = pool.plan(CALL, now_s, 0.0)
            if not planned.ranked:
                break
            name = planned.ranked[0].endpoint.name
            pool.standings[name].begin(CALL, now_s)
            sent[name].append(now_s)
        for times_s in sent.values():
            doublings = (now_s - times_s[0]) / DOUBLING_S if times_s else 0.0
            if doublings < MOST_DOUBLINGS:
                assert len(times_s) <= 2.0**doublings


def test_with_its_first_token_it_is_back():
    pool = failing(pool_of(1), 10.0)
    run = send(pool, 10.3)
    assert run is not None
    assert send(pool, 10.31) is None
    run.first_token(10.4)
    made = pool.plan(CALL, 10.4, 0.0)
    assert made.ranked
    assert not made.last_resort
    assert all(send(pool, 10.4) is not None for _ in range(100))


def test_a_call_that_was_sent_before_tells_nothing():
    pool = pool_of(1)
    [standing] = pool
    before = send(pool, 9.0)
    assert before is not None
    failing(pool, 10.0)
    before.first_token(10.1)
    before.ended(10.2, 100)
    standing.succeeded(10.2, before.started_s)
    assert not pool.plan(CALL, 10.2, 0.0).ranked


def test_where_it_fails_again_it_is_left_alone_for_as_long_again_and_not_for_twice_as_long():
    pool = failing(pool_of(1), 10.0)
    [standing] = pool
    for now_s in (10.3, 10.6, 10.9):
        run = send(pool, now_s)
        assert run is not None
        run.ended(now_s)
        standing.failed(now_s, "reset", MIDDLE, run.started_s)
        # It is only the next one that tells of what came after that.
        assert standing.unavailable(now_s)[1] == pytest.approx(1.0)
        assert not pool.plan(CALL, now_s + 0.2, 0.0).ranked


def test_where_nobody_listens_at_the_trial_it_is_not_asked_again_nor_waited_for():
    pool = failing(pool_of(1), 10.0)
    [standing] = pool
    run = send(pool, 10.3)
    assert run is not None
    run.ended(10.3)
    standing.failed(10.3, "connect", MIDDLE, run.started_s)
    assert not pool.plan(CALL, 10.8, 0.0).ranked
    assert not standing.soon(10.8)
    assert standing.unavailable(10.3) == ("ejected: it could not be reached", pytest.approx(1.0))


def test_whoever_fails_for_ten_seconds_without_an_answer_is_not_hoped_for_any_more():
    pool, now_s = failing(pool_of(1), 10.0), 10.0
    [standing] = pool
    while now_s + 0.3 < 10.0 + HOPE_S:
        assert standing.soon(now_s)
        now_s += 0.3
        run = send(pool, now_s)
        assert run is not None
        run.ended(now_s)
        standing.failed(now_s, "timeout", MIDDLE, run.started_s)
    assert not standing.soon(10.0 + HOPE_S)
    assert not pool.plan(CALL, now_s + 0.5, 0.0).ranked
    assert pool.plan(CALL, now_s + 1.1, 0.0).ranked, "when its time is over, as ever"


def test_one_that_is_back_beside_others_is_tried_with_one_call_at_first_too():
    pool = pool_of(2)
    first, _ = pool
    first.failed(10.0, "reset", MIDDLE)
    assert first.unavailable(11.1) == (None, None)
    first.begin(CALL, 11.1)
    assert first.unavailable(11.2)[0] == "is back, and has not answered yet"
    assert not first.out(11.2)
    first.succeeded(11.3, 11.1)
    assert first.unavailable(11.3) == (None, None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KINDS, "answered", "check", "bad check", "pause"]),
            st.floats(0.0, 4.0),
            st.booleans(),
            st.floats(0.0, 1.0, exclude_max=True),
        )
    )
)
def test_no_sequence_of_events_has_one_asked_that_gets_calls_or_later_than_it_is_back(events):
    ejection, now_s, kind = Ejection(), 1000.0, ""
    for what, passed_s, sent_just_now, roll in events:
        now_s += passed_s
        sent_s = now_s if sent_just_now else now_s - 5.0
        match what:
            case "answered":
                ejection.succeeded(now_s, sent_s)
            case "check" | "bad check":
                ejection.health(now_s, what == "check")
            case "pause":
                ejection.cool_down(now_s, roll * 10)
            case kind:
                ejection.failed(now_s, kind, roll, sent_s)
        reason, wait_s = ejection.state(now_s)
        resort_s = ejection.resort_s(now_s)
        if reason is None or not ejection.out(now_s):
            assert resort_s is None
        elif resort_s is not None:
            assert ejection.is_passing(now_s)
            assert 0.0 <= resort_s <= max(wait_s, 0.05)


def test_a_trial_that_nobody_answers_ends_by_itself():
    trial = Trial()
    trial.sent(5.0)
    assert [trial.has_room(now_s) for now_s in (5.0, 5.2, 5.25)] == [False, False, True]
    for _ in range(1000):
        trial.sent(5.3)
    assert not trial.has_room(6.4)
    assert trial.has_room(6.5)
