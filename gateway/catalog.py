"""What is on offer: the models with their prices, by every name that clients may use, and the tiers.

A name stands for a model, or for another model in each tier with others to fall back on. Behind it a call may put what
decides for it alone: `:floor`, the price, or `:nitro`, the time. Such a call keeps its tier and the tier's target; only
what its waiting is worth is another.
"""

from __future__ import annotations

import difflib
from heapq import nlargest
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from gateway.errors import ApiError
from gateway.ledger import ONCE, multiplied

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.config import Config, Limits
    from gateway.config_model import ModelSection
    from gateway.openai import Request
    from gateway.policy import Policy
    from routing.types import Demands, Price, Tier, TierName

TIERS: tuple[TierName, ...] = ("priority", "default", "flex")
SUFFIXES = {"floor": 0.0, "nitro": 1e15}
"""What waiting is worth, in nano-USD per second. At a million USD a second, a microsecond outweighs a call's price."""

_LOOKED_AT = 50
"""Names compared in full with one that is unknown: to compare thousands would hold up all other calls for half a second."""


class Model(Struct, frozen=True):
    name: str
    """Public."""
    price: Price
    """What tenants are charged."""
    caches_apart: bool = False
    """Whether no tenant may profit from what another has left in a worker's prefix cache."""
    in_tiers: Mapping[TierName, Price] = {}
    """What they are charged in tiers with a price of their own."""

    of_tenants: Mapping[str, int] = {}
    """Of tenants with prices of their own: how many millionths of them they pay."""

    hosted_as: str | None = None
    """What it is called where only a provider serves it."""

    def price_for(self, tier: TierName, tenant: str) -> Price:
        """What `tenant` is charged in `tier`."""
        price, millionths = self.in_tiers.get(tier, self.price), self.of_tenants.get(tenant)
        return price if millionths is None else multiplied(price, millionths)


class Offer(Struct, frozen=True):
    """What a name stands for in one tier."""

    models: tuple[Model, ...]
    """The one to serve a call, then those to fall back on, in order."""
    tier: Tier


class Catalog:
    def __init__(self, config: Config, created_s: int) -> None:
        self.created_s = created_s
        """When this catalog was put up, for lists of models: seconds since 1970."""
        self.take(config)

    def take(self, config: Config) -> None:
        """From now on this is on offer. A call that has its offer keeps it."""
        self.limits: Limits = config.limits
        self.resume = config.resume
        """Whether a stream that breaks goes on elsewhere."""
        self.total_s = float(config.timeouts.total_s)
        self.prompts_logged = frozenset(
            name for name, section in config.tenants.items() if section.log_prompts
        )
        """Tenants whose prompts are logged."""
        self.tiers: dict[TierName, Tier] = {name: config.tier(name) for name in TIERS}
        self.of_tiers = {
            tier: millionths for tier in TIERS if (millionths := config.price_millionths(tier)) != ONCE
        }
        """What prices are multiplied with in tiers, and below for tenants: in millionths, and only where it is not one."""
        self.of_tenants = config.tenant_millionths()
        self.models = {
            name: Model(
                name,
                section.price.price(),
                section.prefix_cache == "per_tenant",
                {tier: multiplied(section.price.price(), factor) for tier, factor in self.of_tiers.items()},
                self.of_tenants,
                _hosted_as(name, section),
            )
            for name, section in config.models.items()
        }
        self._listed = dict.fromkeys((*self.models, *config.aliases))
        self._by_name: dict[str, dict[TierName, Offer]] = {}
        for name, section in config.models.items():
            offers = {tier: Offer((self.models[name],), self.tiers[tier]) for tier in TIERS}
            self._by_name.update(dict.fromkeys((name, *section.aliases), offers))
        for name, alias in config.aliases.items():
            self._by_name[name] = {
                tier: Offer(tuple(self.models[model] for model in alias.models(tier)), self.tiers[tier])
                for tier in TIERS
            }
        self._pairs = {name: _pairs(name) for name in self._by_name}

    def offer(self, name: str, tier: TierName, policy: Policy | None = None) -> Offer:
        """What `name` stands for in `tier`, for a key under that policy. Raises ApiError, naming what is spelled alike."""
        offers = self._by_name.get(name)
        offer = self._suffixed(name, tier, policy) if offers is None else offers[tier]
        if policy is not None and policy.models is not None:
            return _allowed(offer, name, policy.models)
        return offer

    @property
    def names(self) -> Collection[str]:
        """All that calls may name as their model, suffixes apart."""
        return self._by_name.keys()

    def models_behind(self, name: str) -> frozenset[str]:
        """The models that `name` may stand for, by their public names; none where it is not on offer."""
        offers = self._by_name.get(name, {}).values()
        return frozenset(model.name for offer in offers for model in offer.models)

    def listed(self, policy: Policy | None = None) -> list[str]:
        """The names in a list of models for a key under that policy: not those that only spell another one differently."""
        return [name for name in self._listed if self._may_see(name, policy)]

    def listed_name(self, name: str, policy: Policy | None = None) -> str:
        """The name under which `name` is in that list. Raises ApiError."""
        if name in self._listed and self._may_see(name, policy):
            return name
        return self.offer(name, "default", policy).models[0].name

    def _may_see(self, name: str, policy: Policy | None) -> bool:
        if policy is None or policy.models is None:
            return True
        return not policy.models.isdisjoint(self.models_behind(name))

    def _suffixed(self, name: str, tier: TierName, policy: Policy | None) -> Offer:
        bare, colon, suffix = name.rpartition(":")
        worth = SUFFIXES.get(suffix) if colon else None
        offers = None if worth is None else self._by_name.get(bare)
        if worth is None or offers is None:
            close = self._spelled_like((name if worth is None else bare)[:200], policy)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ApiError(
                "model_not_found", f"The model {name[:200]!r} does not exist.{hint}", param="model"
            )
        offer = offers[tier]
        return Offer(offer.models, structs.replace(offer.tier, waiting_nano_usd_per_s=worth))

    def _spelled_like(self, name: str, policy: Policy | None) -> list[str]:
        pairs = _pairs(name)
        seen = (known for known in self._pairs if self._may_see(known, policy))

        def shared(known: str) -> float:
            theirs = self._pairs[known]
            return len(pairs & theirs) / (len(pairs) + len(theirs) + 1)

        return difflib.get_close_matches(name, nlargest(_LOOKED_AT, seen, key=shared), n=3)


def _hosted_as(public: str, section: ModelSection) -> str | None:
    names = {
        None if each.kind == "worker" else each.litellm or each.model or public for each in section.endpoints
    }
    return names.pop() if len(names) == 1 else None


def _allowed(offer: Offer, name: str, allowed: frozenset[str]) -> Offer:
    models = tuple(model for model in offer.models if model.name in allowed)
    if not models:
        raise ApiError("model_not_allowed", f"This key may not use the model {name[:200]!r}.", param="model")
    return structs.replace(offer, models=models)


def charged_within(offer: Offer, asked: Demands, request: Request, tenant: str) -> Offer:
    """The models at which `tenant` is charged no more than its call asks for. Raises ApiError where none is left.

    What endpoints may cost is for routing to see to; what a policy says of prices is about that alone.
    """
    found, reasons = [], []
    for model in offer.models:
        price = model.price_for(request.tier, tenant)
        sides = [
            ("input", max(price.input_pico_usd, price.cached_input_pico_usd or 0), asked.max_input_pico_usd)
        ]
        if request.api != "embeddings":
            dearer = max(price.output_pico_usd, price.reasoning_pico_usd or 0)
            sides.append(("output", dearer, asked.max_output_pico_usd))
        above = [
            f"{model.name}: {side} is charged at {pico / price.parts / 1e6:g} USD per million tokens, asked for at most {most / 1e6:g}"
            for side, pico, most in sides
            if most is not None and pico > most * price.parts
        ]
        reasons += above
        if not above:
            found.append(model)
    if not found:
        raise ApiError("demands_not_met", "; ".join(reasons), param="routing.max_price")
    return offer if len(found) == len(offer.models) else structs.replace(offer, models=tuple(found))


def _pairs(name: str) -> frozenset[str]:
    """Its pairs of neighbouring characters: names spelled alike share most of them."""
    return frozenset(map(str.__add__, name, name[1:]))
