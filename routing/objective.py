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

TTFT_COUNTS = 3.0
"""2 x time to first token + the whole call: before the first token a reader sits in front of nothing, so those seconds
count three times, once as a part of the whole."""

LATE_SECONDS = 4.0
"""What a second beyond the tier's target counts for in addition. In simulation, more helps the longest waits of a few
long prompts, less all the others."""

_Key = tuple[float, float, int]
"""What is compared first, what settles that, the place among the estimated."""


class Ranking(Sequence[Candidate]):
    """Candidates, best first. Most calls look at the first alone: the others are put in order when they are looked at."""

    __slots__ = (
        "_best",
        "_cached_tokens",
        "_estimates",
        "_late",
        "_members",
        "_on_time",
        "_ordered",
        "_roll",
        "_target_s",
    )

    def __init__(
        self,
        members: Sequence[tuple[Endpoint, Load]],
        estimates: Sequence[Figures],
        on_time: list[_Key],
        late: list[_Key],
        roll: float,
        target_s: float,
        cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    ) -> None:
        """`on_time` by score, then seconds; after them `late` by seconds, then score: both in any order."""
        self._members = members
        self._estimates = estimates
        self._on_time = on_time
        self._late = late
        self._roll = roll
        self._ordered = False
        self._best: Candidate | None = None
        self._target_s = target_s
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
        if place == 0 and (self._on_time or self._late):
            if self._best is None:
                self._best = self._candidate(0)
            return self._best
        if isinstance(place, slice):
            return tuple(self)[place]
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._candidate(place)

    def _candidate(self, place: int) -> Candidate:
        on_time = self._on_time
        if place == 0 and not self._ordered:
            first, second, index = _first(on_time or self._late, self._roll)
        else:
            if not self._ordered:
                _order(on_time, self._roll)
                _order(self._late, self._roll)
                self._ordered = True
            late_place = place - len(on_time)
            first, second, index = on_time[place] if late_place < 0 else self._late[late_place]
        endpoint, estimate = self._members[index][0], Estimate(*self._estimates[index])
        score = first if place < len(on_time) else second
        on_target = estimate.ttft_s <= self._target_s
        return Candidate(endpoint, estimate, score, on_target, self._cached_tokens.get(endpoint.name, 0))

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
    where waiting is worth nothing) goes to fewer seconds. Those expected late follow by seconds alone, in which a second
    beyond the target counts LATE_SECONDS more.

    One that is on time but takes more seconds in all than the best of those late, what it imposes on others included, and
    is no better by score, is no remedy: it stands among the late. Otherwise a full pool would read every prompt anew
    wherever there is no queue, and only get fuller. A dearer endpoint that is on time for want of load is one.

    Scores are nano-USD, from 0 up. What is still exactly equal, such as two idle endpoints alike, takes turns by `roll`,
    uniform in [0, 1): each of the equals is as likely to come first. Nothing else depends on the order of `members`.
    """
    value = tier.waiting_nano_usd_per_s
    target_s = tier.max_ttft_s + asked.prompt_tokens / PROMPT_TOKENS_PER_S
    output_tokens = asked.output_tokens
    on_time: list[_Key] = []
    late: list[_Key] = []
    index = 0
    for ttft_s, itl_s, imposed_s, cost_nano_usd in estimates:
        seconds = TTFT_COUNTS * ttft_s + output_tokens * itl_s + imposed_s
        score = cost_nano_usd + value * seconds
        if ttft_s <= target_s:
            on_time.append((score, seconds, index))
        else:
            late.append((seconds + LATE_SECONDS * (ttft_s - target_s), score, index))
        index += 1  # noqa: SIM113 - enumerate makes a tuple for each
    if late and on_time:
        on_time, late = _without_false_remedies(on_time, late)
    return Ranking(members, estimates, on_time, late, roll, target_s, cached_tokens)


def _without_false_remedies(on_time: list[_Key], late: list[_Key]) -> tuple[list[_Key], list[_Key]]:
    """Those on time that beat the best of those late, by score or in seconds, and all others."""
    seconds, score, _ = min(late, key=_by_score)
    remedies = [key for key in on_time if key[1] < seconds or key[0] < score]
    if len(remedies) < len(on_time):
        late = late + [(key[1], key[0], key[2]) for key in on_time if key[1] >= seconds and key[0] >= score]
    return remedies, late


def _by_score(key: _Key) -> tuple[float, float]:
    return key[1], key[0]


def _first(keyed: list[_Key], roll: float) -> _Key:
    """What would come first if it were put in order."""
    least = min(keyed)
    equals = [key for key in keyed if key[0] == least[0] and key[1] == least[1]]
    if len(equals) == 1:
        return least
    return sorted(equals)[int(roll * len(equals))]


def _order(keyed: list[_Key], roll: float) -> None:
    """Sort it, and rotate every run of equals by the same share of its length."""
    keyed.sort()
    for before, after in pairwise(keyed):
        if before[0] == after[0] and before[1] == after[1]:
            _rotate_equals(keyed, roll)
            break


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
