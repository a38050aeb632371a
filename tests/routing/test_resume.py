import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.resume import LEAST_STALL_S, RULES, STALL_GAPS, Trait, Way, goes_on, stall_s, ways
from routing.types import Endpoint

WORKER = Endpoint("a", "m", "served", weights="w")
OTHER = Endpoint("b", "m", "elsewhere", weights="w")
HOSTED = Endpoint("h", "m", "h", kind="openai", weights="w", continues=True)

MATRIX = {
    Trait.PLAIN: ("tokens", "text"),
    Trait.PROMPT_IDS: ("tokens", "error"),
    Trait.MEDIA: ("text", "text"),
    Trait.TOOLS: ("text", "text"),
    Trait.TOOL_CALL: ("error", "error"),
    Trait.REASONING: ("error", "error"),
    Trait.REASONED: ("tokens", "error"),
    Trait.HIDDEN_REASONING: ("error", "error"),
    Trait.GRAMMAR: ("error", "error"),
    Trait.CHOICES: ("error", "error"),
    Trait.BEAM: ("error", "error"),
    Trait.ECHO: ("error", "error"),
    Trait.EMBEDS: ("error", "error"),
    Trait.SUFFIX: ("error", "error"),
    Trait.TRUNCATED: ("error", "error"),
    Trait.UNCLEAR: ("error", "error"),
}
"""Where the ids of tokens are known, and where they are not."""


@pytest.mark.parametrize("trait", Trait)
def test_each_kind_of_call_goes_on_as_the_table_says(trait: Trait):
    found = [
        next((way.name.lower() for way in ways([trait], shown=True, knows_ids=known)), "error")
        for known in (True, False)
    ]
    assert tuple(found) == MATRIX[trait]
    assert RULES[trait].why


@given(st.sets(st.sampled_from(Trait)), st.booleans())
def test_until_something_is_shown_everything_is_begun_anew(traits, knows_ids):
    assert ways(traits, shown=False, knows_ids=knows_ids) == (Way.RESTART,)


@given(st.sets(st.sampled_from(Trait)), st.sampled_from(Trait), st.booleans())
def test_one_trait_more_never_allows_more(traits, another, knows_ids):
    more = ways(traits | {another}, shown=True, knows_ids=knows_ids)
    assert set(more) <= set(ways(traits, shown=True, knows_ids=knows_ids))


@pytest.mark.parametrize("way", [Way.TOKENS, Way.TEXT])
def test_only_the_same_weights_go_on(way: Way):
    assert goes_on(way, WORKER, OTHER)
    assert goes_on(way, HOSTED, WORKER)
    assert not goes_on(way, WORKER, Endpoint("c", "m", "served", weights="w-int4"))
    assert not goes_on(way, WORKER, Endpoint("c", "m", "served"))
    assert not goes_on(way, Endpoint("c", "m", "served"), Endpoint("d", "m", "served"))


def test_a_provider_goes_on_from_text_where_it_is_declared_to():
    assert goes_on(Way.TEXT, WORKER, HOSTED)
    assert not goes_on(Way.TOKENS, WORKER, HOSTED)
    assert not goes_on(Way.TEXT, WORKER, Endpoint("h", "m", "h", kind="openai", weights="w"))
    assert goes_on(Way.RESTART, WORKER, Endpoint("h", "m", "h", kind="openai"))


@given(st.floats(0, 100), st.floats(0.1, 600))
def test_a_stream_is_never_given_up_before_it_is_far_behind_nor_after_the_outer_limit(itl_s, most_s):
    limit_s = stall_s(itl_s, most_s)
    assert limit_s == min(most_s, max(LEAST_STALL_S, STALL_GAPS * itl_s))
    assert limit_s <= most_s
