import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from routing.estimate import STALL_SHARE, ask, estimates, prefill_work
from routing.types import Call, Endpoint, Estimate, Load, Price, Tier

TIER = Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=1e6)
DEAR = Endpoint(name="a", model="m", served_model="m", cost=Price(50_000, 100_000, 25_000))


def estimate(asked, endpoint, load, cached_tokens=0):
    (expected,) = estimates(asked, [(endpoint, load)], {endpoint.name: cached_tokens})
    return Estimate(*expected)


def call(prompt_tokens: int = 8000, max_tokens: int | None = None):
    return Call("m", TIER, prompt_tokens, max_tokens)


@pytest.mark.parametrize(
    ("prompt", "cached", "work"),
    [
        (8000, 0, 8000 * (1 + 4000 / 40_000)),
        (8000, 6000, 2000 * (1 + 7000 / 40_000)),
        (8000, 8000, 16 * (1 + 7992 / 40_000)),
        (8000, 9000, 16 * (1 + 7992 / 40_000)),
        (0, 0, 16 * (1 + 8 / 40_000)),
    ],
)
def test_work_is_the_uncached_part_of_the_prompt_dearer_the_longer_its_context(
    prompt: int, cached: int, work: float
):
    assert prefill_work(prompt, cached) == pytest.approx(work)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_work_grows_with_the_prompt_and_shrinks_with_what_is_cached(prompt: int, more: int, cached: int):
    assert 0 < prefill_work(prompt, cached) <= prefill_work(prompt + more, cached)
    assert prefill_work(prompt, cached + more) <= prefill_work(prompt, cached)


def test_the_first_token_waits_for_network_queue_and_own_prefill():
    load = Load(pending_work=3000.0, work_per_s=2000.0, base_ttft_s=0.1, itl_s=0.03)
    expected = estimate(ask(call()), DEAR, load)
    assert expected.ttft_s == pytest.approx(0.1 + 1.5 + 8800 / 2000)
    assert expected.itl_s == 0.03


def test_a_cached_prefix_saves_seconds_and_money():
    load = Load(work_per_s=2000.0)
    cold, warm = (estimate(ask(call(max_tokens=0)), DEAR, load, cached) for cached in (0, 6000))
    assert warm.ttft_s == pytest.approx(prefill_work(8000, 6000) / 2000)
    assert warm.ttft_s < cold.ttft_s
    assert cold.cost_nano_usd == 8000 * 50
    assert warm.cost_nano_usd == 2000 * 50 + 6000 * 25


def test_cached_tokens_cost_the_same_where_no_price_for_them_is_set():
    endpoint = Endpoint(name="a", model="m", served_model="m", cost=Price(50_000, 0))
    assert estimate(ask(call()), endpoint, Load(), 6000).cost_nano_usd == 8000 * 50


@pytest.mark.parametrize(
    ("max_tokens", "mean", "output"), [(None, 300.4, 300), (100, 300.0, 100), (0, 300.0, 0)]
)
def test_output_is_expected_to_be_the_mean_or_what_is_allowed(
    max_tokens: int | None, mean: float, output: int
):
    asked = ask(call(max_tokens=max_tokens), mean)
    assert asked.output_tokens == output
    assert estimate(asked, DEAR, Load()).cost_nano_usd == 8000 * 50 + output * 100


def test_prefill_stalls_those_that_are_decoding_there_and_one_more_slows_them():
    asked = ask(call(max_tokens=100), 200.0)
    load = Load(work_per_s=2000.0, itl_s=0.02, crowding=0.05)
    alone, busy = (estimate(asked, DEAR, structs.replace(load, decoding=n)) for n in (0, 8))
    assert alone.imposed_s == 0.0
    assert busy.imposed_s == pytest.approx(STALL_SHARE * 8 * (8800 / 2000 + 100 * 0.02 * 0.05))


def test_those_still_to_come_are_delayed_the_more_the_busier_it_is():
    asked = ask(call())
    load = Load(pending_work=1000.0, work_per_s=2000.0, arrivals_per_s=0.5)
    own_s, queue_s = 8800 / 2000, 0.5
    idle, half, full = (estimate(asked, DEAR, structs.replace(load, busy=b)) for b in (0.0, 0.5, 1.0))
    assert idle.imposed_s == pytest.approx(own_s * 0.5 * (queue_s + own_s))
    assert half.imposed_s == pytest.approx(2 * idle.imposed_s)
    assert full.imposed_s == pytest.approx(idle.imposed_s / 0.3)


def test_costs_are_whole_numbers_rounded_to_the_nearest():
    endpoint = Endpoint(name="a", model="m", served_model="m", cost=Price(1, 0))
    costs = [estimate(ask(call(tokens, 0)), endpoint, Load()).cost_nano_usd for tokens in (0, 499, 500, 1499)]
    assert costs == [0, 0, 1, 1]
    assert all(type(cost) is int for cost in costs)
