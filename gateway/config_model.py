"""The sections of the configuration for what calls may name: models, and aliases that stand for another in each tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gateway.config_discover import DiscoverSection  # noqa: TC001 - pydantic reads annotations at run time
from gateway.config_endpoint import EndpointSection, PriceTable, name_by_url
from gateway.config_policy import no_such_model
from gateway.config_section import Count, Location, Name, Section, given_in
from routing.types import Capability  # noqa: TC001 - pydantic reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from routing.types import Endpoint, TierName


class ModelSection(Section):
    aliases: tuple[Name, ...] = Field((), max_length=100, description="Other names that clients may use.")
    price: PriceTable = Field(description="What tenants are charged.")
    capabilities: frozenset[Capability] | None = Field(
        None,
        description="Any of `tools`, `vision`, `json_schema`, `logprobs`, `embeddings`; without it, nothing is ruled out.",
    )
    context_tokens: Count | None = Field(None, description="Longest context; without it, not checked.")
    prefix_cache: Literal["shared", "per_tenant"] = Field(
        "shared",
        description="`per_tenant`: workers are sent a secret `cache_salt` for each tenant, so that nobody can find out by "
        "the clock what another tenant has sent; prompts that tenants have in common are then computed for each.",
    )
    endpoints: tuple[EndpointSection, ...] = Field(
        max_length=1000,
        description="Where the model is served; `[]` where only nodes that register or are found serve it.",
    )
    discover: tuple[DiscoverSection, ...] = Field(
        (), max_length=100, description="Where further workers are found that serve it."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        endpoints = given.get("endpoints")
        seen: dict[str, int] = {}
        for index, endpoint in enumerate(endpoints if isinstance(endpoints, list | tuple) else ()):
            name = (
                given_in(endpoint, "name")
                or name_by_url(given_in(endpoint, "worker") or given_in(endpoint, "openai"))
                or given_in(endpoint, "litellm")
            )
            if not isinstance(name, str) or not name:
                continue
            if name in seen:
                other = f"endpoints[{seen[name]}]"
                yield ("endpoints", index), f"has the name of {other}, {name}; give it another `name`"
            seen.setdefault(name, index)

    def endpoints_as(self, name: str) -> tuple[Endpoint, ...]:
        """As routing sees them, where `name` is the model's public name."""
        return tuple(each.endpoint(name, self.capabilities, self.context_tokens) for each in self.endpoints)


class AliasSection(Section):
    default: Name = Field(description="The model that serves calls of tier `default`.")
    priority: Name | None = Field(None, description="The one of tier `priority`; without it, as `default`.")
    flex: Name | None = Field(None, description="The one of tier `flex`; without it, as `default`.")
    fallbacks: tuple[Name, ...] = Field(
        (),
        max_length=20,
        description="Models tried in turn where none of the tier's endpoints can take the call or has answered it.",
    )

    def models(self, tier: TierName) -> tuple[str, ...]:
        """Public names of the models to try, in order."""
        first: str | None = getattr(self, tier)
        return tuple(dict.fromkeys((first or self.default, *self.fallbacks)))


def names_used_twice(models: Mapping[str, Any], by_tier: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    owner = {name: f"model {name}" for name in models}
    for name, model in models.items():
        aliases = given_in(model, "aliases")
        for index, alias in enumerate(aliases if isinstance(aliases, list | tuple) else ()):
            if not isinstance(alias, str):
                continue
            if alias in owner:
                yield ("models", name, "aliases", index), f"{alias} is taken already, by {owner[alias]}"
            owner.setdefault(alias, f"an alias of model {name}")
    for name in by_tier:
        if name in owner:
            yield ("aliases", name), f"{name} is taken already, by {owner[name]}"


def aliases_of_nothing(
    models: Mapping[str, Any], by_tier: Mapping[str, Any]
) -> Iterator[tuple[Location, str]]:
    for name, alias in by_tier.items():
        fallbacks = given_in(alias, "fallbacks")
        meant: dict[Location, Any] = {
            (tier,): given_in(alias, tier) for tier in ("default", "priority", "flex")
        }
        if isinstance(fallbacks, list | tuple):
            meant |= {("fallbacks", index): model for index, model in enumerate(fallbacks)}
        for where, model in meant.items():
            if isinstance(model, str) and model not in models:
                yield ("aliases", name, *where), no_such_model(model, models)


def all_names(models: Mapping[str, Any], by_tier: Mapping[str, Any]) -> frozenset[str]:
    """What a call, or a policy, may name as its model."""
    spelled = (given_in(model, "aliases") for model in models.values())
    others = (name for names in spelled if isinstance(names, list | tuple) for name in names)
    return frozenset((*models, *by_tier, *(name for name in others if isinstance(name, str))))
