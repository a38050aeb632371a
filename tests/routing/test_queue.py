from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from routing.queue import LONGEST_RETRY_S, ORDER, Queue, QueueLimits, Waiting, serving_work

TENANTS = ("acme", "bolt", "cove")


def call(tenant="acme", work=100.0, tier="flex", model="llama", until_s=1e9) -> Waiting:
    return Waiting(model, tier, tenant, work, until_s)


def queue(calls=1000, calls_per_tenant=1000) -> Queue:
    return Queue(QueueLimits(calls, calls_per_tenant))


def joined(waiting: list[Waiting], **limits: int) -> Queue:
    made = queue(**limits)
    for each in waiting:
        assert made.join(each, 0.0) is None
    return made


def drained(waits: Queue, model="llama", now_s=0.0) -> list[Waiting]:
    gone = []
    while (first := next(waits.ordered(model), None)) is not None:
        waits.go(first, now_s)
        gone.append(first)
    return gone


calls = st.lists(
    st.builds(
        call,
        tenant=st.sampled_from(TENANTS),
        work=st.floats(1.0, 10_000.0),
        tier=st.sampled_from(ORDER),
    ),
    max_size=40,
)


@given(calls)
def test_calls_go_by_tier_and_those_of_a_tenant_in_the_order_in_which_they_came(waiting):
    gone = drained(joined(waiting))
    assert Counter(map(id, gone)) == Counter(map(id, waiting))
    assert [ORDER.index(each.tier) for each in gone] == sorted(ORDER.index(each.tier) for each in gone)
    for tier in ORDER:
        for tenant in TENANTS:
            mine = [each for each in waiting if (each.tier, each.tenant) == (tier, tenant)]
            assert [each for each in gone if (each.tier, each.tenant) == (tier, tenant)] == mine


@given(calls)
def test_the_order_shown_is_the_order_in_which_they_go(waiting):
    waits = joined(waiting)
    shown = list(waits.ordered("llama"))
    assert drained(waits) == shown


@given(calls)
def test_while_two_tenants_wait_neither_gets_more_than_a_call_ahead_of_the_other(waiting):
    waiting = [each for each in waiting if each.tier == "flex"]
    most = max((each.work for each in waiting), default=0.0)
    waits = joined(waiting)
    left = Counter(each.tenant for each in waiting)
    had = defaultdict(float)
    for each in drained(waits):
        had[each.tenant] += each.work
        left[each.tenant] -= 1
        still = [tenant for tenant in TENANTS if left[tenant]]
        for one in still:
            for other in still:
                assert had[one] - had[other] <= 2 * most


@given(st.lists(st.floats(1.0, 1000.0), min_size=1, max_size=30), st.integers(0, 30))
def test_a_call_of_another_tenant_waits_for_no_more_than_a_call_of_a_flood(flood, before):
    waits = joined([call(work=work) for work in flood])
    for _ in range(min(before, len(flood) - 1)):
        waits.go(next(waits.ordered("llama")), 0.0)
    late = call("bolt")
    waits.join(late, 0.0)
    assert late in list(waits.ordered("llama"))[:2]


def test_a_tenant_that_has_had_much_waits_for_one_that_has_had_little():
    big, small = call("acme", 1000.0), call("bolt", 1.0)
    waits = joined([big, small, call("bolt", 1.0), call("cove", 1.0)])
    waits.go(big, 0.0)
    again = call("acme", 1.0)
    waits.join(again, 0.0)
    assert drained(waits)[-1] is again


def test_a_call_that_was_sent_back_is_the_first_of_its_tenant_and_has_been_charged_nothing():
    first, second, others = call(), call(), call("bolt")
    waits = joined([first, others, second])
    waits.go(first, 0.0)
    waits.put_back(first, 0.0)
    assert drained(waits) == [first, others, second]


def test_calls_of_another_model_are_in_nobodys_way():
    one, other = call(), call(model="qwen")
    waits = joined([one, other])
    assert waits.models() == ["llama", "qwen"]
    assert list(waits.ordered("qwen")) == [other]


def test_it_says_whether_one_of_this_or_a_better_tier_waits():
    waits = joined([call(tier="default")])
    assert [waits.waits("llama", tier) for tier in ORDER] == [False, True, True]
    assert not waits.waits("qwen", "flex")


@given(calls, st.integers(1, 8), st.integers(1, 8))
def test_there_are_never_more_calls_than_may_be_in_all_and_of_a_tenant(waiting, most, most_of_tenant):
    waits = queue(most, most_of_tenant)
    inside: list[Waiting] = []
    for each in waiting:
        inside.append(each)
        shed = waits.join(each, 0.0)
        if shed is not None:
            inside.remove(shed.waiting)
        assert len(waits) == len(inside) <= most
        assert max(Counter(i.tenant for i in inside).values()) <= most_of_tenant
        assert waits.depth.total() == len(inside)
    assert set(map(id, waits.ordered("llama"))) == set(map(id, inside))


def test_of_a_tenant_with_its_share_the_last_call_in_its_lowest_tier_has_to_go():
    flex, default = call(), call(tier="default")
    waits = joined([flex, default], calls_per_tenant=2)
    more_flex, more_default = call(), call(tier="default")
    shed = waits.join(more_flex, 0.0)
    assert (shed.waiting, shed.of_tenant) == (more_flex, True)
    shed = waits.join(more_default, 0.0)
    assert (shed.waiting, shed.of_tenant) == (flex, True)
    assert waits.join(call("bolt"), 0.0) is None


def test_of_a_full_queue_the_last_call_of_who_has_most_in_the_lowest_tier_has_to_go():
    first, last, others = call(), call(), call("bolt")
    waits = joined([first, last, others], calls=3)
    newcomer = call("cove")
    shed = waits.join(newcomer, 0.0)
    assert (shed.waiting, shed.of_tenant) == (last, False)
    newcomer = call("acme")
    assert waits.join(newcomer, 0.0).waiting is newcomer
    urgent = call("acme", tier="priority")
    assert waits.join(urgent, 0.0).waiting.tier == "flex"
    assert next(waits.ordered("llama")) is urgent


def test_a_lower_tier_never_makes_a_higher_one_go():
    waits = joined([call(tier="default")], calls=1)
    flex = call("bolt")
    assert waits.join(flex, 0.0).waiting is flex


def test_those_are_told_that_have_waited_as_long_as_they_may():
    soon, later = call(until_s=5.0), call(until_s=50.0)
    waits = joined([later, soon])
    assert waits.expired(4.9) == []
    assert waits.expired(5.0) == [soon]


def test_leaving_twice_changes_nothing():
    waiting = call()
    waits = joined([waiting, call("bolt")])
    assert waits.leave(waiting, 0.0)
    assert not waits.leave(waiting, 0.0)
    assert len(waits) == 1


def test_to_come_back_takes_as_long_as_the_work_ahead_at_the_rate_of_late():
    waits = joined([call(work=100.0) for _ in range(30)])
    newcomer = call(work=100.0)
    assert waits.retry_after_s(newcomer, 0.0) == 1.0  # nothing has gone yet
    for second in range(1, 11):
        waits.go(next(waits.ordered("llama")), float(second))
    # 2,000 before it and its own 100, at about 100 a second.
    assert waits.retry_after_s(newcomer, 10.0) == pytest.approx(21.0, rel=0.1)
    assert waits.retry_after_s(call(work=100.0, tier="priority"), 10.0) == pytest.approx(1.0)
    assert waits.retry_after_s(newcomer, 1000.0) == LONGEST_RETRY_S


def test_time_in_which_nobody_waits_does_not_slow_the_rate():
    waits = queue()
    for second in (0.0, 10_000.0):
        each = call(work=100.0)
        waits.join(each, second)
        waits.go(each, second + 1.0)
    assert waits.retry_after_s(call(work=1000.0), 10_001.0) == pytest.approx(10.0, rel=0.1)


def test_output_counts_for_more_than_the_prompt():
    assert serving_work(1000, 1000.0) > 2 * serving_work(1000, 0.0)


class Waits(RuleBasedStateMachine):
    """Any sequence of coming, going, leaving and coming back, beside the plainest account of it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = queue(calls=12, calls_per_tenant=6)
        self.inside: list[Waiting] = []
        self.gone: list[Waiting] = []
        self.now_s = 0.0

    @rule(tenant=st.sampled_from(TENANTS), tier=st.sampled_from(ORDER), work=st.floats(1.0, 1e6))
    def join(self, tenant, tier, work):
        self.now_s += 0.5
        each = call(tenant, work, tier)
        self.inside.append(each)
        shed = self.waits.join(each, self.now_s)
        if shed is not None:
            self.inside.remove(shed.waiting)

    @rule(place=st.integers(0, 20))
    def go(self, place):
        self.now_s += 0.5
        shown = list(self.waits.ordered("llama"))
        if shown:
            each = shown[place % len(shown)]
            self.waits.go(each, self.now_s)
            self.inside.remove(each)
            self.gone.append(each)

    @rule(place=st.integers(0, 20))
    def leave(self, place):
        if self.inside:
            each = self.inside.pop(place % len(self.inside))
            assert self.waits.leave(each, self.now_s)

    @rule()
    def put_back(self):
        if self.gone:
            each = self.gone.pop()
            self.waits.put_back(each, self.now_s)
            self.inside.append(each)
            mine = [
                other
                for other in self.waits.ordered("llama")
                if (other.tier, other.tenant) == (each.tier, each.tenant)
            ]
            assert mine[0] is each

    @invariant()
    def holds_exactly_those(self):
        assert set(map(id, self.waits.ordered("llama"))) == set(map(id, self.inside))
        assert len(self.waits) == len(self.inside)
        assert +self.waits.depth == Counter(each.tier for each in self.inside)
        assert 1.0 <= self.waits.retry_after_s(call(), self.now_s) <= LONGEST_RETRY_S


TestWaits = Waits.TestCase
