"""What gateways tell each other: lost, late and repeated, it never breaks anything, and in the end all know the same."""

from __future__ import annotations

from math import inf

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.gossip import (
    AGAIN_S,
    FORGOTTEN_S,
    MOST_PIECES,
    MOST_PLACED,
    MOST_SAID,
    Batch,
    Gossip,
    Standings,
    name_of,
)
from routing.pool import Pool
from routing.types import Call, Endpoint, Load, Tier

patiently = settings(deadline=None, max_examples=60)
TIER = Tier("default", 5.0, 1_000_000.0)
WORK = 1000
PIECES = tuple(range(1, 9))


class Gateway:
    """A pool of a few endpoints, and what it tells and hears."""

    def __init__(self, who: str, endpoints: int = 3) -> None:
        self.pool = Pool()
        self.standings = [
            self.pool.add(Endpoint(f"node-{n}", "llama", "llama", url=f"http://n{n}", gpu="l4"))
            for n in range(endpoints)
        ]
        self.gossip = Gossip(who, lambda: [self.pool])
        self.gossip.batch(0.0)
        self.runs: list[tuple[int, object]] = []

    def begin(self, endpoint: int, now_s: float, pieces: tuple[int, ...] = ()) -> None:
        call = Call("llama", TIER, prompt_tokens=WORK, pieces=pieces)
        self.runs.append((endpoint, self.standings[endpoint].begin(call, now_s)))

    def first_token(self, index: int, now_s: float) -> None:
        self.runs[index][1].first_token(now_s)

    def end(self, index: int, now_s: float) -> None:
        self.runs.pop(index)[1].ended(now_s, completion_tokens=20)

    def loads(self, now_s: float) -> list[tuple[int, int]]:
        return [(load.inflight, load.decoding) for _, load in self.pool.snapshot(now_s)]


def carried(batch: Batch) -> Batch:
    """As it comes out of a message."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=Batch)


def tell(one: Gateway, other: Gateway, now_s: float) -> None:
    batch = one.gossip.batch(now_s)
    if batch is not None:
        other.gossip.take(carried(batch), now_s)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "first", "end", "say", "lose", "again"]),
        st.integers(0, 1),
        st.integers(0, 5),
    ),
    max_size=60,
)


@patiently
@given(STEPS, st.randoms(use_true_random=False))
def test_after_any_losses_repetitions_and_delays_all_know_the_same(steps, dice):
    gateways = [Gateway("a"), Gateway("b")]
    now_s, late = lived_through(steps, gateways)
    dice.shuffle(late)
    for to, batch in late:
        gateways[to].gossip.take(carried(batch), now_s)
    # What goes on is said again within a second; what has ended without being told is forgotten.
    for _ in range(int((FORGOTTEN_S + AGAIN_S) / 0.25) + 2):
        now_s += 0.25
        for own, other in (gateways, gateways[::-1]):
            tell(own, other, now_s)
            own.gossip.forget(now_s)
    assert gateways[0].loads(now_s) == gateways[1].loads(now_s)


def lived_through(steps, gateways: list[Gateway]) -> tuple[float, list[tuple[int, Batch]]]:
    """Until when, and the batches that have not arrived, or may once more."""
    now_s, late = 100.0, []
    for what, who, number in steps:
        now_s += 0.05
        own = gateways[who]
        if what == "begin":
            own.begin(number % 3, now_s)
        elif what in ("first", "end") and own.runs:
            getattr(own, "first_token" if what == "first" else "end")(number % len(own.runs), now_s)
        elif what == "say" and (batch := own.gossip.batch(now_s)):
            late.append((1 - who, batch))
        elif what == "lose" and late:
            late.pop(number % len(late))
        elif what == "again" and late:
            to, batch = late[number % len(late)]
            gateways[to].gossip.take(carried(batch), now_s)
        for each in gateways:
            each.gossip.forget(now_s)
            make_sense([load for _, load in each.pool.snapshot(now_s)])
    return now_s, late


def make_sense(loads: list[Load]) -> None:
    for load in loads:
        assert load.inflight >= 0
        assert 0 <= load.pending_work < inf
        assert 0 < load.work_per_s < inf
        assert 0 <= load.busy <= 1


def test_a_gateway_that_is_not_heard_of_any_more_is_forgotten():
    a, b = Gateway("a"), Gateway("b")
    a.begin(0, 1.0)
    tell(a, b, 1.0)
    assert b.loads(1.0)[0] == (1, 0)
    b.gossip.forget(1.0 + FORGOTTEN_S)
    assert b.loads(1.0 + FORGOTTEN_S)[0] == (0, 0)


def test_what_it_has_heard_itself_is_not_told_on():
    a, b, c = Gateway("a"), Gateway("b"), Gateway("c")
    a.begin(0, 1.0)
    tell(a, b, 1.0)
    tell(b, c, 1.0)
    assert c.loads(1.0)[0] == (0, 0)
    assert b.standings[0].inflight == 0
    assert b.standings[0].inflight_elsewhere == 1


def test_a_prompt_that_another_gateway_has_sent_counts_as_held():
    a, b = Gateway("a"), Gateway("b")
    a.begin(1, 1.0, PIECES)
    tell(a, b, 1.0)
    call = Call("llama", TIER, prompt_tokens=WORK, pieces=PIECES)
    assert b.pool.cached_tokens(call) == a.pool.cached_tokens(call) == {"node-1": WORK}


def test_work_that_others_wait_for_is_waited_for():
    a, b = Gateway("a"), Gateway("b")
    for _ in range(5):
        a.begin(0, 1.0)
    tell(a, b, 1.0)
    waits = [load.pending_work for _, load in b.pool.snapshot(1.0)]
    assert waits[0] > 4 * WORK
    assert waits[1:] == [0, 0]


def test_time_that_others_took_is_not_put_down_to_the_endpoint():
    """Two gateways share one endpoint that reads 1,000 tokens in a tenth of a second, whose are read in turn."""
    a, b, alone = Gateway("a", 1), Gateway("b", 1), Gateway("alone", 1)
    now_s = 10.0
    for gateway in (a, b):
        gateway.begin(0, now_s)
    alone.begin(0, now_s)
    for turn in range(200):
        now_s += 0.1
        reading = (a, b)[turn % 2]
        for gateway in (reading, alone):
            gateway.first_token(0, now_s)
            gateway.end(0, now_s)
            gateway.begin(0, now_s)
        tell(a, b, now_s)
        tell(b, a, now_s)
    rates = [gateway.pool.snapshot(now_s)[0][1].work_per_s for gateway in (a, b, alone)]
    assert rates[0] == pytest.approx(rates[2], rel=0.15)
    assert rates[1] == pytest.approx(rates[2], rel=0.15)


def test_an_endpoint_that_has_failed_elsewhere_is_left_alone_for_a_moment():
    a, b = Gateway("a"), Gateway("b")
    for gateway in (a, b):
        for endpoint in range(3):
            gateway.begin(endpoint, 1.0)
    tell(a, b, 1.0)
    a.standings[0].failed(2.0, "connect", 0.5)
    tell(a, b, 2.0)
    assert b.standings[0].unavailable(2.0)[0] is not None
    assert b.standings[0].unavailable(2.0 + 5.1)[0] is None
    # The word of somebody else is not handed on as one's own.
    c = Gateway("c")
    tell(b, c, 2.0)
    assert c.standings[0].unavailable(2.0)[0] is None


def test_an_endpoint_that_answers_here_is_not_taken_out_by_others():
    a, b = Gateway("a"), Gateway("b")
    b.standings[0].succeeded(1.9)
    a.standings[0].failed(2.0, "connect", 0.5)
    tell(a, b, 2.0)
    assert b.standings[0].unavailable(2.0)[0] is None


def test_a_gateway_that_reaches_nobody_tells_of_itself():
    a, b = Gateway("a"), Gateway("b")
    for endpoint in range(3):
        a.standings[endpoint].failed(2.0, "connect", 0.5)
    tell(a, b, 2.0)
    out = [standing.unavailable(2.0)[0] is not None for standing in b.standings]
    assert sum(out) <= 1


def test_endpoints_that_only_share_a_name_are_not_mixed_up():
    one, other = (Endpoint("gpu", "llama", "llama", url=url) for url in ("http://a", "http://b"))
    assert name_of(one) != name_of(other)
    b = Gateway("b")
    b.gossip.take(Batch("x", 1, [Standings(123, 5)], []), 1.0)
    assert b.loads(1.0) == [(0, 0)] * 3


def test_batches_are_bounded_and_endpoints_that_find_no_place_come_next():
    many = MOST_SAID + 5
    a, b = Gateway("a", many), Gateway("b", many)
    for endpoint in range(many):
        a.begin(endpoint, 1.0, tuple(range(endpoint, endpoint + 20)))
    first = a.gossip.batch(1.0)
    assert len(first.standings) == MOST_SAID
    assert sum(len(each.pieces) for each in first.placed) < MOST_PIECES + 20
    assert len(first.placed) <= MOST_PLACED
    second = a.gossip.batch(1.0)
    assert len(second.standings) == 5
    for batch in (first, second):
        b.gossip.take(carried(batch), 1.0)
    assert sum(standing.inflight_elsewhere for standing in b.standings) == many


def test_without_anything_new_there_is_nothing_to_say():
    a = Gateway("a")
    a.gossip.batch(0.0)
    assert a.gossip.batch(0.05) is None
    a.begin(0, 1.0)
    assert a.gossip.batch(1.0) is not None
    assert a.gossip.batch(1.05) is None
    assert a.gossip.batch(1.0 + AGAIN_S) is not None


def test_one_that_leaves_is_not_spoken_of_any_more():
    a, b = Gateway("a"), Gateway("b")
    a.begin(0, 1.0)
    a.pool.remove("node-0")
    batch = a.gossip.batch(1.0)
    assert batch is None or all(each.endpoint != name_of(b.standings[0].endpoint) for each in batch.standings)
    b.pool.remove("node-1")
    tell(Gateway("c"), b, 1.0)
