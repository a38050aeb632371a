"""Names that stand for another model in each tier, as the configuration has them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gateway.config import Config, ConfigError, load

if TYPE_CHECKING:
    from pathlib import Path

MODEL = {"price": {"input": 1, "output": 2}, "endpoints": [{"worker": "http://10.0.0.5:8000"}]}
MODELS = {"big": {**MODEL, "aliases": ["huge"]}, "llama-70b": MODEL, "llama-8b": MODEL}


def read(home: Path, aliases: Any) -> Config:
    path = home / "tidegate.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "aliases": aliases}))
    return load(path, {})


def problems(home: Path, aliases: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(home, aliases)
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
