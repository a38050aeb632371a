"""When calls are meant to begin, in seconds from the start of a run.

An open loop: the times do not depend on how the target answers, as real clients do not wait for one another. Pure;
the dice are an argument, so a run can be repeated exactly.
"""

from __future__ import annotations

from itertools import count, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random


def constant(rate_per_s: float) -> Iterator[float]:
    """One call every `1 / rate_per_s` seconds, without end, the first at once."""
    rate = _positive(rate_per_s)
    return (number / rate for number in count())


def poisson(rate_per_s: float, dice: Random) -> Iterator[float]:
    """Independent arrivals at `rate_per_s` on average, without end: exponential gaps, memoryless."""
    _positive(rate_per_s)
    due_s = 0.0
    while True:
        due_s += dice.expovariate(rate_per_s)
        yield due_s


def until(end_s: float, arrivals: Iterator[float]) -> Iterator[float]:
    """Those of `arrivals` that come before `end_s`."""
    return takewhile(lambda due_s: due_s < end_s, arrivals)


def _positive(rate_per_s: float) -> float:
    if not rate_per_s > 0:
        raise ValueError(f"a rate of arrivals is above zero, not {rate_per_s}")
    return rate_per_s
