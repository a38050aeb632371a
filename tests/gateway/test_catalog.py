from __future__ import annotations

from typing import Any

import pytest

from gateway.catalog import TIERS, Catalog, Model
from gateway.config import Config
from gateway.errors import ApiError
from routing.types import Price

ENDPOINTS = [{"worker": "http://127.0.0.1:1"}]


def catalog(**models: dict[str, Any]) -> Catalog:
    sections = {
        name.replace("_", "-"): {"price": {"input": 1, "output": 2}, "endpoints": ENDPOINTS, **section}
        for name, section in models.items()
    }
    return Catalog(Config.model_validate({"models": sections}), created_s=7)


LLAMAS = catalog(
    llama_8b={"aliases": ["gpt-4o-mini", "small"]}, llama_70b={"price": {"input": "0.5", "output": 3}}
)


def unknown(name: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        LLAMAS.model(name)
    assert (caught.value.code, caught.value.status, caught.value.param) == ("model_not_found", 404, "model")
    return caught.value


def test_a_model_is_found_by_its_name_and_its_aliases():
    llama = Model("llama-8b", Price(1_000_000, 2_000_000))
    assert [LLAMAS.model(name) for name in ("llama-8b", "gpt-4o-mini", "small")] == [llama] * 3
    assert LLAMAS.model("llama-70b") == Model("llama-70b", Price(500_000, 3_000_000))


def test_what_is_listed_is_models_and_no_aliases():
    assert list(LLAMAS.models) == ["llama-8b", "llama-70b"]


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
        ("claude", ""),
        ("", ""),
    ],
)
def test_a_model_that_there_is_not_is_named_with_those_spelled_alike(name: str, hint: str):
    assert unknown(name).message == f"The model {name!r} does not exist.{hint}"


def test_names_match_exactly():
    for name in ("LLAMA-8B", " llama-8b", "llama-8b\n", "llama-8b\x00", "llama"):
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
        many.model("org6-model-0123-instruct")
    with pytest.raises(ApiError, match=r"Did you mean gpt-4o\?"):
        many.model("gpt4o")
    with pytest.raises(ApiError, match=r"does not exist\.$"):
        many.model("x")
