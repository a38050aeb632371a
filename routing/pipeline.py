"""How a call becomes a plan: filter, estimate, choose.

This is the whole decision, free of I/O: the same call, snapshot and roll give the same plan, in a test, in a
simulation and when `explain` asks a month later.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from routing.draw import LOOK_AT, Draw, Later
from routing.estimate import MEAN_OUTPUT_TOKENS, NOTHING_CACHED, ask, estimates, figures
from routing.filters import context, departure, filters_for
from routing.objective import rank
from routing.quick import Foremost, foremost
from routing.types import NO_DEMANDS, Candidate, Endpoint, Estimate, Load, Plan, Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from routing.estimate import Ask
    from routing.objective import Ranking
    from routing.quick import Terms
    from routing.types import Call, Demands

_Member = tuple[Endpoint, Load]

NO_DEPARTURES: Mapping[str, float] = {}


def plan(
    call: Call,
    snapshot: Sequence[_Member],
    roll: float,
    expected_output_tokens: float = MEAN_OUTPUT_TOKENS,
    cached_tokens: Mapping[str, int] = NOTHING_CACHED,
    departures: Mapping[str, float] = NO_DEPARTURES,
    terms: Sequence[Terms] = (),
) -> Plan:
    """The plan for `call` over `snapshot`, the endpoints of its model. Each is ranked, rejected or, beyond LOOK_AT of
    them, passed over; exactly one of these.

    `roll`, uniform in [0, 1), settles exact ties and which are passed over; `expected_output_tokens` is the running
    mean of the model's calls; `cached_tokens`, by the name of the endpoint, are how many of the prompt it is expected to
    have in its prefix cache; `departures` in how many seconds those leave that have said so. Nobody is passed over where those looked at leave the call unserved or late.
    `terms` are those of the snapshot, where it has nobody who could not serve a call that demands nothing.
    """
    asked = ask(call, expected_output_tokens)
    if terms and not departures and call.demands is NO_DEMANDS and not call.needs and len(terms) <= LOOK_AT:
        found = foremost(call, asked, terms, roll, cached_tokens)
        if found is not None:
            return _led_by(*found, call, asked, snapshot, roll, cached_tokens)
    serving, rejected = _filtered(call, snapshot)
    last_resort = False
    if not serving:
        serving, rejected = _resorted(snapshot, rejected)
        last_resort = bool(serving)
    if departures:
        serving, leaving = _staying(asked, serving, cached_tokens, departures)
        rejected += leaving
    if len(serving) > LOOK_AT:
        places = Draw(serving).some(roll, cached_tokens)
        drawn = [serving[place] for place in places]
        ranked, misses = _demanded(call, asked, drawn, roll, cached_tokens)
        if ranked and ranked[0].on_time:
            return Plan(ranked, (*rejected, *misses), _others(serving, places))
    ranked, misses = _demanded(call, asked, serving, roll, cached_tokens)
    return Plan(ranked, (*rejected, *misses), last_resort=last_resort and bool(ranked))


def plan_drawn(
    call: Call,
    snapshot: Sequence[_Member],
    roll: float,
    expected_output_tokens: float,
    cached_tokens: Mapping[str, int],
    terms: Sequence[Terms],
    draw: Draw,
) -> Plan | None:
    """The same where `draw` knows who of very many could serve a call that demands nothing. None where a look at some of
    them is not enough.
    """
    if call.demands is not NO_DEMANDS or call.needs:
        return None
    places = draw.some(roll, cached_tokens)
    asked = ask(call, expected_output_tokens)
    found = foremost(call, asked, [terms[place] for place in places], roll, cached_tokens) if places else None
    if found is None:
        return None
    drawn = [snapshot[place] for place in places]
    ranked = _led_by(*found, call, asked, drawn, roll, cached_tokens).ranked
    rejected: Later[Rejection] = Later(len(snapshot) - len(draw), partial(_unavailable, snapshot))
    passed_over: Later[Endpoint] = Later(len(draw) - len(drawn), partial(_others, snapshot, places))
    return Plan(ranked, rejected, passed_over)


def _led_by(
    place: int,
    score_nano_usd: float,
    call: Call,
    asked: Ask,
    snapshot: Sequence[_Member],
    roll: float,
    cached_tokens: Mapping[str, int],
) -> Plan:
    """The plan that the one at this place comes first in."""
    endpoint, load = snapshot[place]
    cached = cached_tokens.get(endpoint.name, 0)
    expected = Estimate(*figures(asked, endpoint, load, cached))
    first = Candidate(endpoint, expected, score_nano_usd, True, cached)
    all_ranked = partial(_ranked, call, asked, snapshot, roll, cached_tokens)
    return Plan(Foremost(first, len(snapshot), all_ranked), ())


def _filtered(call: Call, snapshot: Sequence[_Member]) -> tuple[Sequence[_Member], list[Rejection]]:
    if call.demands is NO_DEMANDS and not call.needs:
        # Most calls demand nothing, and most snapshots have nobody to reject.
        serving = [
            member
            for member in snapshot
            if member[1].unavailable is None
            and (member[0].context_tokens is None or context(call, member[0]) is None)
        ]
        if len(serving) == len(snapshot):
            return serving, []
    filters = filters_for(call)
    serving = []
    rejected: list[Rejection] = []
    for member in snapshot:
        endpoint, load = member
        for name, reject in filters:
            if (reason := reject(call, endpoint)) is not None:
                rejected.append(Rejection(endpoint, name, reason))
                break
        else:
            # Last, so that an endpoint that will never do is not reported as one worth waiting for.
            if load.unavailable is None:
                serving.append(member)
            else:
                rejected.append(Rejection(endpoint, "availability", load.unavailable, load.retry_after_s))
    return serving, rejected


def _resorted(
    snapshot: Sequence[_Member], rejected: Sequence[Rejection]
) -> tuple[list[_Member], list[Rejection]]:
    """Where nobody gets calls: those that may be asked all the same, and the others, with when they may be."""
    members = {member[0].name: member for member in snapshot}
    serving: list[_Member] = []
    left: list[Rejection] = []
    for each in rejected:
        member = members[each.endpoint.name]
        resort_s = member[1].resort_s
        if each.filter != "availability" or resort_s is None:
            left.append(each)
        elif resort_s > 0.0:
            left.append(structs.replace(each, retry_after_s=resort_s))
        else:
            serving.append(member)
    return serving, left


def _staying(
    asked: Ask,
    serving: Sequence[_Member],
    cached_tokens: Mapping[str, int],
    departures: Mapping[str, float],
) -> tuple[list[_Member], list[Rejection]]:
    """Those that will be there until the call is done, and the others."""
    staying: list[_Member] = []
    leaving: list[Rejection] = []
    for member in serving:
        left_s = departures.get(member[0].name)
        reason = None
        if left_s is not None:
            ttft_s, itl_s, _, _ = figures(asked, *member, cached_tokens.get(member[0].name, 0))
            reason = departure(ttft_s + asked.output_tokens * itl_s, left_s)
        if reason is None:
            staying.append(member)
        else:
            leaving.append(Rejection(member[0], "departure", reason))
    return staying, leaving


def _unavailable(snapshot: Sequence[_Member]) -> list[Rejection]:
    return [
        Rejection(endpoint, "availability", load.unavailable, load.retry_after_s)
        for endpoint, load in snapshot
        if load.unavailable is not None
    ]


def _others(members: Sequence[_Member], places: Sequence[int]) -> tuple[Endpoint, ...]:
    """Those that get calls and have not been looked at."""
    looked_at = set(places)
    return tuple(
        [
            endpoint
            for place, (endpoint, load) in enumerate(members)
            if place not in looked_at and load.unavailable is None
        ]
    )


def _ranked(
    call: Call, asked: Ask, serving: Sequence[_Member], roll: float, cached_tokens: Mapping[str, int]
) -> Ranking:
    return rank(call.tier, serving, estimates(asked, serving, cached_tokens), asked, roll, cached_tokens)


def _demanded(
    call: Call, asked: Ask, serving: Sequence[_Member], roll: float, cached_tokens: Mapping[str, int]
) -> tuple[Ranking, Sequence[Rejection]]:
    """Those ranked that meet what the call demands of speed, and the others."""
    expected = estimates(asked, serving, cached_tokens)
    misses: Sequence[Rejection] = ()
    demands = call.demands
    if demands is not NO_DEMANDS:
        found = [missed(demands, Estimate(*each)) for each in expected]
        misses = [
            Rejection(member[0], *miss)
            for member, miss in zip(serving, found, strict=True)
            if miss is not None
        ]
        serving = [member for member, miss in zip(serving, found, strict=True) if miss is None]
        expected = [each for each, miss in zip(expected, found, strict=True) if miss is None]
    return rank(call.tier, serving, expected, asked, roll, cached_tokens), misses


def missed(demands: Demands, expected: Estimate) -> tuple[str, str] | None:
    """Which demand on speed an estimate misses, and by what figure; None where it meets them."""
    if demands.max_ttft_s is not None and expected.ttft_s > demands.max_ttft_s:
        reason = (
            f"expected first token in {expected.ttft_s:.3g} s, asked for at most {demands.max_ttft_s:g} s"
        )
        return "max_ttft", reason
    # 1/itl >= least, written so that an endpoint with nothing learned (itl 0) divides nothing.
    if demands.min_tokens_per_s is not None and expected.itl_s * demands.min_tokens_per_s > 1.0:
        reason = (
            f"expected {1.0 / expected.itl_s:.3g} tokens per second, "
            f"asked for at least {demands.min_tokens_per_s:g}"
        )
        return "min_tokens_per_s", reason
    return None
