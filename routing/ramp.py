"""How many calls an endpoint gets that has just joined, or is just back, beside others that are known.

Nothing has been seen of it yet, neither its speed nor whether it can do more than answer a probe. So it begins with a few
calls under way at a time, and may have more with each that it answers and as time passes: if it is slow to answer, that is
for the estimates to see. Where it is the only one there is nobody to spare it, and no ramp. The clock is an argument.
"""

from __future__ import annotations

FIRST_CALLS = 2
DOUBLING_S = 2.0
"""By time alone it may have twice as many after so long."""
FULL_CALLS = 64
"""Under way at a time: with these it is one like the others."""

RAMP_RETRY_S = 0.2
"""When to come back to one that has as many calls as it may for now."""
BUSY_RETRY_S = 1.0
"""The same where it is to have no more later."""


class Ramp:
    __slots__ = ("_answered", "_since_s")

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._answered = 0

    def answered(self) -> None:
        """It has answered a call."""
        self._answered += 1

    def most(self, now_s: float) -> int | None:
        """Calls that it may have under way now; None: it is over. It never falls."""
        doublings = min((now_s - self._since_s) / DOUBLING_S, 10.0)
        calls = int(FIRST_CALLS * 2.0**doublings) + self._answered
        return calls if calls < FULL_CALLS else None
