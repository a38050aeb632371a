"""When a second attempt is to race the first: pure arithmetic on how long it has waited.

An attempt is late when it has waited for longer than nine in ten calls of its model wait, measured in what was predicted
for it: the trigger. A constant would be too long for a short prompt and too short for a long one; a predicted time alone
would be passed by half the calls.

Being late is no reason by itself. The guard asks whether another endpoint is expected to answer in at most half the time
that the first is still expected to need, the delay of others included, and whether those seconds are worth its price.
Near saturation everybody is late and nobody would be quicker, so the guard silences hedging there by itself. Whatever
else is wrong, the budget keeps hedges at a fixed share of the calls.

A stream that has begun may turn out to run far below the speed predicted for it. Then there is nothing to race for: what it
has said is kept, and another endpoint goes on with it, where that is worth what it takes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from routing.types import Call, Candidate, Tier

Refused = Literal["queue", "guard", "price", "budget"]
"""Why nobody is asked beside one that is late, or takes over from one that is slow: calls wait for a place; nobody would be
so much quicker, or not for that price; both together would pass the call's cap; too many have been already."""

QUANTILE = 0.9
"""Share of the calls that are not late."""

STEP = 0.05
"""How far one call moves the quantile at most, as a logarithm: some hundred calls move it by a factor that matters."""

_UP = math.exp(STEP * QUANTILE)
_DOWN = math.exp(-STEP * (1.0 - QUANTILE))

PRIOR_RATIO = 2.0
"""Of observed to predicted, that nine in ten calls are expected not to exceed, before any has been seen."""

LEAST_RATIO = 1.0
MOST_RATIO = 20.0
"""Nobody is late before its predicted time; and a night in which everybody was shall be forgotten by morning."""

LEAST_WAIT_S = 0.1
"""Nothing is late before: what a person does not notice is not worth a second attempt."""

QUICKER = 0.5
"""At most this share of what the first still needs may the other one need."""

FAR_SLOWER = 3.0
"""A stream that needs so many times as long for a token as predicted is slow: as nine in ten do not exceed, where predictions are
known to be too short."""

MOST_PACE_RATIO = 2.5
"""So much of that is put down to predictions, and the rest to workers."""

SLOW_AFTER_S = 2.0
"""No stream is before: a prompt that is read beside it makes it stand still as well."""

PATIENT = 3.0
LEAST_PATIENCE_S = 5.0
"""A reply in one piece is waited for so many times as long as nine in ten take at the most, measured in what is predicted for
each, and so long at least; but once a call: it may be that it takes so long everywhere."""

MOST_OUTPUT = 10.0
"""So many times the tokens expected may a call write that names no limit."""

SHARE = 0.02
"""Of the calls that may be hedged."""

MOST_SAVED = 10.0
"""Hedges that the budget holds at most: what a worker that falls silent under some dozen calls may take at once."""

FIRST_SAVED = 1.0
"""Hedges that it holds at the start."""


class Lateness:
    """By what factor first tokens of a model come later than predicted: the running quantile of it, in one number.

    A call above the estimate raises it, one below lowers it, by steps in such a ratio that they balance where QUANTILE of
    the calls are below.
    """

    __slots__ = ("_most", "ratio")

    def __init__(self, prior: float = PRIOR_RATIO, most: float = MOST_RATIO) -> None:
        self.ratio = prior
        self._most = most

    def saw(self, observed_s: float, predicted_s: float) -> None:
        """A first token has come, or another endpoint was quicker: then it would have taken this long at the least."""
        ratio = self.ratio
        ratio *= _UP if observed_s > ratio * predicted_s else _DOWN
        self.ratio = min(self._most, max(LEAST_RATIO, ratio))

    def late_after_s(self, predicted_s: float) -> float:
        """How long an attempt may wait for its first token before it is late."""
        late_s = self.ratio * predicted_s
        return max(LEAST_WAIT_S, late_s)


MOVES_SHARE = 0.1
MOST_MOVES_SAVED = 50.0
FIRST_MOVES_SAVED = 10.0
"""The same of streams that are moved. Nothing of their work is lost, and a worker that slows down does so under all that it has:
their bound is for estimates that are wrong."""


class Budget:
    """Saves up a share of a hedge at every call, up to some, and spends one at every hedge."""

    __slots__ = ("_most", "_saved", "_share")

    def __init__(self, share: float = SHARE, most: float = MOST_SAVED, saved: float = FIRST_SAVED) -> None:
        self._share = share
        self._most = most
        self._saved = saved

    def call(self) -> None:
        """A call has begun."""
        self._saved = min(self._most, self._saved + self._share)

    def spend(self) -> bool:
        """Take one hedge, if there is one."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


class Hedging:
    """What hedging knows of one model's calls."""

    __slots__ = ("budget", "lateness", "moves", "pace", "wholes")

    def __init__(self) -> None:
        self.lateness = Lateness()
        self.budget = Budget()
        self.moves = Budget(MOVES_SHARE, MOST_MOVES_SAVED, FIRST_MOVES_SAVED)
        """For streams that are slow."""
        self.pace = Lateness(most=MOST_PACE_RATIO)
        """Of streams, by the time that their tokens take."""
        self.wholes = Lateness(prior=MOST_RATIO)
        """Of replies in one piece, by the time predicted for as many tokens as they may have. Until it is known, they are
        waited for: they teach nothing of how fast a worker is.
        """

    def racer(
        self, waited_s: float, first: Candidate, others: Iterable[Candidate], call: Call
    ) -> Candidate | Refused:
        """Whom to ask beside `first`, which has waited so long for its first token. What is given has been paid for."""
        found = quicker(waited_s, first.estimate.ttft_s, others, call.tier)
        return self._granted(found, first, call, self.budget)

    def heir(
        self, going: Going, first: Candidate, others: Iterable[Candidate], call: Call
    ) -> Candidate | Refused:
        """Who is to go on with a stream that `first` goes on with so slowly."""
        return self._granted(better(going, others, call.tier), first, call, self.moves)

    def _granted(
        self, found: Candidate | None, first: Candidate, call: Call, budget: Budget
    ) -> Candidate | Refused:
        if found is None:
            return "guard"
        if not within_cap(first, found, call.demands.max_input_pico_usd):
            return "price"
        return found if budget.spend() else "budget"

    def overdue(self, waited_s: float, longest_s: float) -> bool:
        """Whether a reply in one piece takes longer than it ever should, for which `longest_s` are predicted at the most."""
        return waited_s >= LEAST_PATIENCE_S and waited_s > PATIENT * self.wholes.ratio * longest_s


def still_needs_s(waited_s: float, predicted_s: float) -> float:
    """How long an attempt that has waited so long without a first token is expected to take from now on.

    Up to its predicted time, the rest of it. Beyond, as long again as it has waited: what made it late is not known, may be
    a short queue or a worker that will never answer, and of such a mixture the one thing to be said is that the longer it
    has lasted, the longer it will last. (A Pareto tail with index 2 has exactly this mean residual life.)
    """
    return predicted_s - waited_s if waited_s < predicted_s else waited_s


def longest_s(expected: Candidate, most_tokens: int | None, expected_tokens: float) -> float:
    """What is predicted for a reply with as many tokens as it may have."""
    most = most_tokens or MOST_OUTPUT * expected_tokens
    return expected.estimate.ttft_s + most * expected.estimate.itl_s


def quicker(waited_s: float, predicted_s: float, others: Iterable[Candidate], tier: Tier) -> Candidate | None:
    """The guard: the first of `others`, in the order of their plan, that is worth a second attempt; None where none is.

    Worth it is one that takes at most QUICKER of what the first still needs, where the tier would pay its price for the
    seconds so saved: flex, to which time is worth nothing, is hedged only where a second attempt costs nothing. What it
    takes is the time to its first token, and that by which it delays others there: a prompt that is read twice makes all
    others wait, and in simulation a guard that did not count them slowed down a pool near saturation by a third.
    """
    needs_s = still_needs_s(waited_s, predicted_s)
    for candidate in others:
        expected = candidate.estimate
        takes_s = expected.ttft_s + expected.imposed_s
        worth_nano_usd = (needs_s - takes_s) * tier.waiting_nano_usd_per_s
        if takes_s <= QUICKER * needs_s and expected.cost_nano_usd <= worth_nano_usd:
            return candidate
    return None


def is_slow(ran_s: float, tokens: int, itl_s: float, ratio: float = 1.0) -> bool:
    """Whether a stream runs far below its predicted speed that has brought so many tokens in the time since its first one,
    where nine in ten take `ratio` times as long as predicted at the most.

    The token that has not come yet counts as if it came now.
    """
    return ran_s >= SLOW_AFTER_S and ran_s > FAR_SLOWER * ratio * itl_s * (tokens + 1)


class Going(Struct, frozen=True):
    """How a stream goes that has begun."""

    ran_s: float
    """Since its first token, less what prompts read beside it should have taken."""
    tokens: int
    """After that."""
    itl_s: float
    """Predicted for it, seconds per token."""
    left_tokens: float
    """Expected to come."""
    ratio: float = 1.0

    @property
    def slow(self) -> bool:
        return is_slow(self.ran_s, self.tokens, self.itl_s, self.ratio)

    @property
    def still_needs_s(self) -> float:
        """How long it is expected to take from now on: as slow as it has been, but no longer than it has been so, for the
        same reason as above.
        """
        as_slow_s = self.left_tokens * self.ran_s / (self.tokens + 1)
        return min(as_slow_s, self.ran_s + self.left_tokens * self.itl_s)


def left_tokens(written: int, expected: float, most: int | None) -> float:
    """How many tokens an answer is expected to have still, that was expected to have so many in all, and has `most` at most.

    One that has come to what was expected is expected to be half as long again, as are all of that length.
    """
    left = max(expected - written, written / 2.0)
    return left if most is None else min(left, max(0, most - written))


def better(going: Going, others: Iterable[Candidate], tier: Tier) -> Candidate | None:
    """The guard for streams: the first of `others` that is worth going on at; None where none is, or the stream is not slow.

    The tokens that are left have to be made there as well, so what it loses by staying is what is beyond these. To begin
    there, the delay of others included, may take at most QUICKER of that.
    """
    if not going.slow:
        return None
    needs_s = going.still_needs_s
    for candidate in others:
        expected = candidate.estimate
        loses_s = needs_s - going.left_tokens * expected.itl_s
        takes_s = expected.ttft_s + expected.imposed_s
        worth_nano_usd = (loses_s - takes_s) * tier.waiting_nano_usd_per_s
        if takes_s <= QUICKER * loses_s and expected.cost_nano_usd <= worth_nano_usd:
            return candidate
    return None


def within_cap(first: Candidate, second: Candidate, most_input_pico_usd: int | None) -> bool:
    """Whether both together stay within the call's cap on the price of input: its prompt is then read twice."""
    if most_input_pico_usd is None:
        return True
    both = first.endpoint.cost.input_pico_usd + second.endpoint.cost.input_pico_usd
    return both <= most_input_pico_usd
