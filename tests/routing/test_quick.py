from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from plan_inputs import CALLS, DEFAULT, LOADS, ROLLS, endpoints

from routing.pipeline import plan
from routing.quick import terms_of
from routing.types import NO_DEMANDS, Call, Endpoint, Load, Price

LOADED = st.builds(
    Load,
    inflight=st.integers(0, 50),
    pending_work=st.floats(0, 1e5),
    work_per_s=st.floats(1, 1e5),
    base_ttft_s=st.floats(0, 2),
    itl_s=st.floats(0, 1),
    decoding=st.integers(0, 50),
    crowding=st.floats(0, 0.1),
    arrivals_per_s=st.floats(0, 100),
    busy=st.floats(0, 1),
)
PRICES = st.builds(Price, st.integers(0, 10**6), st.integers(0, 10**6), st.none() | st.integers(0, 10**6))
MEMBERS = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        *(
            st.tuples(
                st.builds(structs.replace, endpoints(f"e{i}"), cost=PRICES, context_tokens=st.none()),
                LOADED | LOADS.map(lambda load: structs.replace(load, unavailable=None)),
            )
            for i in range(n)
        )
    )
)
CACHED = st.dictionaries(st.sampled_from([f"e{i}" for i in range(6)]), st.integers(1, 20_000))


def undemanding(call):
    return structs.replace(call, demands=NO_DEMANDS, needs=frozenset())


def terms(members):
    return [terms_of(endpoint, load, endpoint.cost) for endpoint, load in members]


@given(CALLS, MEMBERS, ROLLS, CACHED)
def test_the_one_found_first_in_one_pass_scores_as_the_first_of_a_whole_ranking(call, members, roll, cached):
    call = undemanding(call)
    cached = {name: min(tokens, call.prompt_tokens) for name, tokens in cached.items()}
    slow = plan(call, members, roll, 100.0, cached).ranked[0]
    quick = plan(call, members, roll, 100.0, cached, terms=terms(members)).ranked[0]
    assert quick.on_time == slow.on_time
    assert abs(quick.score_nano_usd - slow.score_nano_usd) <= 1e-9 * abs(slow.score_nano_usd)
    if quick.endpoint.name == slow.endpoint.name:
        assert quick.estimate == slow.estimate
        assert quick.cached_tokens == slow.cached_tokens


@given(CALLS, MEMBERS, ROLLS, PRICES, st.integers(0, 20_000), st.booleans())
def test_where_all_cost_the_same_it_is_the_first_of_a_whole_ranking_too(
    call, members, roll, price, tokens, one_holds_nothing
):
    call = undemanding(call)
    members = [(structs.replace(endpoint, cost=price), load) for endpoint, load in members]
    tokens = min(tokens, call.prompt_tokens)
    cached = {endpoint.name: tokens for endpoint, _ in members} if tokens else {}
    if cached and one_holds_nothing:
        del cached[members[0][0].name]
        cached["elsewhere"] = tokens
    slow = plan(call, members, roll, 100.0, cached).ranked[0]
    quick = plan(call, members, roll, 100.0, cached, terms=terms(members)).ranked[0]
    assert quick.on_time == slow.on_time
    assert abs(quick.score_nano_usd - slow.score_nano_usd) <= 1e-9 * abs(slow.score_nano_usd)


@given(CALLS, MEMBERS, ROLLS)
def test_whoever_looks_further_sees_each_endpoint_once_and_the_others_as_ranked(call, members, roll):
    call = undemanding(call)
    slow, quick = plan(call, members, roll).ranked, plan(call, members, roll, terms=terms(members)).ranked
    first, *others = (candidate.endpoint.name for candidate in quick)
    assert len(quick) == len(slow) == len(members)
    assert [first, *others] == [quick[place].endpoint.name for place in range(len(quick))]
    assert others == [name for name in (candidate.endpoint.name for candidate in slow) if name != first]


@given(st.integers(2, 8), ROLLS)
def test_equals_take_turns_by_the_roll(count, roll):
    load = Load(work_per_s=1000.0, itl_s=0.02)
    members = tuple((Endpoint(f"e{i}", "m", "m"), load) for i in range(count))
    ranked = plan(Call("m", DEFAULT, 100), members, roll, terms=terms(members)).ranked
    assert ranked[0].endpoint.name == f"e{int(roll * count)}"
