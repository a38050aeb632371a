# ruff: noqa: S311 - dice for tests

import random

import pytest

from routing.draw import LOOK_AT, Later
from routing.pipeline import plan
from routing.pool import Pool
from routing.prefix import pieces_of
from routing.types import Call, Demands, Endpoint, Price, Tier

TIER = Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=4e9 / 3600)


def pool_of(count: int, dice: random.Random) -> Pool:
    """Endpoints with something to do, every tenth of which gets no calls."""
    pool = Pool()
    for index in range(count):
        cost = Price(input_pico_usd=dice.randint(1, 5) * 10_000, output_pico_usd=40_000)
        standing = pool.add(
            Endpoint(
                name=f"node-{index}",
                model="m",
                served_model="m",
                gpu=dice.choice(("h100", "l4")),
                context_tokens=8192,
                cost=cost,
            )
        )
        for start in range(dice.randrange(4)):
            run = standing.begin(Call("m", TIER, dice.randint(100, 2000)), start * 0.1)
            if start % 2:
                run.first_token(start * 0.1 + 0.05)
        if index % 10 == 3:
            standing.cool_down(0.0, 60.0)
    return pool


@pytest.mark.parametrize("count", [LOOK_AT + 1, 70, 300])
def test_the_quick_look_at_some_of_very_many_finds_what_the_thorough_one_does(count: int):
    dice = random.Random(count)
    pool, prompt = pool_of(count, dice), dice.randbytes(4000)
    for name in ("node-5", "node-40", "node-63", "node-13"):
        pool.prefixes.place(pool.standings[name].place, pieces_of(prompt))
    for _ in range(200):
        roll, tokens = dice.random(), dice.randint(1, 4000)
        call = Call("m", TIER, tokens, pieces=pieces_of(prompt[:tokens]))
        quick = pool.plan(call, 1.0, roll)
        thorough = plan(call, pool.snapshot(1.0), roll, cached_tokens=pool.cached_tokens(call))
        # Rounded otherwise, another one of two that are as good may come first.
        assert quick.ranked[0].score_nano_usd == pytest.approx(thorough.ranked[0].score_nano_usd)
        assert {each.endpoint.name for each in quick.ranked} == {
            each.endpoint.name for each in thorough.ranked
        }
        assert set(map(str, quick.rejected)) == set(map(str, thorough.rejected))
        assert {each.name for each in quick.passed_over} == {each.name for each in thorough.passed_over}
        assert quick.retry_after_s == thorough.retry_after_s


def test_of_very_many_those_that_get_no_calls_any_more_are_not_drawn_and_those_back_are():
    pool = pool_of(200, random.Random(1))
    call = Call("m", TIER, 100)
    out = pool.plan(call, 1.0, 0.5).ranked[0].endpoint.name
    pool.standings[out].cool_down(1.0, 10.0)
    while_out = pool.plan(call, 1.0, 0.5)
    assert out not in {each.endpoint.name for each in while_out.ranked}
    assert out in {each.endpoint.name for each in while_out.rejected}
    assert out not in {each.endpoint.name for each in pool.plan(call, 12.0, 0.5).rejected}


def test_a_call_that_few_of_very_many_could_serve_is_looked_at_thoroughly():
    pool = pool_of(200, random.Random(1))
    large = pool.add(Endpoint(name="large", model="m", served_model="m", context_tokens=100_000))
    assert [each.endpoint for each in pool.plan(Call("m", TIER, 50_000), 1.0, 0.5).ranked] == [large.endpoint]
    demanding = Call("m", TIER, 100, demands=Demands(max_ttft_s=1e-9))
    assert not pool.plan(demanding, 1.0, 0.5).ranked


def test_very_many_of_which_none_gets_calls_give_a_plan_without_any():
    pool = pool_of(100, random.Random(1))
    for standing in pool:
        standing.cool_down(1.0, 20.0)
    found = pool.plan(Call("m", TIER, 100), 1.0, 0.5)
    assert (len(found.ranked), len(found.rejected), len(found.passed_over)) == (0, 100, 0)


def test_what_is_said_later_is_made_once_and_only_if_asked_for():
    made = []

    def make() -> list[int]:
        made.append(1)
        return [4, 5]

    later = Later(2, make)
    assert (len(later), made) == (2, [])
    assert (list(later), later[1:], made) == ([4, 5], [5], [1])
