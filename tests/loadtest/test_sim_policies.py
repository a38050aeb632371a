"""Each peer's formula on a case small enough to be worked out by hand."""

import random
from collections.abc import Callable

import pytest

from loadtest.sim import fleet, peers, plain
from loadtest.sim.calls import SimCall
from loadtest.sim.holders import Holders
from loadtest.sim.policy import Flight, Place, Policy, Scraped, Story

NODES = fleet.equal()[:3]


def place(scraped: list[Scraped] | None = None) -> Place:
    idle = [Scraped(0, 0, 0.0) for _ in NODES]
    return Place(NODES, (), 128, lambda _: scraped or idle)


def call(*pages: int, earlier_tokens: int = 0) -> SimCall:
    return SimCall(0.0, len(pages) * 128, 100, pages, earlier_tokens=earlier_tokens)


def send(policy: Policy, asked: SimCall, endpoint: int, now_s: float = 0.0) -> Flight:
    flight = Flight(asked, endpoint, 0, now_s, Story(asked))
    policy.sent(flight, now_s)
    return flight


def finish(policy: Policy, flight: Flight, now_s: float = 1.0) -> None:
    policy.first_token(flight, now_s)
    policy.ended(flight, now_s, None)


def choice(policy: Policy, asked: SimCall, roll: float = 0.0) -> int | None:
    return policy.choose(asked, [0, 1, 2], 1.0, roll)


@pytest.mark.parametrize(
    "make",
    [
        *(plain.RandomChoice, plain.RoundRobin, plain.PowerOfTwo, plain.LeastInFlight, plain.Chwbl),
        *(plain.LeastPendingTokens, peers.SglangCacheAware, peers.SglangLibrary, peers.Dynamo),
        *(peers.LlmD, peers.Aibrix, peers.ProductionStack, peers.Smetric),
    ],
)
def test_every_policy_stays_among_those_open_and_names_nobody_where_nobody_is(
    make: Callable[[Place], Policy],
):
    policy, dice = make(place()), random.Random(1)
    for number in range(30):
        asked = call(number % 3, 10 + number)
        open_to = dice.sample(range(3), dice.randint(1, 3))
        chosen = policy.choose(asked, open_to, float(number), dice.random())
        assert chosen in open_to
        flight = send(policy, asked, chosen, float(number))
        if number % 2:
            finish(policy, flight, number + 0.5)
    assert policy.choose(call(1), [], 40.0, 0.5) is None


def test_round_robin_takes_turns():
    policy = plain.RoundRobin(place())
    assert sorted(choice(policy, call(1)) for _ in range(3)) == [0, 1, 2]


def test_power_of_two_never_takes_the_busiest():
    policy = plain.PowerOfTwo(place())
    send(policy, call(1), 1)
    assert 1 not in {choice(policy, call(1), roll / 100) for roll in range(100)}


def test_least_in_flight_and_least_tokens_differ_over_one_long_prompt():
    for make, expected in ((plain.LeastInFlight, 0), (plain.LeastPendingTokens, 1)):
        policy = make(place())
        send(policy, call(*range(50)), 0)
        for endpoint in (1, 1, 2, 2, 2):
            send(policy, call(1), endpoint)
        assert choice(policy, call(7)) == expected


def test_consistent_hashing_goes_home_until_home_has_a_quarter_more_than_its_share():
    policy = plain.Chwbl(place())
    home = choice(policy, call(5, 6))
    assert home is not None
    assert choice(policy, call(5, 99)) == home
    flight = send(policy, call(5, 6), home)
    # 1.25 x (1 + 1) / 3 = 0.83: no room for a second.
    assert choice(policy, call(5, 6)) != home
    finish(policy, flight)
    assert choice(policy, call(5, 6)) == home


def test_sglang_follows_the_longest_match_over_its_threshold_and_else_the_smallest_tree():
    policy = peers.SglangCacheAware(place())
    for endpoint, pages in enumerate([(1, 2, 3, 4), (9, 8), (7, 6, 5)]):
        finish(policy, send(policy, call(*pages), endpoint))
    assert choice(policy, call(1, 2, 50, 51)) == 0
    assert choice(policy, call(1, 50, 51, 52)) == 1


def test_sglang_forgets_the_match_when_load_is_out_of_balance():
    policy = peers.SglangCacheAware(place())
    for _ in range(65):
        send(policy, call(1, 2, 3), 0)
    assert choice(policy, call(1, 2, 3)) in {1, 2}


def test_the_library_keeps_ten_thousand_characters_of_each():
    policy = peers.SglangLibrary(place())
    send(policy, call(*range(100)), 1)
    policy.choose(call(1), [0, 1, 2], 31.0, 0.0)
    assert policy.holders.held(1) == 19


def test_dynamo_adds_what_is_to_be_read_to_what_runs():
    policy = peers.Dynamo(place())
    choice(policy, call(*range(20)))
    finished = send(policy, call(*range(20)), 0)
    finish(policy, finished)
    # 0 holds it all and is idle: 0 to read + 20 pages, against 20 + 20 elsewhere.
    assert choice(policy, call(*range(20))) == 0
    choice(policy, call(*range(100, 130)))
    send(policy, call(*range(100, 130)), 0)
    # Now 0 has 30 pages to read and 30 running: 30 + 50 against 20 + 20.
    assert choice(policy, call(*range(20))) in {1, 2}


def test_llm_d_weighs_prefix_three_queue_two_and_kv_two():
    busy = [Scraped(10, 8, 0.5), Scraped(0, 0, 0.0), Scraped(5, 8, 0.1)]
    policy = peers.LlmD(place(busy))
    send(policy, call(1, 2), 0)
    # 0: 3 x 1 + 2 x 0 + 2 x 0.5 = 4; 1: 0 + 2 + 2 = 4; 2: 0 + 1 + 1.8 = 2.8.
    assert {choice(policy, call(1, 2), roll) for roll in (0.0, 0.9)} == {0, 1}
    send(policy, call(1), 1)
    assert choice(policy, call(1, 2), 0.0) == 1


def test_aibrix_takes_the_longest_match_that_is_not_much_busier_than_the_rest():
    policy = peers.Aibrix(place())
    finish(policy, send(policy, call(1, 2, 3), 0))
    finish(policy, send(policy, call(1), 1))
    assert choice(policy, call(1, 2, 3)) == 0
    for _ in range(3):
        send(policy, call(8), 0)
    # Running 3, 0, 0: mean 1, deviation 1.41; 3 is too many.
    assert choice(policy, call(1, 2, 3)) == 1


def test_production_stack_gives_a_full_hit_for_one_mean_load():
    policy = peers.ProductionStack(place())
    finish(policy, send(policy, call(1, 2), 2))
    assert choice(policy, call(1, 2)) == 2
    for endpoint in (0, 2, 2, 2):
        send(policy, call(50 + endpoint), endpoint)
    # In flight 1, 0, 3, mean 4/3: 2 scores 1 - 1.25, 1 scores 0 + 1.
    assert choice(policy, call(1, 2)) == 1


def test_smetric_keeps_a_conversation_until_its_worker_is_late():
    policy = peers.Smetric(place())
    for number in range(8):
        # 1,280 tokens a second, learned on every worker.
        for endpoint in range(3):
            asked = call(*range(1000 * number + 100, 1000 * number + 110))
            policy.choose(asked, [endpoint], 0.0, 0.0)
            finish(policy, send(policy, asked, endpoint), now_s=1.0)
    first = choice(policy, call(1, 2, 3, 4))
    assert first is not None
    finish(policy, send(policy, call(1, 2, 3, 4), first))
    follow_up = call(1, 2, 3, 4, 5, earlier_tokens=4 * 128)
    assert choice(policy, follow_up) == first
    asked = call(*range(9000, 9020))
    policy.choose(asked, [first], 1.0, 0.0)
    send(policy, asked, first)
    # 2,560 tokens pending at 1,280 a second: 2 s, where 1.04 s are allowed.
    assert choice(policy, follow_up) != first


def test_an_index_forgets_by_time_by_size_and_with_its_endpoint():
    timed = Holders(2, lifetime_s=10.0)
    timed.add(0, [1, 2], 0.0)
    assert timed.matches([1, 2, 3], 5.0) == [2, 0]
    assert timed.matches([1, 2, 3], 11.0) == [0, 0]
    sized = Holders(2, [2, 2])
    sized.add(1, [1, 2], 0.0)
    sized.add(1, [3], 0.0)
    assert sized.matches([1, 2], 0.0) == [0, 1]
    sized.drop(1)
    assert sized.matches([1, 2], 0.0) == [0, 0]
