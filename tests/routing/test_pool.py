from typing import Any

import pytest
from msgspec import structs

from routing.looks import LOAD_HOLDS_S
from routing.pool import BUSY_RETRY_S, MOST_TENANTS, Pool
from routing.prefix import PIECE_BYTES, PIECE_TOKENS, Ends, pieces_of, turn_of
from routing.types import Call, Endpoint, Price, Tier

TIER = Tier("default", max_ttft_s=5.0, waiting_nano_usd_per_s=4e9 / 3600)
PROMPT = b"".join(b"%08d" % n for n in range(4 * PIECE_BYTES))


def call(prompt: bytes = PROMPT, tenant: str = "acme") -> Call:
    return Call(
        "m", TIER, prompt_tokens=len(prompt) // 4, max_tokens=100, tenant=tenant, pieces=pieces_of(prompt)
    )


def pool_of(*names: str, **fields: Any) -> Pool:
    pool = Pool()
    for name in names:
        pool.add(Endpoint(name, "m", "m", **fields))
    return pool


def send(pool: Pool, asked: Call, now_s: float, roll: float = 0.5):
    """Plan and begin, as a gateway does."""
    best = pool.plan(asked, now_s, roll).ranked[0]
    standing = pool.standings[best.endpoint.name]
    return best, standing.begin(asked, now_s, best.cached_tokens)


def serve(pool: Pool, asked: Call, now_s: float, roll: float = 0.5, **said: Any) -> str:
    best, run = send(pool, asked, now_s, roll)
    run.first_token(now_s + best.estimate.ttft_s)
    run.ended(now_s + best.estimate.ttft_s + 1.0, 100, **said)
    return best.endpoint.name


def turn(prompt: bytes, whole: int, asked: int = 0, answered: int = 0) -> Call:
    then = turn_of(prompt, pieces_of(prompt), Ends(whole, asked, answered))
    return structs.replace(call(prompt[:whole]), turn=then)


@pytest.mark.parametrize("roll", [0.0, 0.6])
def test_a_short_turn_on_a_shared_system_prompt_is_found_again_with_the_answer_to_it(roll: float):
    pool = pool_of("a", "b", "c")
    for name in ("a", "b", "c"):  # all of them know the system prompt, from others
        pool.standings[name].begin(turn(PROMPT[:2048] + name.encode() * 9, 2057), 0.0).ended(1.0, 9)
    first = serve(pool, turn(PROMPT, 2100), 10.0, roll)
    again = pool.plan(turn(PROMPT, 5000, 2100, 4700), 20.0, 0.9 - roll).ranked[0]
    assert again.endpoint.name == first
    assert again.cached_tokens == 9 * PIECE_TOKENS  # 4,608 bytes of 4,700


@pytest.mark.parametrize("roll", [0.0, 0.3, 0.6, 0.9])
def test_the_next_turn_of_a_conversation_goes_where_the_first_went(roll: float):
    pool = pool_of("a", "b", "c")
    first = serve(pool, call(PROMPT[:4096]), 0.0, roll)
    again = pool.plan(call(), 10.0, 0.99 - roll).ranked[0]
    assert again.endpoint.name == first
    assert again.cached_tokens == 4096 // 4
    assert serve(pool, call(), 10.0, 0.99 - roll) == first


def test_a_prompt_counts_as_cached_where_it_has_been_sent_before_anything_came_back():
    pool = pool_of("a", "b")
    best, _ = send(pool, call(), 0.0)
    assert pool.cached_tokens(call()) == {best.endpoint.name: len(PROMPT) // 4}


def test_a_burst_of_siblings_does_not_all_pile_onto_one():
    pool = pool_of("a", "b", "c", "d")
    chosen = [send(pool, call(PROMPT + b"%04d" % n * 4000), 0.0)[0].endpoint.name for n in range(24)]
    assert len(set(chosen)) > 1


def test_an_endpoint_that_was_restarted_is_not_believed_to_hold_anything():
    pool = pool_of("a", "b")
    name = serve(pool, call(), 0.0)
    pool.standings[name].failed(10.0, "connect", 0.5)
    assert pool.cached_tokens(call()) == {}


def test_one_that_only_answered_with_an_error_still_holds_its_cache():
    pool = pool_of("a", "b")
    name = serve(pool, call(), 0.0)
    pool.standings[name].failed(10.0, "server_error", 0.5)
    assert pool.cached_tokens(call()) != {}


def test_a_call_that_was_refused_leaves_what_was_held_before():
    pool = pool_of("a")
    serve(pool, call(PROMPT[:4096]), 0.0)
    _, run = send(pool, call(), 10.0)
    assert pool.cached_tokens(call()) == {"a": len(PROMPT) // 4}
    run.unanswered(10.1, refused=True)
    run.ended(10.1)
    assert pool.cached_tokens(call()) == {"a": 1024}


@pytest.mark.parametrize("how", ["stream", "whole"])
def test_of_a_call_that_is_taken_back_before_its_first_token_what_should_have_been_read_is_held(how: str):
    asked = call(PROMPT * 8)
    held = []
    for share in (0.0, 0.5, 1.5):
        pool = pool_of("a")
        takes_s = pool.plan(asked, 0.0, 0.5).ranked[0].estimate.ttft_s
        run = pool.standings["a"].begin(asked, 0.0, watched=how == "stream")
        run.unanswered(share * takes_s)
        held.append(pool.cached_tokens(asked).get("a", 0))
        run.ended(share * takes_s)
    assert held[0] == 0
    assert held[1] == pytest.approx(asked.prompt_tokens / 2, rel=0.05)
    assert held[2] == asked.prompt_tokens


def test_of_a_call_that_still_waited_behind_another_nothing_is_held():
    pool = pool_of("a")
    first, second = call(PROMPT * 4), call(b"another" + PROMPT * 4)
    takes_s = pool.plan(first, 0.0, 0.5).ranked[0].estimate.ttft_s
    pool.standings["a"].begin(first, 0.0)
    run = pool.standings["a"].begin(second, 0.0)
    run.unanswered(0.9 * takes_s)
    assert pool.cached_tokens(second) == {}
    assert pool.cached_tokens(first) == {"a": first.prompt_tokens}


def test_a_stream_that_breaks_after_its_first_token_leaves_its_prompt():
    pool = pool_of("a")
    _, run = send(pool, call(), 0.0)
    run.first_token(0.1)
    run.unanswered(0.2)
    run.ended(0.2, 1)
    assert pool.cached_tokens(call()) == {"a": len(PROMPT) // 4}


def test_what_an_endpoint_reports_corrects_how_much_it_is_thought_to_hold():
    pool = pool_of("a", gpu="t4")
    asked = call(PROMPT * 16)
    for at_s in range(0, 4000, 40):
        serve(pool, asked, float(at_s), cached_tokens=64)
    assert pool.cached_tokens(asked)["a"] < asked.prompt_tokens / 4


def test_an_endpoint_that_never_reports_cached_tokens_is_believed_to_have_them():
    pool = pool_of("a", gpu="t4")
    for at_s in range(0, 4000, 40):
        serve(pool, call(), float(at_s), cached_tokens=0)
    assert pool.cached_tokens(call()) == {"a": len(PROMPT) // 4}


def test_an_endpoint_with_as_many_calls_as_it_may_have_gets_no_more_until_one_ends():
    pool = Pool()
    standing = pool.add(Endpoint("a", "m", "m"), most_inflight=1)
    _, run = send(pool, call(), 0.0)
    plan = pool.plan(call(), 0.0, 0.5)
    assert not plan.ranked
    assert plan.rejected[0].reason == "busy with 1 calls"
    assert plan.retry_after_s == BUSY_RETRY_S
    run.ended(1.0, 1)
    assert standing.inflight == 0
    assert pool.plan(call(), 1.0, 0.5).ranked


def test_a_snapshot_shows_at_once_what_has_happened_and_after_a_moment_what_time_has_done():
    pool = pool_of("a", "b")
    before = dict(pool.snapshot(0.0))
    _, run = send(pool, call(), 0.0)
    at_once = dict(pool.snapshot(0.0))
    assert sorted(load.inflight for load in at_once.values()) == [0, 1]
    held = pool.snapshot(LOAD_HOLDS_S / 2)
    assert [load for _, load in held] == list(at_once.values())
    run.ended(0.1, 1)
    later = dict(pool.snapshot(60.0))
    assert [load.inflight for load in later.values()] == [0, 0]
    assert [structs.replace(load, arrivals_per_s=0.0, busy=0.0).itl_s for load in later.values()] == [
        load.itl_s for load in before.values()
    ]


def test_a_call_goes_where_nobody_elses_calls_are_and_only_as_long_as_they_are_known_to_be_there():
    pool = pool_of("a", "b")
    alike = {each.endpoint.name: each.estimate for each in pool.plan(call(), 0.0, 0.0).ranked}
    assert alike["a"] == alike["b"]
    pool.standings["a"].shared_with(40, 0, 0.0, 60.0)
    for roll in (0.0, 0.9):
        first, second = pool.plan(call(), 0.0, roll).ranked
        assert (first.endpoint.name, first.estimate) == ("b", alike["b"])
        assert second.estimate.itl_s > first.estimate.itl_s
        assert second.estimate.imposed_s > first.estimate.imposed_s
    again = pool.plan(call(), 60.0, 0.0).ranked
    assert again[0].estimate == again[1].estimate


def test_an_endpoint_removed_is_gone_and_its_place_is_taken_by_the_next():
    pool = pool_of("a", "b")
    place = pool.standings["a"].place
    pool.standings["a"].begin(call(), 0.0)
    pool.remove("a")
    assert [endpoint.name for endpoint, _ in pool.snapshot(0.0)] == ["b"]
    assert pool.cached_tokens(call()) == {}
    assert pool.add(Endpoint("c", "m", "m")).place == place
    assert pool.cached_tokens(call()) == {}
    assert {standing.endpoint.name for standing in pool} == {"b", "c"}


def test_a_call_that_ends_at_an_endpoint_removed_is_nobody_else_s():
    pool = pool_of("a", "b")
    left = pool.standings["a"]
    run = left.begin(call(), 0.0)
    pool.remove("a")
    pool.add(Endpoint("a", "m", "m"))
    run.first_token(0.1)
    run.ended(0.2, 10, cached_tokens=1000)
    left.failed(0.3, "connect", 0.5)
    left.resize(1)
    assert left.inflight == 0
    assert [(endpoint.name, load.inflight, load.unavailable) for endpoint, load in pool.snapshot(0.3)] == [
        ("b", 0, None),
        ("a", 0, None),
    ]


def test_a_hosted_endpoint_is_chosen_when_the_workers_are_late_and_left_when_they_are_back():
    pool = pool_of("worker", cost=Price(20_000, 40_000))
    pool.add(Endpoint("hosted", "m", "m", kind="openai", cost=Price(200_000, 400_000)))
    runs = []
    for _ in range(200):
        best, run = send(pool, call(PROMPT * 2), 0.0)
        runs.append((best.endpoint.name, run))
        if best.endpoint.name == "hosted":
            break
    assert runs[0][0] == "worker"
    assert runs[-1][0] == "hosted"
    for _, run in runs:
        run.first_token(1.0)
        run.ended(2.0, 100)
    assert send(pool, call(PROMPT * 2), 3.0)[0].endpoint.name == "worker"


def test_each_tenant_is_expected_to_write_what_it_has_been_writing():
    pool = pool_of("a")
    for _ in range(400):
        pool.wrote("terse", 10)
        pool.wrote("wordy", 1000)
    assert pool.output_tokens("terse") == pytest.approx(10, abs=2)
    assert pool.output_tokens("wordy") == pytest.approx(1000, rel=0.02)
    assert 400 < pool.output_tokens("unknown") < 600


def test_only_so_many_tenants_are_remembered():
    pool = pool_of("a")
    pool.wrote("first", 10)
    remembered = pool.output_tokens("first")
    for n in range(MOST_TENANTS):
        pool.wrote(f"t{n}", 256)
    assert pool.output_tokens("first") != remembered
