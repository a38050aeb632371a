"""Replicas that tell each other what they do, each at times of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.sim.policy import Policy

TAKES_S = 0.002
"""From one to another: a Redis in between, and two event loops that are busy."""


@runtime_checkable
class Gossips(Protocol):
    """A policy that has something to tell."""

    def say(self, now_s: float) -> object | None:
        """What the others are to know; None: nothing."""

    def hear(self, said: object, now_s: float) -> None:
        """Another one has said this."""


def gossip(
    policies: Sequence[Policy], every_s: float | None, until_s: float, at: Callable[..., None]
) -> None:
    """Have those say something every so often that can; `at` does something at a time."""
    talking = [policy for policy in policies if isinstance(policy, Gossips)]
    if every_s is None or len(talking) < 2:
        return
    period_s = every_s

    def say(own: int, now_s: float) -> None:
        said = talking[own].say(now_s)
        for number, other in enumerate(talking):
            if said is not None and number != own:
                at(now_s + TAKES_S, other.hear, said, now_s + TAKES_S)
        if now_s < until_s:
            at(now_s + period_s, say, own, now_s + period_s)

    for own in range(len(talking)):
        first_s = period_s * own / len(talking)
        at(first_s, say, own, first_s)
