from __future__ import annotations

from config_files import Problems, Read, with_names

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
