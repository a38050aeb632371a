import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_inputs import CALLS, CAPABILITIES, DEFAULT, DEMANDS, LOADS, ROLLS, SNAPSHOTS, endpoints

from routing.draw import LOOK_AT
from routing.pipeline import plan
from routing.types import NO_DEMANDS, Call, Demands, Endpoint, Load, Plan, Price, Trust


def names(chosen: Plan):
    return [candidate.endpoint.name for candidate in chosen.ranked]


@given(CALLS, SNAPSHOTS, ROLLS)
def test_each_endpoint_is_ranked_or_rejected_exactly_once(call: Call, snapshot: tuple, roll: float):
    chosen = plan(call, snapshot, roll)
    listed = [c.endpoint for c in chosen.ranked] + [r.endpoint for r in chosen.rejected]
    assert sorted(e.name for e in listed) == sorted(e.name for e, _ in snapshot)
    assert all(any(e is known for known, _ in snapshot) for e in listed)
    assert all(r.reason and r.filter for r in chosen.rejected)


@given(CALLS, SNAPSHOTS, ROLLS, DEMANDS, st.sampled_from(Demands.__struct_fields__))
def test_adding_a_demand_adds_no_candidate(
    call: Call, snapshot: tuple, roll: float, other: Demands, field: str
):
    free = msgspec.structs.replace(
        call, demands=msgspec.structs.replace(call.demands, **{field: getattr(Demands(), field)})
    )
    bound = msgspec.structs.replace(
        call, demands=msgspec.structs.replace(free.demands, **{field: getattr(other, field)})
    )
    before, after = names(plan(free, snapshot, roll)), names(plan(bound, snapshot, roll))
    assert set(after) <= set(before)
    assert bool(after) <= bool(before), "a demand made an infeasible call feasible"


@given(CALLS, SNAPSHOTS, ROLLS, st.sampled_from(CAPABILITIES))
def test_needing_more_adds_no_candidate(call: Call, snapshot: tuple, roll: float, capability: str):
    needing = msgspec.structs.replace(call, needs=call.needs | {capability})
    assert set(names(plan(needing, snapshot, roll))) <= set(names(plan(call, snapshot, roll)))


@given(CALLS, SNAPSHOTS, ROLLS)
def test_no_demands_and_demands_of_nothing_give_the_same_plan(call: Call, snapshot: tuple, roll: float):
    nothing, none = (msgspec.structs.replace(call, demands=d) for d in (Demands(), NO_DEMANDS))
    assert plan(nothing, snapshot, roll) == plan(none, snapshot, roll)


@given(CALLS, endpoints("dear"), LOADS, SNAPSHOTS, ROLLS, st.permutations([0, 1]))
def test_a_cheaper_identical_endpoint_is_never_ranked_lower(
    call: Call, dear: Endpoint, load: Load, others: tuple, roll: float, turns: list[int]
):
    call = msgspec.structs.replace(call, tier=DEFAULT, demands=NO_DEMANDS)
    price = dear.cost
    dear = msgspec.structs.replace(dear, cost=Price(price.input_pico_usd + 10**6, price.output_pico_usd))
    cheap = msgspec.structs.replace(dear, name="cheap", cost=price)
    pair = [((cheap, load), (dear, load))[turn] for turn in turns]
    ranked = plan(call, (*pair, *others), roll)
    order = names(ranked)
    if "dear" in order:
        costs = {c.endpoint.name: c.estimate.cost_nano_usd for c in ranked.ranked}
        assert order.index("cheap") < order.index("dear") or costs["cheap"] == costs["dear"]


@given(CALLS, SNAPSHOTS, ROLLS, st.randoms(use_true_random=False))
def test_the_ranking_does_not_depend_on_the_order_of_the_snapshot_but_for_ties(
    call: Call, snapshot: tuple, roll: float, dice: object
):
    shuffled = list(snapshot)
    dice.shuffle(shuffled)
    one, other = plan(call, snapshot, roll), plan(call, shuffled, roll)
    assert [c.score_nano_usd for c in one.ranked] == [c.score_nano_usd for c in other.ranked]
    assert {r.endpoint.name: r.reason for r in one.rejected} == {
        r.endpoint.name: r.reason for r in other.rejected
    }


@given(CALLS, SNAPSHOTS, ROLLS)
def test_one_on_time_stands_behind_one_late_only_where_that_has_the_better_score(
    call: Call, snapshot: tuple, roll: float
):
    ranked = plan(call, snapshot, roll).ranked
    late = [candidate.score_nano_usd for candidate in ranked if not candidate.on_time]
    first_late = next((place for place, each in enumerate(ranked) if not each.on_time), len(ranked))
    assert all(min(late) <= each.score_nano_usd for each in ranked[first_late:] if each.on_time)


A = Endpoint(name="a", model="m", served_model="m", trust=Trust.COMMUNITY)
CALL = Call("m", DEFAULT, 8000, 100)


@pytest.mark.parametrize(
    ("demands", "filter_name", "reason"),
    [
        (
            Demands(max_ttft_s=0.5),
            "max_ttft",
            "expected first token in 1.8 s, asked for at most 0.5 s",
        ),
        (
            Demands(min_tokens_per_s=60.0),
            "min_tokens_per_s",
            "expected 50 tokens per second, asked for at least 60",
        ),
    ],
)
def test_a_demand_on_speed_that_is_missed_is_told_with_its_figure(
    demands: Demands, filter_name: str, reason: str
):
    call = msgspec.structs.replace(CALL, demands=demands)
    chosen = plan(call, [(A, Load(work_per_s=8800.0, base_ttft_s=0.8, itl_s=0.02))], 0.0)
    (rejection,) = chosen.rejected
    assert (rejection.filter, rejection.reason, rejection.retry_after_s) == (filter_name, reason, None)


def test_waiting_helps_only_against_unavailability():
    down = Load(unavailable="ejected", retry_after_s=7.0)
    assert plan(CALL, [(A, down)], 0.0).retry_after_s == 7.0
    trusting = msgspec.structs.replace(CALL, demands=Demands(least_trust=Trust.PROVIDER))
    rejected = plan(trusting, [(A, down)], 0.0)
    assert (rejected.rejected[0].filter, rejected.retry_after_s) == ("trust", None)


def test_an_unavailable_endpoint_is_rejected_with_what_the_fleet_found():
    (rejection,) = plan(CALL, [(A, Load(unavailable="draining"))], 0.0).rejected
    assert (rejection.filter, rejection.reason, rejection.retry_after_s) == ("availability", "draining", None)


def crowd(count: int, **load: float):
    """Many endpoints, each dearer than the one before."""
    return [
        (
            msgspec.structs.replace(A, name=f"e{i}", cost=Price(i * 1000, 0)),
            Load(**{"work_per_s": 8800.0} | load),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [LOOK_AT, LOOK_AT + 1, 100, 257])
@pytest.mark.parametrize("roll", [0.0, 0.5, 1.0 - 2.0**-53])
def test_of_very_many_some_are_passed_over_and_all_are_accounted_for(count: int, roll: float):
    chosen = plan(CALL, crowd(count), roll)
    assert min(LOOK_AT, count) <= len(chosen.ranked) <= LOOK_AT + 2
    listed = names(chosen) + [e.name for e in chosen.passed_over]
    assert sorted(listed) == sorted(f"e{i}" for i in range(count))
    assert {"e0", f"e{count - 1}"} <= set(names(chosen)), "the ends of the price range are always looked at"


def test_every_one_of_very_many_has_its_turn():
    seen = {name for k in range(50) for name in names(plan(CALL, crowd(200), k / 50))}
    assert len(seen) == 200


@pytest.mark.parametrize("demands", [NO_DEMANDS, Demands(max_ttft_s=2.0)])
def test_nobody_is_passed_over_where_only_one_of_very_many_is_fast_enough(demands: Demands):
    snapshot = crowd(300, pending_work=1e6)
    snapshot[123] = (snapshot[123][0], Load(work_per_s=8800.0))
    call = msgspec.structs.replace(CALL, demands=demands)
    for k in range(5):
        chosen = plan(call, snapshot, k / 5)
        assert names(chosen)[0] == "e123"
