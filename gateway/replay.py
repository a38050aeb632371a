"""Decisions from the log planned again: by themselves, which must give the very same rankings, or against other settings.

Against other settings the endpoints, prices and tiers are theirs, and the load of each endpoint is what it was when the
decision was made; one that was not there then is taken as idle and not yet seen. What the call insisted on stays, with
what the policy of its tenant added. So a replay tells what would have been chosen at that moment. It does not tell how the
load would have developed had all calls gone elsewhere: that takes a simulation.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs

from gateway.decision_log import Line
from gateway.errors import ApiError
from routing.estimate import ask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backends.fleet import Fleet
    from gateway.catalog import Catalog
    from routing.decision import Decision
    from routing.types import Plan

_NAMED = 20
"""Calls named of those whose ranking is another now."""


class Expected(Struct, frozen=True):
    """What the first choices of all plans add up to."""

    plans: int
    unserved: int
    """Plans that name nobody."""
    late: int
    """First choices that are expected beyond their tier's target."""
    cost_nano_usd: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    call_mean_s: float
    """From a call's arrival to its last token."""


class Share(Struct, frozen=True):
    """How often an endpoint is the first choice."""

    model: str
    endpoint: str
    before: int
    after: int


class Steps(Struct, frozen=True):
    """Of one kind, with one cause and one end: hedges, resumes, hand-overs and moves."""

    kind: str
    cause: str
    outcome: str
    steps: int
    expected_nano_usd: int
    """What they were expected to cost."""


class Wasted(Struct, frozen=True):
    """What steps, and failures, have cost: work that reached no client, over all calls in the log."""

    cause: str
    calls: int
    nano_usd: int


class Report(Struct, frozen=True):
    decisions: int
    unreadable: int
    """Lines that are none."""
    same: int
    """Decisions that make the very ranking again that is in the log, scores included."""
    different_calls: list[str]
    """Some of the calls whose decision does not: another version of Tidegate ranks by other rules."""
    before: Expected
    """As they were made. Those that the other settings have no model for are left out."""
    after: Expected | None = None
    """By the other settings."""
    without_model: int = 0
    """Decisions about a model that the other settings do not have."""
    changed: int = 0
    """Decisions whose first choice is another."""
    shares: list[Share] = []
    steps: list[Steps] = []
    """Taken in the midst of calls. In what first choices add up to they are not counted."""
    wasted: list[Wasted] = []


class _Sums:
    """First choices, as they come."""

    def __init__(self) -> None:
        self.chosen: Counter[tuple[str, str]] = Counter()
        self._unserved = self._late = self._cost_nano_usd = 0
        self._ttfts_s: list[float] = []
        self._calls_s = 0.0

    def add(self, decision: Decision, plan: Plan) -> None:
        if not plan.ranked:
            self._unserved += 1
            return
        first = plan.ranked[0]
        estimate = first.estimate
        output_tokens = ask(decision.call, decision.expected_output_tokens).output_tokens
        self.chosen[decision.call.model, first.endpoint.name] += 1
        self._late += not first.on_time
        self._cost_nano_usd += estimate.cost_nano_usd
        self._ttfts_s.append(estimate.ttft_s)
        self._calls_s += estimate.ttft_s + output_tokens * estimate.itl_s

    def expected(self) -> Expected:
        ttfts_s = sorted(self._ttfts_s)
        served = len(ttfts_s)
        return Expected(
            plans=served + self._unserved,
            unserved=self._unserved,
            late=self._late,
            cost_nano_usd=self._cost_nano_usd,
            ttft_mean_s=sum(ttfts_s) / max(1, served),
            ttft_p50_s=_quantile(ttfts_s, 0.5),
            ttft_p99_s=_quantile(ttfts_s, 0.99),
            call_mean_s=self._calls_s / max(1, served),
        )


class _Taken:
    """Steps, and what was in vain, as they come."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str, str], list[int]] = {}
        self._wasted: dict[str, list[int]] = {}
        self._calls: set[str] = set()

    def add(self, line: Line) -> None:
        if (step := line.step) is not None:
            costs = self._steps.setdefault((step.kind, step.cause, step.outcome), [])
            costs.append(step.expected_nano_usd)
        if line.call_id in self._calls or not line.ended.shares:
            return
        self._calls.add(line.call_id)
        causes: Counter[str] = Counter()
        for share in line.ended.shares:
            if share.purpose != "answer":
                causes[share.purpose] += share.waste_nano_usd
        for cause, nano_usd in causes.items():
            self._wasted.setdefault(cause, []).append(nano_usd)

    def steps(self) -> list[Steps]:
        return [Steps(*what, len(costs), sum(costs)) for what, costs in sorted(self._steps.items())]

    def wasted(self) -> list[Wasted]:
        return [Wasted(cause, len(costs), sum(costs)) for cause, costs in sorted(self._wasted.items())]


class Settings:
    """Other endpoints, prices and tiers to plan by."""

    def __init__(self, catalog: Catalog, fleet: Fleet) -> None:
        self._catalog = catalog
        self._fleet = fleet

    def applied(self, line: Line) -> Decision | None:
        """The decision as it would stand there, or None where there is no such model."""
        decision = line.decision
        call = decision.call
        try:
            offer = self._catalog.offer(line.asked_model, call.tier.name)
        except ApiError:
            return None
        model = next((model.name for model in offer.models if model.name == call.model), offer.models[0].name)
        if model != call.model:
            decision = structs.replace(decision, snapshot=(), cached_tokens={})
        loads = {endpoint.name: load for endpoint, load in decision.snapshot}
        snapshot = tuple(
            (endpoint, loads.get(endpoint.name, load))
            for endpoint, load in self._fleet.pool(model).snapshot(0.0)
        )
        call = structs.replace(call, model=model, tier=offer.tier)
        return structs.replace(decision, call=call, snapshot=snapshot)


def replay(lines: Iterable[bytes], settings: Settings | None = None) -> Report:
    """All decisions in `lines` planned again."""
    before, after, taken = _Sums(), _Sums(), _Taken()
    unreadable = decisions = without_model = changed = 0
    different: list[str] = []
    for line in _read(lines):
        if line is None:
            unreadable += 1
            continue
        decisions += 1
        plan = line.decision.plan()
        if [(each.endpoint.name, each.score_nano_usd) for each in plan.ranked] != line.ranked:
            different.append(line.call_id)
        taken.add(line)
        if line.step is not None:
            continue
        if settings is not None:
            applied = settings.applied(line)
            if applied is None:
                without_model += 1
                continue
            other = applied.plan()
            after.add(applied, other)
            changed += _first(plan) != _first(other)
        before.add(line.decision, plan)
    return Report(
        decisions=decisions,
        unreadable=unreadable,
        same=decisions - len(different),
        different_calls=different[:_NAMED],
        before=before.expected(),
        after=None if settings is None else after.expected(),
        without_model=without_model,
        changed=changed,
        shares=_shares(before, after),
        steps=taken.steps(),
        wasted=taken.wasted(),
    )


def _read(lines: Iterable[bytes]) -> Iterator[Line | None]:
    decode = msgspec.json.Decoder(Line).decode
    for text in lines:
        if not text.isspace():
            try:
                yield decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                yield None


def _first(plan: Plan) -> tuple[str, str] | None:
    if not plan.ranked:
        return None
    endpoint = plan.ranked[0].endpoint
    return endpoint.model, endpoint.name


def _shares(before: _Sums, after: _Sums) -> list[Share]:
    names = sorted(before.chosen.keys() | after.chosen.keys())
    return [Share(*name, before.chosen[name], after.chosen[name]) for name in names]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that so many are not above; 0 where there is none."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0
