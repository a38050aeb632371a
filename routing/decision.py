"""All that a plan is made of, as one value: what the decision log keeps and what can be planned again later.

A call that nobody asks about is planned without making one of these.
"""

from __future__ import annotations

from msgspec import Struct

from routing.estimate import MEAN_OUTPUT_TOKENS
from routing.pipeline import plan
from routing.types import Call, Endpoint, Load, Plan  # noqa: TC001 - msgspec reads annotations at run time


class Decision(Struct, frozen=True):
    """What `routing.pipeline.plan` was given. The same decision always makes the same plan."""

    call: Call
    snapshot: tuple[tuple[Endpoint, Load], ...]
    roll: float
    expected_output_tokens: float = MEAN_OUTPUT_TOKENS
    cached_tokens: dict[str, int] = {}
    """Of the prompt, expected in the prefix cache of each endpoint, by name."""

    departures: dict[str, float] = {}
    """In how many seconds endpoints leave that have said so, by name."""

    def plan(self) -> Plan:
        return plan(
            self.call,
            self.snapshot,
            self.roll,
            self.expected_output_tokens,
            self.cached_tokens,
            self.departures,
        )
