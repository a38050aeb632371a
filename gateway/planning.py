"""Where the gateway asks routing: a call that is served, `explain` and the decision log all get their plan here."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from routing.decision import Decision
from routing.estimate import MEAN_OUTPUT_TOKENS
from routing.pipeline import plan
from routing.types import Call, Endpoint, Load, Plan

if TYPE_CHECKING:
    from backends.fleet import Fleet
    from gateway.catalog import Catalog, Model, Offer
    from gateway.decision_log import DecisionLog
    from gateway.ledger import UsageRow
    from gateway.openai import Request
    from routing.types import Tier

_OUTPUT_WEIGHT = 0.02
"""Of the newest call in the running mean of a model's output tokens: about the last fifty calls count."""

_Asked = tuple[Call, tuple[tuple[Endpoint, Load], ...], float, float]
"""What `routing.pipeline.plan` takes, and a `Decision` holds, in its order."""


class Planner:
    """Plans over the fleet as it is now. Nothing is sent anywhere."""

    def __init__(self, catalog: Catalog, fleet: Fleet, log: DecisionLog | None = None) -> None:
        self._fleet = fleet
        self._log = log
        self._output_tokens = dict.fromkeys(catalog.models, MEAN_OUTPUT_TOKENS)

    def plan(self, request: Request, model: Model, tier: Tier, call_id: str) -> Plan:
        """The plan for a call that is to be served."""
        log = self._log
        if log is None or not log.samples():
            return plan(*self._asked(request, model, tier))
        decision = self.decision(request, model, tier)
        made = decision.plan()
        log.planned(call_id, request.model, decision, made)
        return made

    def decision(self, request: Request, model: Model, tier: Tier) -> Decision:
        """All that such a plan is made of."""
        return Decision(*self._asked(request, model, tier))

    def decisions(self, request: Request, offer: Offer) -> list[Decision]:
        """Those for all models on offer, in the order in which they would be tried."""
        return [self.decision(request, model, offer.tier) for model in offer.models]

    def ended(self, row: UsageRow) -> None:
        """A call has ended. It tells how much its model writes."""
        if self._log is not None:
            self._log.ended(row)
        if row.outcome == "ok" and row.completion_tokens:
            mean = self._output_tokens[row.model]
            self._output_tokens[row.model] = mean + _OUTPUT_WEIGHT * (row.completion_tokens - mean)

    def _asked(self, request: Request, model: Model, tier: Tier) -> _Asked:
        call = Call(
            model=model.name,
            tier=tier,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            needs=request.needs,
            demands=request.demands,
        )
        roll = random.random()  # noqa: S311 - settles ties
        return call, self._fleet.snapshot(model.name), roll, self._output_tokens[model.name]
