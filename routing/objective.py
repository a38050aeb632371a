"""Which of the endpoints that can serve a call is the best, as one ranking in nano-USD.

Waiting is turned into money at what the tier says it is worth, so that price and seconds can be added. Taking simply
the cheapest that is on time would pile work on one node until everybody waits just under the limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routing.types import Candidate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routing.types import Endpoint, Estimate, Tier

_Keyed = tuple[float, float, int, Candidate]
"""What is compared first, what settles that, the place in the snapshot (so that candidates are never compared)."""


def rank(
    tier: Tier, estimated: Sequence[tuple[Endpoint, Estimate]], output_tokens: int, roll: float
) -> tuple[Candidate, ...]:
    """The candidates, best first.

    Those expected on time for the tier come first, by `cost + value of waiting x seconds`; a tie (every equal price,
    where waiting is worth nothing) goes to fewer seconds. Those expected late follow, fastest first token first, then by
    the same score. Scores are nano-USD, from 0 up. What is still exactly equal, such as two idle endpoints alike, takes
    turns by `roll`, uniform in [0, 1): each of the equals is as likely to come first. Nothing else depends on the order
    of `estimated`.
    """
    value = tier.waiting_nano_usd_per_s
    target_s = tier.max_ttft_s
    on_time: list[_Keyed] = []
    late: list[_Keyed] = []
    for index, (endpoint, estimate) in enumerate(estimated):
        ttft_s = estimate.ttft_s
        # 2 x time to first token + the whole call + delay to others: before the first token a reader sits in front of
        # nothing, so those seconds count three times, once as a part of the whole.
        seconds = 3.0 * ttft_s + output_tokens * estimate.itl_s + estimate.imposed_s
        score = estimate.cost_nano_usd + value * seconds
        if ttft_s <= target_s:
            on_time.append((score, seconds, index, Candidate(endpoint, estimate, score, True)))
        else:
            late.append((ttft_s, score, index, Candidate(endpoint, estimate, score, False)))
    return tuple([entry[3] for entry in _ordered(on_time, roll) + _ordered(late, roll)])


def _ordered(keyed: list[_Keyed], roll: float) -> list[_Keyed]:
    """Sorted, with every run of equals rotated by the same share of its length."""
    keyed.sort()
    start, count = 0, len(keyed)
    for end in range(1, count + 1):
        if end < count and keyed[end][0] == keyed[start][0] and keyed[end][1] == keyed[start][1]:
            continue
        if end - start > 1:
            middle = start + int(roll * (end - start))
            keyed[start:end] = keyed[middle:end] + keyed[start:middle]
        start = end
    return keyed
