from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from backends.usage import MOST_TOKENS
from gateway.ledger import ONCE, amount_nano_usd, multiplied
from routing.types import Price, Usage

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

DEAREST = 1_000_000 * 1_000_000
"""Pico-USD per token: the most that a configuration may ask, a million USD per million tokens."""
SMALL_OR_ANY = st.integers(0, 3000) | st.integers(0, DEAREST)
PRICES = st.builds(Price, SMALL_OR_ANY, SMALL_OR_ANY, st.none() | SMALL_OR_ANY, st.none() | SMALL_OR_ANY)
MULTIPLIERS = st.integers(0, 3 * ONCE) | st.integers(0, 1000 * ONCE)
TOKENS = st.integers(0, 3000) | st.integers(0, MOST_TOKENS)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    prompt = draw(TOKENS)
    completion = draw(TOKENS)
    cached, reasoning = draw(st.integers(0, prompt)), draw(st.integers(0, completion))
    return Usage(prompt, cached, completion, draw(st.booleans()), reasoning)


def exact_nano_usd(price: Price, usage: Usage) -> Fraction:
    """In USD per token, as one would write it down."""
    per_token = [Fraction(pico, 10**12) for pico in (price.input_pico_usd, price.output_pico_usd)]
    cached = (
        per_token[0] if price.cached_input_pico_usd is None else Fraction(price.cached_input_pico_usd, 10**12)
    )
    uncached_tokens = usage.prompt_tokens - usage.cached_tokens
    usd = (
        uncached_tokens * per_token[0] + usage.cached_tokens * cached + usage.completion_tokens * per_token[1]
    )
    if price.reasoning_pico_usd is not None:
        usd += usage.reasoning_tokens * (Fraction(price.reasoning_pico_usd, 10**12) - per_token[1])
    return usd * 10**9


@patiently
@given(PRICES, usages())
def test_an_amount_is_exact_to_the_nano_usd_and_rounded_half_to_even(price: Price, usage: Usage):
    amount = amount_nano_usd(price, usage)
    assert type(amount) is int
    assert amount == round(exact_nano_usd(price, usage))  # Fraction rounds half to even


@patiently
@given(PRICES, usages(), MULTIPLIERS, MULTIPLIERS)
def test_a_price_is_multiplied_exactly_and_the_amount_rounded_once(
    price: Price, usage: Usage, tier: int, tenant: int
):
    exact = exact_nano_usd(price, usage) * Fraction(tier, ONCE) * Fraction(tenant, ONCE)
    assert amount_nano_usd(multiplied(multiplied(price, tier), tenant), usage) == round(exact)
    assert multiplied(price, ONCE) == price


@pytest.mark.parametrize(
    ("pico_usd", "nano_usd"),
    [
        (0, 0),
        (1, 0),
        (499, 0),
        (500, 0),
        (501, 1),
        (999, 1),
        (1499, 1),
        (1500, 2),
        (2500, 2),
        (2501, 3),
        (3500, 4),
    ],
)
def test_a_half_goes_to_the_even_neighbour(pico_usd: int, nano_usd: int):
    assert amount_nano_usd(Price(pico_usd), Usage(1)) == nano_usd
    assert amount_nano_usd(Price(0, pico_usd), Usage(9, 0, 1)) == nano_usd
    assert amount_nano_usd(Price(1_000_000, 0, pico_usd), Usage(1, 1)) == nano_usd


@patiently
@given(PRICES, usages())
def test_cached_tokens_cost_what_others_do_where_they_have_no_price_of_their_own(price: Price, usage: Usage):
    plain = Price(price.input_pico_usd, price.output_pico_usd)
    assert amount_nano_usd(plain, usage) == amount_nano_usd(
        plain, Usage(usage.prompt_tokens, 0, usage.completion_tokens)
    )
    free = Price(price.input_pico_usd, price.output_pico_usd, 0)
    uncached = usage.prompt_tokens - usage.cached_tokens
    assert amount_nano_usd(free, usage) == amount_nano_usd(plain, Usage(uncached, 0, usage.completion_tokens))


@patiently
@given(PRICES, usages(), st.integers(0, 1000), st.integers(0, 1000))
def test_more_tokens_never_cost_less(price: Price, usage: Usage, prompt: int, completion: int):
    more = structs.replace(
        usage,
        prompt_tokens=usage.prompt_tokens + prompt,
        completion_tokens=usage.completion_tokens + completion,
    )
    assert amount_nano_usd(price, more) >= amount_nano_usd(price, usage) >= 0


def test_the_dearest_call_fits_the_database():
    dearest = amount_nano_usd(Price(DEAREST, DEAREST, DEAREST), Usage(MOST_TOKENS, 0, MOST_TOKENS))
    assert dearest == 2 * 10**18 < 2**63
