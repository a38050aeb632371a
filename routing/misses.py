"""Why nobody can take a call: what each endpoint misses, by how much, and whether waiting would help.

It is worked out only where a plan ranks nobody. Speed is held against each endpoint as it would be with nothing else to
do: what it cannot meet even then it will not meet by waiting either, and what it would meet then it may meet soon.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from routing.estimate import ask, estimates
from routing.filters import departure, filters_for
from routing.pipeline import missed
from routing.types import Demands, Estimate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from routing.decision import Decision
    from routing.types import Call, Endpoint, Load

UNKNOWN_WAIT_S = 5.0
"""When to come back where nobody knows when an endpoint will be there again."""

BUSY_WAIT_S = 1.0
"""When to come back, at the least, where an endpoint is too busy to be fast enough: calls end all the time."""


class Shortfall(Struct, frozen=True):
    """How far one endpoint is from taking a call."""

    endpoint: Endpoint
    reasons: tuple[str, ...]
    excess: float = 0.0
    """By how much the worst of the reasons misses what was asked, as a share of it; infinite for a yes or no."""
    retry_after_s: float | None = None
    """In how many seconds it may be able to; None: it never will, as things stand."""


def shortfalls(decision: Decision) -> list[Shortfall]:
    """Those of all endpoints, the nearest first: who only has to be waited for, then who misses least."""
    call, snapshot = decision.call, decision.snapshot
    asked, cached = ask(call, decision.expected_output_tokens), decision.cached_tokens
    at_rest = [(endpoint, idle(load)) for endpoint, load in snapshot]
    now, best = estimates(asked, snapshot, cached), estimates(asked, at_rest, cached)
    found = [
        _leaving(decision, endpoint, asked.output_tokens, Estimate(*now_figures))
        or _shortfall(call, endpoint, load, Estimate(*now_figures), Estimate(*best_figures))
        for (endpoint, load), now_figures, best_figures in zip(snapshot, now, best, strict=True)
    ]
    return sorted(found, key=_distance)


def idle(load: Load) -> Load:
    """The same endpoint with nothing to do and ready for calls."""
    return structs.replace(
        load,
        inflight=0,
        pending_work=0.0,
        # One call more makes a step longer by the share `crowding`, so all that are there make it so many times that.
        itl_s=load.itl_s * max(0.0, 1.0 - load.crowding * load.inflight),
        decoding=0,
        arrivals_per_s=0.0,
        busy=0.0,
        unavailable=None,
        retry_after_s=None,
        resort_s=None,
    )


def _distance(shortfall: Shortfall) -> tuple[float, int, float]:
    wait_s = shortfall.retry_after_s
    return math.inf if wait_s is None else wait_s, len(shortfall.reasons), shortfall.excess


def _shortfall(call: Call, endpoint: Endpoint, load: Load, now: Estimate, best: Estimate) -> Shortfall:
    lasting = [*_lasting(call, endpoint), *_too_slow(call.demands, best)]
    if lasting:
        return Shortfall(endpoint, tuple(reason for reason, _ in lasting), max(each for _, each in lasting))
    if load.unavailable is not None:
        wait_s = UNKNOWN_WAIT_S if load.retry_after_s is None else load.retry_after_s
        wait_s = wait_s if load.resort_s is None else min(wait_s, load.resort_s)
        return Shortfall(endpoint, (load.unavailable,), retry_after_s=wait_s)
    slow = list(_too_slow(call.demands, now))
    most_s = math.inf if call.demands.max_ttft_s is None else call.demands.max_ttft_s
    # What waits there is worked off in the time it is expected to take.
    return Shortfall(
        endpoint,
        tuple(reason for reason, _ in slow),
        max((each for _, each in slow), default=0.0),
        max(BUSY_WAIT_S, now.ttft_s - most_s),
    )


def _leaving(decision: Decision, endpoint: Endpoint, output_tokens: float, now: Estimate) -> Shortfall | None:
    """That it will not be there long enough, where it would serve the call otherwise. Others may come in its place."""
    left_s = decision.departures.get(endpoint.name)
    if left_s is None or any(_lasting(decision.call, endpoint)):
        return None
    reason = departure(now.ttft_s + output_tokens * now.itl_s, left_s)
    return None if reason is None else Shortfall(endpoint, (reason,), retry_after_s=UNKNOWN_WAIT_S)


def _lasting(call: Call, endpoint: Endpoint) -> Iterator[tuple[str, float]]:
    """What keeps it from the call until the call or the configuration changes, and by how much."""
    for name, reject in filters_for(call):
        if (reason := reject(call, endpoint)) is not None:
            yield reason, _excess(name, call, endpoint)


def _excess(filter_name: str, call: Call, endpoint: Endpoint) -> float:
    demands = call.demands
    match filter_name:
        case "context" if endpoint.context_tokens:
            return (call.prompt_tokens + (call.max_tokens or 0)) / endpoint.context_tokens - 1.0
        case "price":
            return max(
                _over(endpoint.cost.input_pico_usd, demands.max_input_pico_usd),
                _over(endpoint.cost.output_pico_usd, demands.max_output_pico_usd),
            )
        case "trust":
            # A level counts as much as twice the price.
            return float(demands.least_trust - endpoint.trust)
    return math.inf


def _too_slow(demands: Demands, expected: Estimate) -> Iterator[tuple[str, float]]:
    if (most_s := demands.max_ttft_s) is not None:
        miss = missed(Demands(max_ttft_s=most_s), expected)
        if miss is not None:
            yield miss[1], _over(expected.ttft_s, most_s)
    if (least := demands.min_tokens_per_s) is not None:
        miss = missed(Demands(min_tokens_per_s=least), expected)
        if miss is not None:
            yield miss[1], expected.itl_s * least - 1.0


def _over(value: float, most: float | None) -> float:
    """By which share of `most` it is exceeded; below 0 where it is not."""
    if most is None:
        return -math.inf
    return value / most - 1.0 if most else math.inf if value else 0.0
