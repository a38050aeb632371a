from __future__ import annotations

import pytest
from config_files import MINIMAL, Problems, Read, with_names


def test_an_alias_names_a_model_for_each_tier_and_others_to_fall_back_on(read: Read):
    smart = {"priority": "big", "default": "llama-70b", "flex": "llama-8b", "fallbacks": ["llama-8b"]}
    alias = read(with_names({"smart": smart})).aliases["smart"]
    assert alias.models("priority") == ("big", "llama-8b")
    assert alias.models("default") == ("llama-70b", "llama-8b")
    assert alias.models("flex") == ("llama-8b",)


def test_a_tier_that_is_not_named_has_the_model_of_the_default(read: Read):
    alias = read(with_names({"smart": {"default": "big"}})).aliases["smart"]
    assert [alias.models(tier) for tier in ("priority", "default", "flex")] == [("big",)] * 3


def test_what_is_wrong_with_an_alias_is_named_by_its_path(problems: Problems):
    aliases = {
        "big": {"default": "llama-8b"},
        "huge": {"default": "llama-8b"},
        "none": {},
        "wrong": {"default": "llama-8", "flex": "huge", "fallbacks": ["big", "gone"], "cheap": "big"},
        "looped": {"default": "none"},
    }
    assert problems(with_names(aliases)) == {
        "aliases.big": "big is taken already, by model big",
        "aliases.huge": "huge is taken already, by an alias of model big",
        "aliases.none.default": "is required",
        "aliases.wrong.cheap": "unknown key; known are default, priority, flex, fallbacks",
        "aliases.wrong.default": "there is no model llama-8; did you mean llama-8b?",
        "aliases.wrong.flex": "there is no model huge",
        "aliases.wrong.fallbacks[1]": "there is no model gone",
        "aliases.looped.default": "there is no model none",
    }


DISCOVER = MINIMAL.partition("endpoints:")[0] + "endpoints: []\n    discover:\n      - "


@pytest.mark.parametrize(
    ("entry", "path", "words"),
    [
        ("{gpu: x}", "models.llama.discover[0]", "needs exactly one of dns and kubernetes"),
        ("{dns: {host: a b, port: 1}}", "models.llama.discover[0].dns.host", "match pattern"),
        ("{dns: {host: a}}", "models.llama.discover[0].dns.port", "is required"),
        (
            "{kubernetes: {namespace: x, api: 'http://a:1'}}",
            "models.llama.discover[0].kubernetes",
            "needs exactly one of service and selector",
        ),
        (
            "{kubernetes: {service: x, namespace: y}}",
            "models.llama.discover[0].kubernetes.api",
            "is required outside a cluster",
        ),
    ],
)
def test_what_is_wrong_with_a_discovery_is_named(problems: Problems, entry: str, path: str, words: str):
    assert words in problems(DISCOVER + entry + "\n")[path]
