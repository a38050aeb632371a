"""The first of a ranking, for a call that demands nothing and endpoints that all are there: one pass over numbers.

Nearly every call is such a one, and looks at nobody but the first. So what an estimate takes of an endpoint is put
together when its load changes rather than once a call, and the others are ranked only where that one fails. It ranks as
`objective.rank` does over `estimate.estimates`, which tests hold it to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, overload

from routing.estimate import MOST_BUSY, STALL_SHARE, expected_cost_nano_usd, prefill_work
from routing.objective import PROMPT_TOKENS_PER_S, TTFT_COUNTS
from routing.types import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from routing.estimate import Ask
    from routing.types import Call, Endpoint, Load, Price

Terms = tuple[str, float, float, float, float, "Price", float, float]
"""Of one endpoint: its name; the seconds that count against it whatever the call, those for each token of output, for each
unit of the call's own prefill, and for each such unit squared; what it costs; and seconds to the first token beside the
call's own prefill, and of that for each unit of it."""
_name_of, _price_of = itemgetter(0), itemgetter(5)


def terms_of(endpoint: Endpoint, load: Load, price: Price) -> Terms:
    """Those of an endpoint, as its load is. Its price is given apart: where equal ones are the same, a call costs less."""
    s_per_work = 1.0 / load.work_per_s
    waiting_s = load.pending_work * s_per_work
    first_s = load.base_ttft_s + waiting_s
    stall = STALL_SHARE * load.decoding
    itl_s = load.itl_s
    delay = 0.0
    if load.arrivals_per_s:
        delay = load.arrivals_per_s / (1.0 - load.busy if load.busy < MOST_BUSY else 1.0 - MOST_BUSY)
    return (
        endpoint.name,
        TTFT_COUNTS * first_s,
        itl_s + stall * itl_s * load.crowding,
        (TTFT_COUNTS + stall + delay * waiting_s) * s_per_work,
        delay * s_per_work * s_per_work,
        price,
        first_s,
        s_per_work,
    )


def foremost(
    call: Call, asked: Ask, terms: Sequence[Terms], roll: float, cached_tokens: Mapping[str, int]
) -> tuple[int, float] | None:
    """The place of the one of these that comes first, and its score; None where that one would be late, so that all have to be compared."""
    counts = set(cached_tokens.values()) or {0}
    if (
        len(counts) == 1
        and (not cached_tokens or all(map(cached_tokens.__contains__, map(_name_of, terms))))
        and len(set(map(id, map(_price_of, terms)))) == 1
    ):
        equals, least = _soonest(call, asked, terms, counts.pop())
    else:
        equals, least = _least(call, asked, terms, cached_tokens)
    target_s = call.tier.max_ttft_s + asked.prompt_tokens / PROMPT_TOKENS_PER_S
    for place in equals:
        name, *_, first_s, s_per_work = terms[place]
        if first_s + prefill_work(asked.prompt_tokens, cached_tokens.get(name, 0)) * s_per_work > target_s:
            return None
    return equals[int(roll * len(equals))], least


def _soonest(call: Call, asked: Ask, terms: Sequence[Terms], cached: int) -> tuple[list[int], float]:
    """The places of those that come first, and their score, where all cost the same and hold as much of the prompt: as
    where they are of one kind and the prompt is new, or begins like all others.
    """
    output_tokens, price = float(asked.output_tokens), terms[0][5]
    work = prefill_work(asked.prompt_tokens, cached) if cached else asked.work
    seconds = [
        always_s + output_tokens * token_s + work * (work_s + squared_s * work)
        for _, always_s, token_s, work_s, squared_s, _, _, _ in terms
    ]
    least_s = min(seconds)
    equals = [place for place, each in enumerate(seconds) if each == least_s]
    return equals, expected_cost_nano_usd(asked, price, cached) + call.tier.waiting_nano_usd_per_s * least_s


def _least(
    call: Call, asked: Ask, terms: Sequence[Terms], cached_tokens: Mapping[str, int]
) -> tuple[list[int], float]:
    """The same of any."""
    output_tokens = float(asked.output_tokens)
    value = call.tier.waiting_nano_usd_per_s
    work, cached, cost_nano_usd = asked.work, 0, 0.0
    known: Price | None = None
    least = least_s = math.inf
    equals: list[int] = []
    index = -1
    held_of = cached_tokens.get if cached_tokens else None
    for name, always_s, token_s, work_s, squared_s, price, _, _ in terms:
        index += 1
        if held_of is not None:
            held = held_of(name, 0)
            if held != cached:
                cached, known = held, None
                work = prefill_work(asked.prompt_tokens, held)
        if price is not known:
            known = price
            cost_nano_usd = float(expected_cost_nano_usd(asked, price, cached))
        seconds = always_s + output_tokens * token_s + work * (work_s + squared_s * work)
        score = cost_nano_usd + value * seconds
        if score > least:
            continue
        if score < least or seconds < least_s:
            least, least_s, equals = score, seconds, [index]
        elif seconds == least_s:
            equals.append(index)
    return equals, least


class Foremost(Sequence[Candidate]):
    """A ranking of which only the first is known. Most calls look at no other; where one does, it is made in full."""

    __slots__ = ("_count", "_first", "_rank", "_ranked")

    def __init__(self, first: Candidate, count: int, rank: Callable[[], Sequence[Candidate]]) -> None:
        """One of so many; `rank` ranks them all."""
        self._first = first
        self._count = count
        self._rank = rank
        self._ranked: Sequence[Candidate] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Candidate]:
        yield self._first
        yield from self[1:]

    @overload
    def __getitem__(self, place: int) -> Candidate: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, place: int | slice) -> Candidate | Sequence[Candidate]:
        if place == 0:
            return self._first
        if self._ranked is None:
            # Rounded otherwise, another one may come first there by a hair.
            others = [each for each in self._rank() if each.endpoint is not self._first.endpoint]
            self._ranked = (self._first, *others)
        return self._ranked[place]
