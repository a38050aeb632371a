import pytest

from routing.filters import capability, context, filters_for, named, price, region, trust
from routing.types import NO_DEMANDS, Call, Demands, Endpoint, Price, Tier, Trust

TIER = Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=1e6)


def call(
    prompt_tokens: int = 100, max_tokens: int | None = None, needs: frozenset = frozenset(), **demands: object
):
    asked = Demands(**demands) if demands else NO_DEMANDS
    return Call("m", TIER, prompt_tokens, max_tokens, needs, asked)


def endpoint(**declared: object):
    return Endpoint(name="a", model="m", served_model="m", **declared)


@pytest.mark.parametrize(
    ("context_tokens", "prompt_tokens", "max_tokens", "fits"),
    [
        (None, 10**9, None, True),
        (8192, 8192, None, True),
        (8192, 16_384, None, True),
        (8192, 16_386, None, False),
        (8192, 100, 8142, True),
        (8192, 100, 8143, False),
    ],
)
def test_only_what_clearly_exceeds_the_context_is_rejected(
    context_tokens: int | None, prompt_tokens: int, max_tokens: int | None, *, fits: bool
):
    reason = context(call(prompt_tokens, max_tokens), endpoint(context_tokens=context_tokens))
    assert (reason is None) == fits
    if not fits:
        assert "8192" in reason


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (None, None),
        (frozenset({"tools", "vision"}), None),
        (frozenset({"vision"}), "does not offer tools"),
        (frozenset(), "does not offer tools, vision"),
    ],
)
def test_a_capability_is_missed_only_where_capabilities_are_declared(
    declared: frozenset | None, reason: str | None
):
    needing = call(needs=frozenset({"tools", "vision"}))
    assert capability(needing, endpoint(capabilities=declared)) == reason


def test_less_trust_than_asked_is_rejected():
    asking = call(least_trust=Trust.VERIFIED)
    assert trust(asking, endpoint(trust=Trust.PROVIDER)) is None
    assert trust(asking, endpoint(trust=Trust.VERIFIED)) is None
    reason = trust(asking, endpoint(trust=Trust.COMMUNITY))
    assert reason == "its trust is community, asked for at least verified"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("eu-west", None),
        ("us-east", "is in us-east, asked for eu-north or eu-west"),
        (None, "declares no region, asked for eu-north or eu-west"),
    ],
)
def test_a_region_asked_for_must_be_declared(where: str | None, reason: str | None):
    assert region(call(regions=frozenset({"eu-west", "eu-north"})), endpoint(region=where)) == reason


@pytest.mark.parametrize(
    ("cap", "reason"),
    [
        ({"max_input_pico_usd": 50_000, "max_output_pico_usd": 100_000}, None),
        (
            {"max_input_pico_usd": 49_999},
            "input costs 0.05 USD per million tokens, asked for at most 0.049999",
        ),
        ({"max_output_pico_usd": 90_000}, "output costs 0.1 USD per million tokens, asked for at most 0.09"),
        ({"max_input_pico_usd": 0}, "input costs 0.05 USD per million tokens, asked for at most 0"),
    ],
)
def test_a_price_cap_holds_for_input_and_output_each(cap: dict, reason: str | None):
    assert price(call(**cap), endpoint(cost=Price(50_000, 100_000))) == reason


def test_both_prices_that_are_too_high_are_told():
    reason = price(call(max_input_pico_usd=1, max_output_pico_usd=2), endpoint(cost=Price(50_000, 100_000)))
    assert reason is not None
    assert reason.startswith("input costs 0.05 USD")
    assert " and output costs 0.1 USD" in reason


@pytest.mark.parametrize("cached", [None, 0, 50_000])
def test_a_cap_on_the_input_price_holds_for_cached_tokens_that_have_no_price_of_their_own(cached: int | None):
    hosted = endpoint(kind="openai", cost=Price(50_000, 100_000, cached))
    assert price(call(max_input_pico_usd=50_000), hosted) is None
    assert price(call(max_input_pico_usd=49_999), hosted) is not None


def test_embeddings_have_no_output_whose_price_could_be_too_high():
    embedding = call(needs=frozenset({"embeddings"}), max_input_pico_usd=5, max_output_pico_usd=5)
    assert price(embedding, endpoint(cost=Price(5, 6))) is None
    assert price(embedding, endpoint(cost=Price(6, 0))) is not None
    assert price(call(max_input_pico_usd=5, max_output_pico_usd=5), endpoint(cost=Price(5, 6))) is not None


@pytest.mark.parametrize(
    ("demands", "reason"),
    [
        ({"only": frozenset({"a", "b"})}, None),
        ({"only": frozenset({"c", "b"})}, "the call allows only b, c"),
        ({"ignore": frozenset({"a"})}, "the call ignores it"),
        ({"ignore": frozenset({"b"})}, None),
        ({"only": frozenset({"a"}), "ignore": frozenset({"a"})}, "the call ignores it"),
    ],
)
def test_only_and_ignore_go_by_name_and_ignore_wins(demands: dict, reason: str | None):
    assert named(call(**demands), endpoint()) == reason


def test_a_call_without_demands_pays_for_one_filter():
    assert [name for name, _ in filters_for(call())] == ["context"]


def test_every_demand_brings_its_filter():
    asking = call(
        needs=frozenset({"tools"}),
        least_trust=Trust.VERIFIED,
        regions=frozenset({"eu"}),
        max_input_pico_usd=1,
        only=frozenset({"a"}),
    )
    names = [name for name, _ in filters_for(asking)]
    assert names == ["named", "trust", "region", "price", "capability", "context"]
