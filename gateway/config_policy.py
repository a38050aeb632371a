"""The section of the configuration that bounds tenants, which the command line reads a key's policy by as well."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from pydantic import Field

from gateway.config_section import Name, Section, Usd, pico_usd_per_token
from gateway.policy import Policy, TrustName
from routing.types import TierName  # noqa: TC001 - pydantic reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Collection


class MaxPrice(Section):
    input: Usd | None = Field(None, description="Most USD per million prompt tokens, of the endpoint's cost.")
    output: Usd | None = Field(None, description="Most USD per million completion tokens.")


class PolicySection(Section):
    models: frozenset[Name] | None = Field(
        None, min_length=1, description="Only these; an alias allows all models that it may stand for."
    )
    tiers: frozenset[TierName] | None = Field(None, min_length=1, description="Only these.")
    least_trust: TrustName = Field("community", description="Only endpoints trusted at least so far.")
    regions: frozenset[Name] | None = Field(None, min_length=1, description="Only endpoints in these.")
    max_price: MaxPrice = MaxPrice()

    def policy(self) -> Policy:
        most = self.max_price
        return Policy(
            models=self.models,
            tiers=self.tiers,
            least_trust=self.least_trust,
            regions=self.regions,
            max_input_pico_usd=None if most.input is None else pico_usd_per_token(most.input),
            max_output_pico_usd=None if most.output is None else pico_usd_per_token(most.output),
        )


class TenantSection(Section):
    policy: PolicySection = PolicySection()


def no_such_model(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f"there is no model {name}" + (f"; did you mean {close[0]}?" if close else "")
