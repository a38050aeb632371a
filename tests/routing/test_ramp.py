from hypothesis import given
from hypothesis import strategies as st

from routing.pool import Pool
from routing.ramp import DOUBLING_S, FIRST_CALLS, FULL_CALLS, Ramp
from routing.types import Call, Endpoint, Tier

CALL = Call("m", Tier("default", 5.0, 1e6), prompt_tokens=10)


def pool_of(*names: str) -> Pool:
    pool = Pool()
    for name in names:
        pool.add(Endpoint(name, "m", "m"))
    return pool


def unavailable(pool: Pool, name: str, now_s: float) -> str | None:
    pool.standings[name].changed()
    return next(load.unavailable for endpoint, load in pool.snapshot(now_s) if endpoint.name == name)


def test_it_begins_with_a_few_calls_and_has_more_with_each_answer_and_with_time():
    ramp = Ramp(10.0)
    assert ramp.most(10.0) == FIRST_CALLS
    ramp.answered()
    assert ramp.most(10.0) == FIRST_CALLS + 1
    assert ramp.most(10.0 + DOUBLING_S) == 2 * FIRST_CALLS + 1
    for _ in range(FULL_CALLS):
        ramp.answered()
    assert ramp.most(10.0) is None


@given(st.lists(st.floats(0.0, 5.0) | st.none(), max_size=60))
def test_it_never_falls_and_is_over_within_ten_seconds(events: list[float | None]):
    ramp, now_s, before = Ramp(0.0), 0.0, FIRST_CALLS
    for event in events:
        if event is None:
            ramp.answered()
        else:
            now_s += event
        most = ramp.most(now_s)
        if most is None:
            assert ramp.most(now_s + 1e6) is None
            return
        assert before <= most < FULL_CALLS
        assert now_s < 10.0
        before = most


def test_one_that_joins_beside_others_gets_a_few_calls_at_a_time():
    pool = pool_of("old", "new")
    new = pool.standings["new"]
    new.ramp_up(0.0)
    runs = [new.begin(CALL, 0.0) for _ in range(FIRST_CALLS)]
    assert unavailable(pool, "new", 0.01) == "is new, and gets 2 calls at a time for now"
    assert unavailable(pool, "old", 0.01) is None
    runs.pop().ended(0.1)
    new.succeeded(0.1)
    assert unavailable(pool, "new", 0.1) is None
    assert unavailable(pool, "new", 60.0) is None


def test_where_nobody_else_can_serve_there_is_no_ramp():
    pool = pool_of("sick", "new")
    pool.standings["sick"].ejection.health(0.0, ok=False)
    new = pool.standings["new"]
    new.ramp_up(0.0)
    for _ in range(100):
        new.begin(CALL, 0.0)
    assert unavailable(pool, "new", 0.01) is None
