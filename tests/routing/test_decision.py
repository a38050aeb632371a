"""A decision written down and read again makes the very plan that it made, whatever is in it."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing.decision import Decision
from routing.types import Call, Demands, Endpoint, Load, Tier, Trust

SIMPLE = {
    float: st.floats(0, 1e6),
    int: st.integers(0, 10**6),
    str: st.text(max_size=8),
    NoneType: st.none(),
    Trust: st.sampled_from(Trust),
}


def of_type(hint: Any) -> st.SearchStrategy:
    """Any value of a type, where numbers are finite and not negative."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return st.one_of(*map(of_type, inside))
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is frozenset:
        return st.frozensets(of_type(inside[0]), max_size=3)
    if origin is tuple:
        return st.lists(of_type(inside[0]), max_size=3).map(tuple)
    return SIMPLE[hint] if hint in SIMPLE else built(hint)


def built(struct: type, **fields: st.SearchStrategy) -> st.SearchStrategy:
    """Any such struct, with whatever fields it has, some of them as given."""
    hints = get_type_hints(struct)
    return st.builds(
        struct, **{name: fields[name] if name in fields else of_type(hint) for name, hint in hints.items()}
    )


def member(name: str) -> st.SearchStrategy:
    endpoint = built(Endpoint, name=st.just(name), region=st.none() | st.sampled_from(["eu", "us"]))
    free = built(Load, work_per_s=st.floats(1, 1e5), unavailable=st.none())
    return st.tuples(endpoint, free | built(Load, work_per_s=st.floats(1, 1e5)))


NAMES = [f"e{number}" for number in range(6)]
FEW = st.frozensets(st.sampled_from(NAMES), max_size=2)
SOME = built(Demands, regions=st.frozensets(st.just("eu")), only=st.just(frozenset()), ignore=FEW)
DECISIONS = built(
    Decision,
    call=built(
        Call,
        tier=built(Tier, waiting_nano_usd_per_s=st.sampled_from([0.0, 1e6, 1e15])),
        max_tokens=st.none() | st.integers(0, 10**30),
        needs=st.just(frozenset()),
        demands=st.just(Demands()) | SOME,
        turn=st.none(),
    ),
    snapshot=st.integers(0, len(NAMES)).flatmap(lambda n: st.tuples(*map(member, NAMES[:n]))),
    roll=st.floats(0, 1, exclude_max=True),
    cached_tokens=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10**5)),
    departures=st.dictionaries(st.sampled_from(NAMES), st.floats(-10, 1e3)),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a decision has some hundred fields to make up
@given(DECISIONS)
def test_a_decision_read_again_makes_the_very_same_plan(decision: Decision):
    again = msgspec.json.decode(msgspec.json.encode(decision), type=Decision)
    assert again == decision
    before, after = decision.plan(), again.plan()
    assert list(after.ranked) == list(before.ranked)
    assert after.rejected == before.rejected
    assert after.passed_over == before.passed_over
