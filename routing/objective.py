"""Which of the endpoints that can serve a call is the best, as one ranking in nano-USD.

Waiting is turned into money at what the tier says it is worth, so that price and seconds can be added. Taking simply
the cheapest that is on time would pile work on one node until everybody waits just under the limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, overload

from routing.estimate import NOTHING_CACHED
from routing.types import Candidate, Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routing.estimate import Ask, Figures
    from routing.types import Endpoint, Load, Tier

PROMPT_TOKENS_PER_S = 4000.0
"""A tier's target is for a short prompt; a longer one may take a second more for so many tokens. In simulation it kept
four times as many calls in time as a fixed target that cost the same."""

_Key = tuple[float, float, int]
"""What is compared first, what settles that, the place among the estimated."""


class Ranking(Sequence[Candidate]):
    """Candidates, best first, each made when it is looked at: most calls look at one."""

    __slots__ = ("_cached_tokens", "_estimates", "_late", "_members", "_on_time")

    def __init__(
        self,
        members: Sequence[tuple[Endpoint, Load]],
        estimates: Sequence[Figures],
        on_time: Sequence[_Key],
        late: Sequence[_Key],
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> None:
        self._members = members
        self._estimates = estimates
        self._on_time = on_time
        self._late = late
        self._cached_tokens = cached_tokens

    def __len__(self) -> int:
        return len(self._on_time) + len(self._late)

    def __iter__(self) -> Iterator[Candidate]:
        return map(self.__getitem__, range(len(self)))

    @overload
    def __getitem__(self, place: int) -> Candidate: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, place: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(place, slice):
            return tuple(self)[place]
        if place < 0:
            place += len(self)
        on_time = place < len(self._on_time)
        if place < 0:
            raise IndexError(place)
        if on_time:
            score, _, index = self._on_time[place]
        else:
            _, score, index = self._late[place - len(self._on_time)]
        endpoint = self._members[index][0]
        cached_tokens = self._cached_tokens.get(endpoint.name, 0)
        return Candidate(endpoint, Estimate(*self._estimates[index]), score, on_time, cached_tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranking) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def rank(
    tier: Tier,
    members: Sequence[tuple[Endpoint, Load]],
    estimates: Sequence[Figures],
    asked: Ask,
    roll: float,
    cached_tokens: Mapping[str, int] = NOTHING_CACHED,
) -> Ranking:
    """`members`, of which `estimates` are the estimates, best first; `cached_tokens` are what these are based on.

    Those expected on time for the tier come first, by `cost + value of waiting x seconds`; a tie (every equal price,
    where waiting is worth nothing) goes to fewer seconds. Those expected late follow, fastest first token first, then by
    the same score. Scores are nano-USD, from 0 up. What is still exactly equal, such as two idle endpoints alike, takes
    turns by `roll`, uniform in [0, 1): each of the equals is as likely to come first. Nothing else depends on the order
    of `members`.
    """
    value = tier.waiting_nano_usd_per_s
    target_s = tier.max_ttft_s + asked.prompt_tokens / PROMPT_TOKENS_PER_S
    output_tokens = asked.output_tokens
    on_time: list[_Key] = []
    late: list[_Key] = []
    index = 0
    for ttft_s, itl_s, imposed_s, cost_nano_usd in estimates:
        # 2 x time to first token + the whole call + delay to others: before the first token a reader sits in front of
        # nothing, so those seconds count three times, once as a part of the whole.
        seconds = 3.0 * ttft_s + output_tokens * itl_s + imposed_s
        score = cost_nano_usd + value * seconds
        if ttft_s <= target_s:
            on_time.append((score, seconds, index))
        else:
            late.append((ttft_s, score, index))
        index += 1  # noqa: SIM113 - enumerate makes a tuple for each
    return Ranking(members, estimates, _ordered(on_time, roll), _ordered(late, roll), cached_tokens)


def _ordered(keyed: list[_Key], roll: float) -> list[_Key]:
    """Sorted, with every run of equals rotated by the same share of its length."""
    keyed.sort()
    for before, after in pairwise(keyed):
        if before[0] == after[0] and before[1] == after[1]:
            _rotate_equals(keyed, roll)
            break
    return keyed


def _rotate_equals(keyed: list[_Key], roll: float) -> None:
    count = len(keyed)
    start = 0
    for end in range(1, count + 1):
        if end < count and keyed[end][0] == keyed[start][0] and keyed[end][1] == keyed[start][1]:
            continue
        if end - start > 1:
            middle = start + int(roll * (end - start))
            keyed[start:end] = keyed[middle:end] + keyed[start:middle]
        start = end
