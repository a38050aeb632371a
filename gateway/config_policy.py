"""The section of the configuration that bounds tenants, which the command line reads a key's policy by as well."""

from __future__ import annotations

import difflib
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args

from msgspec import structs
from pydantic import Field

from gateway.config_section import (
    Amount,
    Count,
    Multiplier,
    Name,
    NetworkText,
    Section,
    Usd,
    nano_usd,
    pico_usd_per_token,
    usd_per_million,
)
from gateway.output import usd
from gateway.policy import ApiName, Period, Policy, TrustName
from routing.types import TierName  # noqa: TC001 - pydantic reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Collection


class MaxPrice(Section):
    input: Usd | None = Field(None, description="Most USD per million prompt tokens, of the endpoint's cost.")
    output: Usd | None = Field(None, description="Most USD per million completion tokens.")


class Budgets(Section):
    day: Amount | None = Field(None, description="Most USD charged for calls of a day, of UTC.")
    week: Amount | None = Field(None, description="Most USD for those of a week, which begins on Monday.")
    month: Amount | None = Field(None, description="Most USD for those of a month.")
    total: Amount | None = Field(None, description="Most USD for all calls ever.")


class PolicySection(Section):
    models: frozenset[Name] | None = Field(
        None, min_length=1, description="Only these; an alias allows all models that it may stand for."
    )
    tiers: frozenset[TierName] | None = Field(None, min_length=1, description="Only these.")
    least_trust: TrustName = Field("community", description="Only endpoints trusted at least so far.")
    regions: frozenset[Name] | None = Field(None, min_length=1, description="Only endpoints in these.")
    max_price: MaxPrice = MaxPrice()
    apis: frozenset[ApiName] | None = Field(
        None, min_length=1, description="Only these: `chat`, `completions`, `embeddings`, `models`."
    )
    networks: frozenset[NetworkText] | None = Field(
        None, min_length=1, description="Only calls from these, such as `10.0.0.0/8`."
    )
    requests_per_min: Count | None = Field(None, description="Most calls begun in a minute.")
    tokens_per_min: Count | None = Field(None, description="Most tokens of prompts and answers in a minute.")
    concurrency: Count | None = Field(None, description="Most calls under way at once.")
    budgets: Budgets = Budgets()

    def policy(self) -> Policy:
        most, budgets = self.max_price, dict(self.budgets)
        periods: tuple[Period, ...] = get_args(Period)
        return Policy(
            models=self.models,
            tiers=self.tiers,
            least_trust=self.least_trust,
            regions=self.regions,
            max_input_pico_usd=None if most.input is None else pico_usd_per_token(most.input),
            max_output_pico_usd=None if most.output is None else pico_usd_per_token(most.output),
            apis=self.apis,
            networks=self.networks,
            requests_per_min=self.requests_per_min,
            tokens_per_min=self.tokens_per_min,
            concurrency=self.concurrency,
            budgets={each: nano_usd(budgets[each]) for each in periods if budgets[each] is not None},
        )


def as_given(policy: Policy) -> dict[str, Any]:
    """What a section says that gives this policy. Money is text, in which it is exact."""
    given: dict[str, Any] = {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in structs.asdict(policy).items()
        if name in PolicySection.model_fields and name != "budgets" and value is not None
    }
    if policy.least_trust == "community":
        del given["least_trust"]
    prices = {"input": policy.max_input_pico_usd, "output": policy.max_output_pico_usd}
    if most := {side: usd_per_million(pico) for side, pico in prices.items() if pico is not None}:
        given["max_price"] = most
    if policy.budgets:
        given["budgets"] = {period: usd(amount) for period, amount in sorted(policy.budgets.items())}
    return given


class BillingSection(Section):
    price_multiplier: Multiplier = Field(
        Decimal(1), description="What models' prices are multiplied with for it: below 1 a discount."
    )
    mode: Literal["postpaid", "prepaid"] = Field(
        "postpaid", description="`prepaid`: it can spend what it has paid in and been credited."
    )


class TenantSection(Section):
    policy: PolicySection = PolicySection()
    billing: BillingSection = BillingSection()
    log_prompts: bool = Field(
        default=False, description="Whether the prompts of its calls are logged, redacted (see `log.redact`)."
    )


def no_such_model(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"there is no model {name}" + (f"; did you mean {close[0]}?" if close else "")
