import random
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.arrivals import constant, poisson, until


def dice(seed):
    return random.Random(seed)  # noqa: S311 - arrivals, not secrets


rates = st.floats(min_value=0.01, max_value=1e5)


@given(rates)
def test_constant_arrivals_begin_at_once_and_never_drift(rate):
    times = list(islice(constant(rate), 1001))
    assert times[0] == 0.0
    assert times[1000] == pytest.approx(1000 / rate)


@given(rates, st.integers())
def test_poisson_arrivals_never_go_back_and_repeat_with_the_same_dice(rate, seed):
    times = list(islice(poisson(rate, dice(seed)), 50))
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times == list(islice(poisson(rate, dice(seed)), 50))


def test_poisson_arrivals_come_at_the_rate_and_are_as_uneven_as_they_should_be():
    times = list(islice(poisson(50, dice(7)), 20_000))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)  # what tells an exponential from anything more regular


def test_arrivals_end_before_the_given_moment():
    assert list(until(0.35, constant(10))) == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_is_not_above_zero_is_refused(rate):
    with pytest.raises(ValueError, match="above zero"):
        next(iter(constant(rate)))
    with pytest.raises(ValueError, match="above zero"):
        next(poisson(rate, dice(0)))
