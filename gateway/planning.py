"""Where the gateway asks routing: a call that is served, `explain` and the decision log all get their plan here."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, NamedTuple

from gateway.watch import Watch
from routing.prefix import pieces_of, turn_of
from routing.types import Call, Plan

if TYPE_CHECKING:
    from backends.fleet import Fleet
    from gateway.arrival import Arrival
    from gateway.cache_salt import CacheSalts
    from gateway.catalog import Model, Offer
    from gateway.decision_log import DecisionLog
    from gateway.ledger import UsageRow
    from gateway.openai import Request
    from gateway.steps import Step
    from routing.decision import Decision
    from routing.types import Tier


class Decided(NamedTuple):
    """A plan, and where a log is kept what it was made of."""

    plan: Plan
    decision: Decision | None


class Planner:
    """Plans over the fleet as it is now. Nothing is sent anywhere."""

    def __init__(
        self, fleet: Fleet, salts: CacheSalts, log: DecisionLog | None = None, watch: Watch | None = None
    ) -> None:
        self._fleet = fleet
        self._salts = salts
        self._log = log
        self._watch = watch or Watch()

    def call(self, request: Request, model: Model, tier: Tier, tenant: str) -> Call:
        """The call as routing sees it. From here on `request` carries the salt of a tenant that must have one."""
        if model.caches_apart:
            request.tenant_salt = self._salts.of(tenant, request.cache_salt)
        prompt, salt = request.prompt, request.tenant_salt or request.cache_salt
        pieces = pieces_of(prompt, salt)
        return Call(
            model=model.name,
            tier=tier,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            needs=request.needs,
            demands=request.demands,
            tenant=tenant,
            pieces=pieces,
            turn=None if request.ends is None else turn_of(prompt, pieces, request.ends, salt),
        )

    def plan(self, call: Call, asked_model: str, arrival: Arrival) -> Plan:
        """The plan for a call that is to be served; `asked_model` is what its client named."""
        log = self._log
        if log is None or not log.samples():
            roll = random.random()  # noqa: S311 - settles ties
            made = self._fleet.pool(call.model).plan(call, time.monotonic(), roll)
        else:
            decision = self.decision(call)
            made = decision.plan()
            log.planned(arrival.call_id, asked_model, decision, made)
        if arrival.traced is not None:
            arrival.traced.planned(made)
        if self._watch.on:
            self._watch.planned(arrival.call_id, call.model, call.prompt_tokens, made)
        return made

    def again(self, call: Call) -> Decided:
        """The same for a step taken in the midst of a call."""
        if self._log is None:
            roll = random.random()  # noqa: S311 - settles ties
            return Decided(self._fleet.pool(call.model).plan(call, time.monotonic(), roll), None)
        decision = self.decision(call)
        return Decided(decision.plan(), decision)

    def stepped(self, arrival: Arrival, asked_model: str, decided: Decided, step: Step) -> None:
        """A step was taken by this plan. All are kept, and not a sample of them."""
        if self._log is not None and decided.decision is not None:
            self._log.planned(arrival.call_id, asked_model, decided.decision, decided.plan, step)
        if arrival.traced is not None:
            arrival.traced.planned(decided.plan)

    def decision(self, call: Call) -> Decision:
        """All that such a plan is made of."""
        roll = random.random()  # noqa: S311 - settles ties
        return self._fleet.pool(call.model).decision(call, time.monotonic(), roll)

    def decisions(self, request: Request, offer: Offer, tenant: str) -> list[Decision]:
        """Those for all models on offer, in the order in which they would be tried."""
        return [self.decision(self.call(request, model, offer.tier, tenant)) for model in offer.models]

    def ended(self, row: UsageRow) -> None:
        """A call has ended. It tells how much its tenant has such models write."""
        if self._log is not None:
            self._log.ended(row)
        if row.outcome == "ok" and row.completion_tokens:
            self._fleet.pool(row.model).wrote(row.tenant, row.completion_tokens)
