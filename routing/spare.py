"""Which capacity is spare: where flex work may go and hardly delay what comes a moment later.

Flex waits for a worker with nothing to do. It does not take a dearer hosted endpoint instead, as long as a worker that
could serve it is only busy: there is no hour at which that would be worth it. Where a hosted one is cheaper than the
workers, or all workers are gone, it goes there at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from routing.types import Candidate, Endpoint, Load, Plan

SPARE_WAIT_S = 0.05
"""Seconds of prefill under way at a worker up to which one more call is no delay to speak of."""

SPARE_CALLS = 32
"""Calls under way at a worker up to which it has capacity to spare. With so many, each with 2,000 tokens of context, a
decode step of an 8B model takes half as long again as with one, on any card: both follow memory bandwidth."""


def wait_s(load: Load) -> float:
    """How long one more call would wait there for the prefill of those before it."""
    return load.pending_work / load.work_per_s


def is_spare(endpoint: Endpoint, load: Load) -> bool:
    """Whether flex work would be in nobody's way there. At a hosted endpoint it never is."""
    if endpoint.kind != "worker":
        return True
    # First tokens that are due and have not come: whatever holds them up would hold up this call's as well.
    overdue = load.inflight > load.decoding and load.pending_work == 0.0
    return load.inflight < SPARE_CALLS and wait_s(load) <= SPARE_WAIT_S and not overdue


def spare(plan: Plan, loads: Mapping[str, Load], busy: Iterable[Endpoint] = ()) -> Plan | None:
    """The plan with those left that have capacity to spare; None where the call had better wait.

    `busy` are endpoints that take no call now but soon will. `loads` are by the name of the endpoint.
    """
    left: list[Candidate] = []
    passed_over_worker = False
    for candidate in plan.ranked:
        endpoint = candidate.endpoint
        if not is_spare(endpoint, loads[endpoint.name]):
            passed_over_worker = True
            continue
        if not left and endpoint.kind != "worker" and (passed_over_worker or _cheaper(busy, endpoint)):
            return None
        left.append(candidate)
    return structs.replace(plan, ranked=tuple(left)) if left else None


def _cheaper(busy: Iterable[Endpoint], hosted: Endpoint) -> bool:
    """Whether one of these is a worker, and costs no more."""
    most = hosted.cost.input_pico_usd
    return any(endpoint.kind == "worker" and endpoint.cost.input_pico_usd <= most for endpoint in busy)


def hosted(plan: Plan) -> Plan | None:
    """The plan with the hosted endpoints left, for a call that has waited for a worker as long as it may."""
    left = tuple(c for c in plan.ranked if c.endpoint.kind != "worker")
    return structs.replace(plan, ranked=left) if left else None
