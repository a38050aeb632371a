from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from gateway.catalog import SUFFIXES, TIERS, Catalog, Model, Offer
from gateway.config import Config
from gateway.errors import ApiError
from gateway.policy import Policy
from routing.types import Price

if TYPE_CHECKING:
    from routing.types import TierName

ENDPOINTS = [{"worker": "http://127.0.0.1:1"}]


def catalog(aliases: dict[str, Any] | None = None, **models: dict[str, Any]) -> Catalog:
    sections = {
        name.replace("_", "-"): {"price": {"input": 1, "output": 2}, "endpoints": ENDPOINTS, **section}
        for name, section in models.items()
    }
    return Catalog(Config.model_validate({"models": sections, "aliases": aliases or {}}), created_s=7)


LLAMAS = catalog(
    llama_8b={"aliases": ["gpt-4o-mini", "small"]}, llama_70b={"price": {"input": "0.5", "output": 3}}
)


def unknown(name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        LLAMAS.offer(name, "default")
    assert (caught.value.code, caught.value.status, caught.value.param) == ("model_not_found", 404, "model")
    return caught.value


def models(offered: Offer) -> list[str]:
    return [model.name for model in offered.models]


def test_a_model_is_found_by_its_name_and_its_aliases():
    llama = Model("llama-8b", Price(1_000_000, 2_000_000))
    offers = [LLAMAS.offer(name, "default") for name in ("llama-8b", "gpt-4o-mini", "small")]
    assert offers == [Offer((llama,), LLAMAS.tiers["default"])] * 3
    assert LLAMAS.offer("llama-70b", "flex").models == (Model("llama-70b", Price(500_000, 3_000_000)),)


def test_an_alias_stands_for_another_model_in_each_tier_and_for_that_of_the_default_where_it_names_none():
    smart = {"default": "llama-70b", "flex": "llama-8b", "fallbacks": ["llama-8b", "qwen"]}
    some = catalog({"smart": smart}, llama_8b={}, llama_70b={}, qwen={})
    assert models(some.offer("smart", "default")) == ["llama-70b", "llama-8b", "qwen"]
    assert models(some.offer("smart", "priority")) == ["llama-70b", "llama-8b", "qwen"]
    assert models(some.offer("smart", "flex")) == ["llama-8b", "qwen"]
    assert some.offer("smart", "flex").tier == some.tiers["flex"]


def test_what_is_listed_is_models_and_aliases_by_tier_but_no_other_spelling_of_a_model():
    assert LLAMAS.listed() == ["llama-8b", "llama-70b"]
    some = catalog({"smart": {"default": "llama-8b"}}, llama_8b={"aliases": ["small"]})
    assert some.listed() == ["llama-8b", "smart"]
    assert [some.listed_name(name) for name in ("small", "smart", "llama-8b:nitro")] == [
        "llama-8b",
        "smart",
        "llama-8b",
    ]


def test_a_policy_leaves_of_an_offer_what_it_allows_and_refuses_the_rest():
    smart = {"default": "llama-70b", "flex": "qwen", "fallbacks": ["llama-8b"]}
    some = catalog(
        {"smart": smart},
        llama_8b={"aliases": ["small"]},
        llama_70b={},
        qwen={},
    )
    policy = Policy(models=frozenset({"llama-8b"}))
    for name in ("llama-8b", "small", "smart", "smart:floor"):
        assert models(some.offer(name, "default", policy)) == ["llama-8b"]
    assert some.offer("smart:floor", "default", policy).tier.waiting_nano_usd_per_s == 0
    assert some.listed(policy) == ["llama-8b", "smart"]
    assert some.listed_name("smart", policy) == "smart"
    for ask in (some.offer, lambda name, _, policy: some.listed_name(name, policy)):
        with pytest.raises(ApiError) as refused:
            ask("qwen", "default", policy)
        assert (refused.value.code, refused.value.status) == ("model_not_allowed", 403)
        with pytest.raises(ApiError, match="Did you mean small or smart") as unknown:
            ask("smal", "default", policy)
        assert unknown.value.code == "model_not_found"
    with pytest.raises(ApiError, match=r"does not exist\.$"):
        some.offer("qwenn", "default", policy)
    assert some.listed(Policy(models=frozenset())) == []
    assert some.listed(Policy(least_trust="provider")) == some.listed()


def test_a_name_stands_for_the_models_of_all_its_tiers():
    smart = {"default": "llama", "flex": "qwen", "fallbacks": ["phi"]}
    some = catalog({"smart": smart}, llama={"aliases": ["small"]}, qwen={}, phi={})
    assert some.models_behind("smart") == {"llama", "qwen", "phi"}
    assert some.models_behind("small") == {"llama"}
    assert some.models_behind("gone") == frozenset()


@pytest.mark.parametrize("tier", TIERS)
def test_a_suffix_changes_what_waiting_is_worth_and_nothing_else(tier: TierName):
    for suffix, worth in SUFFIXES.items():
        offer = LLAMAS.offer(f"gpt-4o-mini:{suffix}", tier)
        plain = LLAMAS.offer("gpt-4o-mini", tier)
        assert offer.models == plain.models
        assert offer.tier == structs.replace(plain.tier, waiting_nano_usd_per_s=worth)
    assert LLAMAS.offer("llama-8b", tier).tier == LLAMAS.tiers[tier]


def test_a_name_that_ends_like_a_suffix_is_that_name():
    some = catalog(
        {"odd:floor": {"default": "llama"}},
        **{"llama": {}, "llama:nitro": {"aliases": ["other:floor"]}},
    )
    assert models(some.offer("llama:nitro", "default")) == ["llama:nitro"]
    for name in ("llama:nitro", "other:floor", "odd:floor"):
        assert some.offer(name, "default").tier == some.tiers["default"]
    assert models(some.offer("llama:nitro:floor", "default")) == ["llama:nitro"]
    assert some.offer("llama:nitro:floor", "default").tier.waiting_nano_usd_per_s == 0


def test_every_tier_has_its_figures():
    assert {name: tier.name for name, tier in LLAMAS.tiers.items()} == {name: name for name in TIERS}
    assert [LLAMAS.tiers[name].max_ttft_s for name in ("priority", "default", "flex")] == [1.0, 5.0, 600.0]
    assert LLAMAS.tiers["flex"].waiting_nano_usd_per_s == 0.0


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llama-8B", " Did you mean llama-8b or llama-70b?"),
        ("lama-70b", " Did you mean llama-70b or llama-8b?"),
        ("gpt-4o-minni", " Did you mean gpt-4o-mini?"),
        ("lama-70b:floor", " Did you mean llama-70b or llama-8b?"),
        ("llama-70b:flor", " Did you mean llama-70b or llama-8b?"),
        ("claude", ""),
        ("", ""),
    ],
)
def test_a_model_that_there_is_not_is_named_with_those_spelled_alike(name: str, hint: str):
    assert unknown(name).message == f"The model {name!r} does not exist.{hint}"


def test_names_match_exactly():
    for name in (
        "LLAMA-8B",
        " llama-8b",
        "llama-8b\n",
        "llama-8b\x00",
        "llama",
        "llama-8b:",
        "llama-8b:FLOOR",
        ":floor",
    ):
        unknown(name)


def test_a_long_name_is_repeated_in_part():
    error = unknown("llama-8b" * 100_000)
    assert "'llama-8bllama-8b" in error.message
    assert len(error.message) < 300


def test_among_many_names_those_spelled_alike_are_found():
    many = catalog(
        **{f"org_{number % 9}_model_{number:04d}_instruct": {} for number in range(1000)}, gpt_4o={}
    )
    with pytest.raises(ApiError, match="Did you mean org-6-model-0123-instruct or "):
        many.offer("org6-model-0123-instruct", "default")
    with pytest.raises(ApiError, match=r"Did you mean gpt-4o\?"):
        many.offer("gpt4o", "default")
    with pytest.raises(ApiError, match=r"does not exist\.$"):
        many.offer("x", "default")


def test_what_only_a_provider_serves_is_known_by_its_name_there():
    hosted = {"openai": "https://api.openai.com/v1", "api_key": "x", "model": "gpt-4o-mini"}
    worker = ENDPOINTS[0]
    offered = catalog(gpt_4o={"endpoints": [hosted]}, both={"endpoints": [hosted, worker]}, own={})
    named = [offered.offer(name, "default").models[0].hosted_as for name in ("gpt-4o", "both", "own")]
    assert named == ["gpt-4o-mini", None, None]
