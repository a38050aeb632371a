from __future__ import annotations

from config_files import Problems, Read, with_names

from gateway.config_policy import PolicySection, as_given
from gateway.policy import Policy


def test_a_tenant_is_bounded_by_what_its_policy_says_and_by_nothing_else(read: Read):
    acme = {
        "least_trust": "verified",
        "regions": ["eu-west"],
        "max_price": {"input": 0.000001, "output": 2},
        "models": ["llama-8b", "huge", "smart"],
        "tiers": ["default", "flex"],
    }
    tenants = {"acme": {"policy": acme}, "zeta": {"policy": None}, "eta": None}
    config = read(with_names({"smart": {"default": "big"}}, tenants))
    assert config.tenants["acme"].policy.policy() == Policy(
        models=frozenset({"llama-8b", "huge", "smart"}),
        tiers=frozenset({"default", "flex"}),
        least_trust="verified",
        regions=frozenset({"eu-west"}),
        max_input_pico_usd=1,
        max_output_pico_usd=2_000_000,
    )
    assert config.tenants["zeta"].policy.policy() == config.tenants["eta"].policy.policy() == Policy()


def test_what_is_wrong_with_a_policy_is_named_by_its_path(problems: Problems):
    wrong = {"models": ["llama-8b", "llama-80b", 5], "tiers": ["fast"], "least_trust": "blind", "regions": []}
    tenants = {
        "acme": {"policy": {**wrong, "max_price": {"input": -1, "inputs": 1}}},
        "a/b": {},
        "zeta": {"polcy": {}},
    }
    found = problems(with_names(tenants=tenants))
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


LIMITS = {
    "apis": ["chat", "models"],
    "networks": ["10.0.0.0/8", "fd00::1"],
    "requests_per_min": 5,
    "tokens_per_min": 1000,
    "concurrency": 2,
    "budgets": {"day": 0.000000001, "week": "2.5", "month": 1_000_000_000, "total": 0},
}


def test_limits_are_read_to_the_nano_usd(read: Read):
    policy = read(with_names(tenants={"acme": {"policy": LIMITS}})).tenants["acme"].policy.policy()
    assert policy == Policy(
        apis=frozenset({"chat", "models"}),
        networks=frozenset({"10.0.0.0/8", "fd00::1/128"}),
        requests_per_min=5,
        tokens_per_min=1000,
        concurrency=2,
        budgets={"day": 1, "week": 2_500_000_000, "month": 10**18, "total": 0},
    )


def test_what_is_wrong_with_limits_is_named_by_its_path(problems: Problems):
    wrong = {
        "apis": ["audio"],
        "networks": ["10.0.0.1/8"],
        "requests_per_min": 0,
        "tokens_per_min": "many",
        "budgets": {"day": -1, "week": 0.0000000001, "year": 1},
    }
    found = problems(with_names(tenants={"acme": {"policy": wrong}}))
    below = "tenants.acme.policy"
    assert found.keys() == {
        f"{below}.apis[0]",
        f"{below}.networks[0]",
        f"{below}.requests_per_min",
        f"{below}.tokens_per_min",
        f"{below}.budgets.day",
        f"{below}.budgets.week",
        f"{below}.budgets.year",
    }
    assert "no bits behind it" in found[f"{below}.networks[0]"]


def test_a_policy_is_given_again_as_it_could_have_been_written():
    section = PolicySection.model_validate(
        {
            **LIMITS,
            "models": ["b", "a"],
            "tiers": ["flex"],
            "least_trust": "verified",
            "regions": ["eu"],
            "max_price": {"input": "0.000001", "output": 100},
        }
    )
    given = as_given(section.policy())
    assert given["models"] == ["a", "b"]
    assert given["max_price"] == {"input": "0.000001", "output": "100"}
    assert given["budgets"]["day"] == "0.000000001"
    assert PolicySection.model_validate(given) == section
    assert as_given(Policy()) == {}


def test_those_that_are_not_named_have_bounds_and_no_bills_of_their_own(read: Read, problems: Problems):
    config = read(with_names(tenants={"*": {"policy": {"concurrency": 5}}}))
    assert config.tenants["*"].policy.policy().concurrency == 5
    assert problems(with_names(tenants={"*": {"billing": {"mode": "prepaid"}}})) == {
        "tenants.*.billing": "is for tenants by their names"
    }
