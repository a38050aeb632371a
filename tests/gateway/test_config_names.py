"""Names that stand for another model in each tier, and what tenants may use, as the configuration has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gateway.config import Config, ConfigError, load
from gateway.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path

MODEL = {"price": {"input": 1, "output": 2}, "endpoints": [{"worker": "http://10.0.0.5:8000"}]}
MODELS = {"big": {**MODEL, "aliases": ["huge"]}, "llama-70b": MODEL, "llama-8b": MODEL}


def read(home: Path, aliases: Any, tenants: Any = None) -> Config:
    path = home / "tidegate.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "aliases": aliases, "tenants": tenants or {}}))
    return load(path, {})


def problems(home: Path, aliases: Any, tenants: Any = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(home, aliases, tenants)
    return dict(caught.value.problems)


def test_an_alias_names_a_model_for_each_tier_and_others_to_fall_back_on(tmp_path: Path):
    smart = {"priority": "big", "default": "llama-70b", "flex": "llama-8b", "fallbacks": ["llama-8b"]}
    alias = read(tmp_path, {"smart": smart}).aliases["smart"]
    assert alias.models("priority") == ("big", "llama-8b")
    assert alias.models("default") == ("llama-70b", "llama-8b")
    assert alias.models("flex") == ("llama-8b",)


def test_a_tier_that_is_not_named_has_the_model_of_the_default(tmp_path: Path):
    alias = read(tmp_path, {"smart": {"default": "big"}}).aliases["smart"]
    assert [alias.models(tier) for tier in ("priority", "default", "flex")] == [("big",)] * 3


def test_what_is_wrong_with_an_alias_is_named_by_its_path(tmp_path: Path):
    found = problems(
        tmp_path,
        {
            "big": {"default": "llama-8b"},
            "huge": {"default": "llama-8b"},
            "none": {},
            "wrong": {"default": "llama-8", "flex": "huge", "fallbacks": ["big", "gone"], "cheap": "big"},
            "looped": {"default": "none"},
        },
    )
    assert found == {
        "aliases.big": "big is taken already, by model big",
        "aliases.huge": "huge is taken already, by an alias of model big",
        "aliases.none.default": "is required",
        "aliases.wrong.cheap": "unknown key; known are default, priority, flex, fallbacks",
        "aliases.wrong.default": "there is no model llama-8; did you mean llama-8b?",
        "aliases.wrong.flex": "there is no model huge",
        "aliases.wrong.fallbacks[1]": "there is no model gone",
        "aliases.looped.default": "there is no model none",
    }


def test_a_tenant_is_bounded_by_what_its_policy_says_and_by_nothing_else(tmp_path: Path):
    acme = {
        "least_trust": "verified",
        "regions": ["eu-west"],
        "max_price": {"input": 0.000001, "output": 2},
        "models": ["llama-8b", "huge", "smart"],
        "tiers": ["default", "flex"],
    }
    config = read(
        tmp_path,
        {"smart": {"default": "big"}},
        {"acme": {"policy": acme}, "zeta": {"policy": None}, "eta": None},
    )
    assert config.tenants["acme"].policy.policy() == Policy(
        models=frozenset({"llama-8b", "huge", "smart"}),
        tiers=frozenset({"default", "flex"}),
        least_trust="verified",
        regions=frozenset({"eu-west"}),
        max_input_pico_usd=1,
        max_output_pico_usd=2_000_000,
    )
    assert config.tenants["zeta"].policy.policy() == config.tenants["eta"].policy.policy() == Policy()


def test_what_is_wrong_with_a_policy_is_named_by_its_path(tmp_path: Path):
    wrong = {"models": ["llama-8b", "llama-80b", 5], "tiers": ["fast"], "least_trust": "blind", "regions": []}
    found = problems(
        tmp_path,
        {},
        {
            "acme": {"policy": {**wrong, "max_price": {"input": -1, "inputs": 1}}},
            "a/b": {},
            "zeta": {"polcy": {}},
        },
    )
    assert found.keys() == {
        "tenants.acme.policy.models[1]",
        "tenants.acme.policy.models[2]",
        "tenants.acme.policy.tiers[0]",
        "tenants.acme.policy.least_trust",
        "tenants.acme.policy.regions",
        "tenants.acme.policy.max_price.input",
        "tenants.acme.policy.max_price.inputs",
        "tenants.a/b",
        "tenants.zeta.polcy",
    }
    assert found["tenants.acme.policy.models[1]"] == "there is no model llama-80b; did you mean llama-8b?"
    assert found["tenants.acme.policy.regions"] == "should have at least one item"
