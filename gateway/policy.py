"""What the calls of a tenant, of a project or with a key may do and must insist on, and how much of it there may be.

The configuration bounds tenants; the database bounds tenants, projects and keys; and a call insists on what it likes. In
each point the narrowest holds, so nobody can be allowed more than somebody else allows. Limits are another matter: each
counts the calls of its own subject, so those of a tenant, a project and a key stand side by side. What is in force for a
key is worked out when the key is read, so that a call with an unbounded one pays a look at None.
"""

from __future__ import annotations

import logging
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Literal, Self, TypeVar, get_args

import msgspec
from msgspec import Struct, structs

from gateway.errors import ApiError
from gateway.output import usd
from routing.types import TierName, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.catalog import Catalog
    from gateway.config import Config
    from gateway.openai import Request
    from routing.types import Demands

TrustName = Literal["provider", "verified", "community"]
ApiName = Literal["chat", "completions", "embeddings", "models"]
Period = Literal["day", "week", "month", "total"]
"""What a budget is for: a day, a week that begins on Monday, a month, each of UTC; or all time."""
Network = IPv4Network | IPv6Network

TENANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
"""A project's is of the same kind."""

log = logging.getLogger(__name__)

_Some = TypeVar("_Some")
_A_PERIOD: dict[Period, str] = {"day": "a day", "week": "a week", "month": "a month", "total": "in all"}
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
    apis: frozenset[ApiName] | None = None
    networks: frozenset[str] | None = None
    """Where calls may come from, as `10.0.0.0/8`."""

    # Limits
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrency: int | None = None
    budgets: dict[Period, int] = {}
    """In nano-USD."""

    @property
    def limits(self) -> bool:
        """Whether it bounds how much there may be, not only what."""
        return bool(self.budgets) or any((self.requests_per_min, self.tokens_per_min, self.concurrency))

    @classmethod
    def read(cls, text: str) -> Self:
        """As it was written by `text`. What cannot be read allows nothing."""
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as failure:
            log.error("a policy cannot be read, so it allows nothing: %s", failure)  # noqa: TRY400 - it says what is wrong; where in our code adds nothing
            return cls(models=frozenset(), tiers=frozenset())

    def text(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self, order="deterministic").decode()

    def described(self) -> str:
        """In words, on one line; empty where nothing is bounded."""
        named = [
            ("models", self.models),
            ("tiers", self.tiers),
            ("trust", None if self.least_trust == "community" else [self.least_trust]),
            ("regions", self.regions),
            ("APIs", self.apis),
            ("networks", self.networks),
        ]
        parts = [f"{what} {_listed(names)}" for what, names in named if names is not None]
        for side, most in [("input", self.max_input_pico_usd), ("output", self.max_output_pico_usd)]:
            if most is not None:
                parts.append(f"{side} up to {most / 1e6:g}")
        counts = [
            (self.requests_per_min, "requests/min"),
            (self.tokens_per_min, "tokens/min"),
            (self.concurrency, "at once"),
        ]
        parts += [f"{count} {what}" for count, what in counts if count is not None]
        parts += [
            f"{usd(self.budgets[period])} USD {_A_PERIOD[period]}"
            for period in get_args(Period)
            if period in self.budgets
        ]
        return "; ".join(parts)

    @property
    def limited(self) -> bool:
        """Whether it says how much there may be."""
        counts = (self.requests_per_min, self.tokens_per_min, self.concurrency)
        return counts != (None, None, None) or bool(self.budgets)

    def without_limits(self) -> Policy:
        """What it says of each single call."""
        return structs.replace(self, requests_per_min=None, tokens_per_min=None, concurrency=None, budgets={})

    @property
    def source_networks(self) -> tuple[Network, ...] | None:
        """Those that calls may come from; None where it does not matter."""
        return None if self.networks is None else tuple(map(ip_network, sorted(self.networks)))

    def narrowed(self, other: Policy) -> Policy:
        """What both allow; of limits on the same subject, the lower."""
        return Policy(
            models=_both(self.models, other.models),
            tiers=_both(self.tiers, other.tiers),
            least_trust=max(self.least_trust, other.least_trust, key=_level),
            regions=_both(self.regions, other.regions),
            max_input_pico_usd=_least(self.max_input_pico_usd, other.max_input_pico_usd),
            max_output_pico_usd=_least(self.max_output_pico_usd, other.max_output_pico_usd),
            apis=_both(self.apis, other.apis),
            networks=_common(self.networks, other.networks),
            requests_per_min=_least(self.requests_per_min, other.requests_per_min),
            tokens_per_min=_least(self.tokens_per_min, other.tokens_per_min),
            concurrency=_least(self.concurrency, other.concurrency),
            budgets={
                period: min(each[period] for each in (self.budgets, other.budgets) if period in each)
                for period in self.budgets.keys() | other.budgets.keys()
            },
        )

    def bind(self, request: Request) -> None:
        """Hold `request` to APIs, tiers and demands. Raises ApiError where nothing is left. Models are the catalog's to
        leave out, and networks the edge's.
        """
        self.expect_api(request.api)
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

    def expect_api(self, api: ApiName) -> None:
        """Raises ApiError."""
        if self.apis is not None and api not in self.apis:
            raise ApiError(
                "api_not_allowed", f"This key may not use the API {api}; it may use {_listed(self.apis)}."
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


OTHERS = "*"
"""In place of a tenant's name: all that have no section of their own."""


class InForce(Struct, frozen=True):
    """What bounds the calls with a key."""

    policy: Policy | None = None
    """Of each single call: what all its subjects allow; None where nothing is bounded."""
    bounds: tuple[tuple[str, Policy], ...] = ()
    """Those of its subjects that have limits, with the policy that says them: `tenant:acme`, `project:acme/web`, `key:ID`."""


class Policies:
    """The policies of tenants in the configuration, and what is in force with those of the database."""

    def __init__(
        self,
        by_tenant: Mapping[str, Policy],
        behind: Callable[[str], Iterable[str]],
        prepaid: frozenset[str] = frozenset(),
    ) -> None:
        """`behind` says which models a name may stand for: none, where it is no longer one."""
        self._behind = behind
        self.take(by_tenant, prepaid)

    def take(self, by_tenant: Mapping[str, Policy], prepaid: frozenset[str] = frozenset()) -> None:
        """From now on these are the tenants' policies, and names stand for what they stand for now."""
        self.prepaid = prepaid
        """The tenants that can spend what they have paid in."""
        self.configured = dict(by_tenant)
        """As the configuration has them."""
        self._by_tenant = {tenant: self._resolved(policy) for tenant, policy in by_tenant.items()}

    def in_force(
        self, tenant: str, stored: Policy | None = None, *below: tuple[str, Policy | None]
    ) -> InForce:
        """What bounds calls of `tenant`, which has `stored` in the database, and of the subjects `below` it."""
        policy: Policy | None = None
        bounds: list[tuple[str, Policy]] = []
        of_tenant = self._by_tenant.get(tenant, self._by_tenant.get(OTHERS))
        if stored is not None:
            stored = self._resolved(stored)
            of_tenant = stored if of_tenant is None else of_tenant.narrowed(stored)
        for subject, own in ((f"tenant:{tenant}", of_tenant), *below):
            if own is None:
                continue
            resolved = self._resolved(own)
            if resolved.limited:
                bounds.append((subject, resolved))
                resolved = resolved.without_limits()
            if resolved != UNLIMITED:
                policy = resolved if policy is None else policy.narrowed(resolved)
        return InForce(policy, tuple(bounds))

    def _resolved(self, policy: Policy) -> Policy:
        if policy.models is None:
            return policy
        models = frozenset(model for name in policy.models for model in self._behind(name))
        return structs.replace(policy, models=models)


UNLIMITED = Policy()
UNBOUNDED = Policies({}, lambda _: ())


def policies_of(config: Config, catalog: Catalog) -> Policies:
    """Those of a configuration."""
    return Policies(tenant_policies(config), catalog.models_behind, prepaid_tenants(config))


def prepaid_tenants(config: Config) -> frozenset[str]:
    return frozenset(name for name, section in config.tenants.items() if section.billing.mode == "prepaid")


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


def _common(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    """The networks within both: of two, either one lies in the other or they have nothing in common."""
    if one is None or other is None:
        return other if one is None else one
    pairs = ((ip_network(left), ip_network(right)) for left in one for right in other)
    inner = (max(pair, key=lambda network: network.prefixlen) for pair in pairs if _overlap(*pair))
    return frozenset(map(str, inner))


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
