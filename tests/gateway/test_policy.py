from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from gateway.errors import ApiError
from gateway.openai import Request
from gateway.policy import UNBOUNDED, ApiName, InForce, Period, Policies, Policy, TrustName
from routing.filters import filters_for
from routing.types import NO_DEMANDS, Call, Demands, Endpoint, Price, Tier, TierName, Trust

if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = ["a", "b", "c"]
TIERS = get_args(TierName)
MONEY = st.none() | st.integers(0, 5)
NETWORKS = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3/32",
    "192.168.0.0/16",
    "::/0",
    "fd00::/8",
    "fd00::1/128",
]
ADDRESSES = [
    "10.1.2.3",
    "10.1.0.1",
    "10.9.9.9",
    "192.168.1.1",
    "8.8.8.8",
    "fd00::1",
    "fd00::2",
    "2001:db8::1",
]


def some(names: Iterable[str]):
    return st.frozensets(st.sampled_from(list(names)))


POLICIES = st.builds(
    Policy,
    models=st.none() | some(NAMES),
    tiers=st.none() | some(TIERS),
    least_trust=st.sampled_from(get_args(TrustName)),
    regions=st.none() | some(NAMES),
    max_input_pico_usd=MONEY,
    max_output_pico_usd=MONEY,
    apis=st.none() | some(get_args(ApiName)),
    networks=st.none() | some(NETWORKS),
    requests_per_min=MONEY,
    tokens_per_min=MONEY,
    concurrency=MONEY,
    budgets=st.dictionaries(st.sampled_from(get_args(Period)), st.integers(0, 5)),
)
DEMANDS = st.just(NO_DEMANDS) | st.builds(
    Demands,
    max_input_pico_usd=MONEY,
    max_output_pico_usd=MONEY,
    least_trust=st.sampled_from(Trust),
    regions=some(NAMES),
)
ENDPOINTS = st.builds(
    Endpoint,
    name=st.just("e"),
    model=st.sampled_from(NAMES),
    served_model=st.just("m"),
    region=st.none() | st.sampled_from(NAMES),
    trust=st.sampled_from(Trust),
    cost=st.builds(Price, st.integers(0, 5), st.integers(0, 5)),
)


def request(tier: TierName | None = "default", demands: Demands = NO_DEMANDS) -> Request:
    """As `parse` makes it of a call that names this tier, or none."""
    asked = tier is not None
    return Request(
        api="chat",
        model="m",
        fields={},
        tier=tier or "default",
        tier_asked=asked,
        tier_insisted=asked,
        demands=demands,
    )


def admits(policy: Policy, tier: TierName, demands: Demands, endpoint: Endpoint) -> bool:
    """Whether a call of that tier, with those demands, may go to that endpoint."""
    if policy.models is not None and endpoint.model not in policy.models:
        return False
    asked = request(tier, demands)
    try:
        policy.bind(asked)
    except ApiError:
        return False
    call = Call("m", Tier(asked.tier, 5.0, 0.0), 1, 1, demands=asked.demands)
    return all(reject(call, endpoint) is None for _, reject in filters_for(call))


@given(POLICIES, POLICIES, st.sampled_from(TIERS), DEMANDS, ENDPOINTS)
def test_the_narrower_of_two_policies_admits_exactly_what_both_admit(
    one: Policy, other: Policy, tier: TierName, demands: Demands, endpoint: Endpoint
):
    both = admits(one, tier, demands, endpoint) and admits(other, tier, demands, endpoint)
    assert admits(one.narrowed(other), tier, demands, endpoint) == both
    assert one.narrowed(other) == other.narrowed(one)


@given(POLICIES, st.sampled_from(TIERS), DEMANDS, ENDPOINTS)
def test_no_policy_admits_what_the_call_itself_refuses(
    policy: Policy, tier: TierName, demands: Demands, endpoint: Endpoint
):
    if admits(policy, tier, demands, endpoint):
        assert admits(Policy(), tier, demands, endpoint)


@given(POLICIES)
def test_a_policy_narrowed_by_nothing_or_itself_stays_as_it_is(policy: Policy):
    assert policy.narrowed(Policy()) == policy.narrowed(policy) == policy


@given(POLICIES)
def test_what_is_written_is_read_again(policy: Policy):
    assert Policy.read(policy.text()) == policy


def test_what_is_kept_can_be_read_by_people_too():
    policy = Policy(models=frozenset({"b", "a"}), least_trust="verified", max_input_pico_usd=500_000)
    assert policy.text() == '{"models":["a","b"],"least_trust":"verified","max_input_pico_usd":500000}'
    assert policy.described() == "models a, b; trust verified; input up to 0.5"
    rest = Policy(tiers=frozenset(), regions=frozenset({"eu"}), max_output_pico_usd=1)
    assert rest.described() == "tiers none; regions eu; output up to 1e-06"
    limits = Policy(
        apis=frozenset({"chat"}),
        networks=frozenset({"10.0.0.0/8"}),
        requests_per_min=5,
        tokens_per_min=1000,
        concurrency=2,
        budgets={"total": 1, "day": 1_500_000_000},
    )
    assert limits.described() == (
        "APIs chat; networks 10.0.0.0/8; 5 requests/min; 1000 tokens/min; 2 at once; "
        "1.50 USD a day; 0.000000001 USD in all"
    )
    assert Policy().described() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"modles":["a"]}', '{"least_trust":"blind"}', "null"])
def test_what_cannot_be_read_allows_nothing_and_is_told(text: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.ERROR, "gateway.policy")
    policy = Policy.read(text)
    assert policy.models == frozenset()
    with pytest.raises(ApiError):
        policy.bind(request())
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("allowed", "asked", "given_instead"),
    [
        ({"default", "flex"}, None, "default"),
        ({"flex", "priority"}, None, "flex"),
        ({"priority"}, None, "priority"),
        ({"priority"}, "priority", "priority"),
        ({"flex"}, "default", None),
        ({"default"}, "priority", None),
        (set(), None, None),
    ],
)
def test_a_call_that_leaves_the_tier_to_us_gets_one_it_may_have_and_one_that_names_it_is_refused(
    allowed: set[TierName], asked: TierName | None, given_instead: TierName | None
):
    call = request(asked)
    policy = Policy(tiers=frozenset(allowed))
    if given_instead is None:
        with pytest.raises(ApiError) as refused:
            policy.bind(call)
        error = refused.value
        assert (error.code, error.status, error.param) == ("tier_not_allowed", 403, "service_tier")
        assert (", ".join(sorted(allowed)) or "none") in error.message
    else:
        policy.bind(call)
        assert call.tier == given_instead


def test_where_regions_have_nothing_in_common_it_is_said_which_they_are():
    policy = Policy(regions=frozenset({"eu-west", "eu-north"}))
    with pytest.raises(ApiError) as refused:
        policy.bind(request(demands=Demands(regions=frozenset({"us"}))))
    assert (refused.value.code, refused.value.status) == ("demands_not_met", 400)
    assert refused.value.message == "The call asks for regions us, and this key may use eu-north, eu-west."
    with pytest.raises(ApiError, match="This key may use none"):
        policy.narrowed(Policy(regions=frozenset({"us"}))).bind(request())


def test_a_policy_that_is_met_by_every_endpoint_leaves_a_call_without_demands():
    call = request()
    Policy(models=frozenset({"a"}), tiers=frozenset({"default"})).bind(call)
    assert call.demands is NO_DEMANDS


def test_a_key_is_held_to_its_own_policy_and_its_tenants_by_the_models_behind_each_name():
    behind = {"smart": {"a", "b"}, "a": {"a"}, "b": {"b"}, "c": {"c"}}
    policies = Policies({"acme": Policy(models=frozenset({"smart"}))}, lambda name: behind.get(name, ()))
    assert policies.in_force("acme").policy == Policy(models=frozenset({"a", "b"}))
    own = Policy(models=frozenset({"a", "c", "gone"}), least_trust="provider")
    of_key = ("key:k", own)
    assert policies.in_force("acme", None, of_key).policy == Policy(
        models=frozenset({"a"}), least_trust="provider"
    )
    assert policies.in_force("acme", own, ("project:acme/web", Policy(regions=frozenset({"eu"})))) == InForce(
        Policy(models=frozenset({"a"}), least_trust="provider", regions=frozenset({"eu"}))
    )
    assert policies.in_force("zeta", None, of_key).policy == Policy(
        models=frozenset({"a", "c"}), least_trust="provider"
    )
    assert policies.in_force("zeta") == UNBOUNDED.in_force("acme") == InForce()


def test_tenants_that_are_not_named_are_held_to_what_is_said_of_the_others():
    policies = Policies(
        {"acme": Policy(), "*": Policy(tiers=frozenset({"flex"}), concurrency=5)}, lambda _: ()
    )
    assert policies.in_force("acme") == InForce()
    for tenant in ("zeta", "eta"):
        held_to = policies.in_force(tenant, Policy(concurrency=9))
        assert held_to.policy == Policy(tiers=frozenset({"flex"}))
        ((subject, limits),) = held_to.bounds
        assert (subject, limits.concurrency) == (f"tenant:{tenant}", 5)


def test_limits_stand_side_by_side_by_subject_and_narrow_only_on_the_same_one():
    policies = Policies(
        {"acme": Policy(requests_per_min=10, budgets={"day": 5, "week": 6})}, lambda name: (name,)
    )
    stored = Policy(
        requests_per_min=7, concurrency=2, budgets={"day": 9, "month": 1}, regions=frozenset({"eu"})
    )
    held_to = policies.in_force(
        "acme", stored, ("project:acme/web", None), ("key:k", Policy(requests_per_min=100))
    )
    assert held_to.policy == Policy(regions=frozenset({"eu"}))
    assert held_to.bounds == (
        (
            "tenant:acme",
            structs.replace(stored, requests_per_min=7, budgets={"day": 5, "week": 6, "month": 1}),
        ),
        ("key:k", Policy(requests_per_min=100)),
    )


def test_a_policy_of_limits_alone_costs_single_calls_nothing():
    held_to = UNBOUNDED.in_force("acme", Policy(tokens_per_min=1))
    assert (held_to.policy, len(held_to.bounds)) == (None, 1)


def test_an_api_that_is_not_allowed_is_refused_with_those_that_are():
    policy = Policy(apis=frozenset({"models", "embeddings"}))
    with pytest.raises(ApiError) as refused:
        policy.bind(request())
    assert (refused.value.code, refused.value.status) == ("api_not_allowed", 403)
    assert "may use embeddings, models" in refused.value.message
    policy.expect_api("models")


@given(some(NETWORKS), some(NETWORKS), st.sampled_from(ADDRESSES))
def test_an_address_is_in_the_common_networks_exactly_where_it_is_in_both(
    one: frozenset[str], other: frozenset[str], address: str
):
    def within(policy: Policy) -> bool:
        return any(ip_address(address) in network for network in policy.source_networks or ())

    policies = Policy(networks=one), Policy(networks=other)
    assert within(policies[0].narrowed(policies[1])) == all(map(within, policies))
