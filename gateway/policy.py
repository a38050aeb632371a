"""What the calls of a tenant, or with one of its keys, may do and must insist on.

The configuration bounds tenants, the database keys with their keys, and a call insists on what it likes: in each point
the narrowest of the three holds, so nobody can be allowed more than somebody else allows. What is in force for a key is
worked out when the key is read, so that a call with an unbounded one pays a look at None.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import msgspec
from msgspec import Struct, structs

from gateway.errors import ApiError
from routing.types import TierName, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.catalog import Catalog
    from gateway.config import Config
    from gateway.openai import Request
    from routing.types import Demands

TrustName = Literal["provider", "verified", "community"]

TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

log = logging.getLogger(__name__)

_Some = TypeVar("_Some")
_INSTEAD: tuple[TierName, ...] = ("default", "flex", "priority")
"""Which tier a call gets that leaves the choice to us: the first of these that it may have."""


class Policy(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Bounds. A field of None leaves a point open, an empty set leaves nothing."""

    models: frozenset[str] | None = None
    """By public name. An alias allows all models that it may stand for."""
    tiers: frozenset[TierName] | None = None
    least_trust: TrustName = "community"
    regions: frozenset[str] | None = None
    max_input_pico_usd: int | None = None
    """Per token; a pico-USD per token is a micro-USD per million tokens."""
    max_output_pico_usd: int | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        """As it was written by `text`. What cannot be read allows nothing."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as failure:
            log.error("a key's policy cannot be read, so the key may do nothing: %s", failure)  # noqa: TRY400 - it says what is wrong; where in our code adds nothing
            return cls(models=frozenset(), tiers=frozenset())

    def text(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self, order="deterministic").decode()

    def described(self) -> str:
        """In words, on one line; empty where nothing is bounded."""
        parts = []
        if self.models is not None:
            parts.append(f"models {_listed(self.models)}")
        if self.tiers is not None:
            parts.append(f"tiers {_listed(self.tiers)}")
        if self.least_trust != "community":
            parts.append(f"trust {self.least_trust}")
        if self.regions is not None:
            parts.append(f"regions {_listed(self.regions)}")
        if self.max_input_pico_usd is not None:
            parts.append(f"input up to {self.max_input_pico_usd / 1e6:g}")
        if self.max_output_pico_usd is not None:
            parts.append(f"output up to {self.max_output_pico_usd / 1e6:g}")
        return "; ".join(parts)

    def narrowed(self, other: Policy) -> Policy:
        """What both allow."""
        return Policy(
            models=_both(self.models, other.models),
            tiers=_both(self.tiers, other.tiers),
            least_trust=max(self.least_trust, other.least_trust, key=_level),
            regions=_both(self.regions, other.regions),
            max_input_pico_usd=_least(self.max_input_pico_usd, other.max_input_pico_usd),
            max_output_pico_usd=_least(self.max_output_pico_usd, other.max_output_pico_usd),
        )

    def bind(self, request: Request) -> None:
        """Hold `request` to tiers and demands. Raises ApiError where nothing is left. Models are the catalog's to leave out."""
        if self.tiers is not None and request.tier not in self.tiers:
            request.tier = self._tier_instead_of(request)
        if self._demands_nothing:
            return
        demands = request.demands
        request.demands = structs.replace(
            demands,
            least_trust=max(demands.least_trust, _level(self.least_trust)),
            regions=self._regions_left(demands),
            max_input_pico_usd=_least(demands.max_input_pico_usd, self.max_input_pico_usd),
            max_output_pico_usd=_least(demands.max_output_pico_usd, self.max_output_pico_usd),
        )

    @property
    def _demands_nothing(self) -> bool:
        return (
            self.regions is None
            and self.max_input_pico_usd is None
            and self.max_output_pico_usd is None
            and self.least_trust == "community"
        )

    def _tier_instead_of(self, request: Request) -> TierName:
        allowed = self.tiers or frozenset()
        if not request.tier_insisted:
            for tier in _INSTEAD:
                if tier in allowed:
                    return tier
        raise ApiError(
            "tier_not_allowed",
            f"This key may not use the tier {request.tier}; it may use {_listed(allowed)}.",
            param="service_tier",
        )

    def _regions_left(self, demands: Demands) -> frozenset[str]:
        asked, allowed = demands.regions, self.regions
        if allowed is None:
            return asked
        left = asked & allowed if asked else allowed
        if left:
            return left
        what = f"The call asks for regions {_listed(asked)}, and this" if asked else "This"
        raise ApiError("demands_not_met", f"{what} key may use {_listed(allowed)}.", param="routing.regions")


class Policies:
    """The policies of tenants, and what is in force for their keys."""

    def __init__(self, by_tenant: Mapping[str, Policy], behind: Callable[[str], Iterable[str]]) -> None:
        """`behind` says which models a name may stand for: none, where it is no longer one."""
        self._behind = behind
        self.take(by_tenant)

    def take(self, by_tenant: Mapping[str, Policy]) -> None:
        """From now on these are the tenants' policies, and names stand for what they stand for now."""
        self._by_tenant = {tenant: self._resolved(policy) for tenant, policy in by_tenant.items()}

    def in_force(self, tenant: str, own: Policy | None = None) -> Policy | None:
        """What bounds calls with a key of `tenant` that has a policy of its `own`; None where nothing does."""
        of_tenant = self._by_tenant.get(tenant)
        if own is None:
            return of_tenant
        own = self._resolved(own)
        return own if of_tenant is None else of_tenant.narrowed(own)

    def _resolved(self, policy: Policy) -> Policy:
        if policy.models is None:
            return policy
        models = frozenset(model for name in policy.models for model in self._behind(name))
        return structs.replace(policy, models=models)


UNBOUNDED = Policies({}, lambda _: ())


def policies_of(config: Config, catalog: Catalog) -> Policies:
    """Those of a configuration."""
    return Policies(tenant_policies(config), catalog.models_behind)


def tenant_policies(config: Config) -> dict[str, Policy]:
    return {tenant: section.policy.policy() for tenant, section in config.tenants.items()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _level(name: TrustName) -> Trust:
    return Trust[name.upper()]


def _both(one: frozenset[_Some] | None, other: frozenset[_Some] | None) -> frozenset[_Some] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
