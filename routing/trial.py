"""How many calls an endpoint gets that has been out and has not answered since.

One at first, to see whether it is there: should everybody who waits be sent to it at once, they would all fail with it. But
that one may take long, and those who wait have little patience, so others follow by time alone, twice as many each time.
It is over with the first answer. The clock is an argument.
"""

from __future__ import annotations

DOUBLING_S = 0.25
"""Between the first call and the second, and from so many to twice as many."""

MOST_DOUBLINGS = 6.0
"""Then it gets as many as there are: with 64 calls one that is ramping up is like the others, too."""

TRIAL_RETRY_S = 0.05
"""When to come back where it has as many as it may."""


class Trial:
    __slots__ = ("_calls", "_since_s")

    def __init__(self) -> None:
        self._calls = 0
        self._since_s = 0.0
        """When the first was sent."""

    def sent(self, now_s: float) -> None:
        """It has been sent a call."""
        if not self._calls:
            self._since_s = now_s
        self._calls += 1

    def has_room(self, now_s: float) -> bool:
        """Whether it may have another one."""
        if not self._calls:
            return True
        doublings = (now_s - self._since_s) / DOUBLING_S
        return doublings >= MOST_DOUBLINGS or self._calls < int(2.0**doublings)
