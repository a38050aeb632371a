import json

import pytest

from backends.said import Said
from gateway.openai import parse
from gateway.traits import shows_ids, traits_of, traits_shown
from routing.resume import Trait

USER = {"role": "user", "content": "Why?"}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
TOOL = {"type": "function", "function": {"name": "f"}}


def traits(api, **fields: object):
    return traits_of(parse(api, json.dumps({"model": "m"} | fields).encode(), {}))


@pytest.mark.parametrize(
    ("fields", "trait"),
    [
        ({}, Trait.PLAIN),
        ({"tools": None, "response_format": {"type": "text"}, "include_reasoning": True}, Trait.PLAIN),
        ({"tools": [TOOL], "tool_choice": "none"}, Trait.PLAIN),
        ({"tools": [TOOL]}, Trait.TOOLS),
        ({"messages": [USER, PICTURE]}, Trait.MEDIA),
        ({"n": 2}, Trait.CHOICES),
        ({"response_format": {"type": "json_object"}}, Trait.GRAMMAR),
        ({"structured_outputs": {"regex": "a+"}}, Trait.GRAMMAR),
        ({"guided_json": {}, "guided_choice": ["a"]}, Trait.GRAMMAR),
        ({"include_reasoning": False}, Trait.HIDDEN_REASONING),
        ({"use_beam_search": True}, Trait.BEAM),
        ({"echo": True}, Trait.ECHO),
        ({"prompt_logprobs": 0}, Trait.ECHO),
        ({"truncate_prompt_tokens": 5}, Trait.TRUNCATED),
    ],
)
def test_what_a_chat_asks_for_is_told_apart(fields, trait):
    assert traits("chat", **({"messages": [USER]} | fields)) == {trait}


@pytest.mark.parametrize(
    ("fields", "trait"),
    [
        ({"prompt": "x"}, Trait.PLAIN),
        ({"prompt": ["x"]}, Trait.PLAIN),
        ({"prompt": [1, 2]}, Trait.PROMPT_IDS),
        ({"prompt": ["x", "y"]}, Trait.CHOICES),
        ({"prompt": "x", "suffix": "y"}, Trait.SUFFIX),
        ({"prompt_embeds": "AAAA"}, Trait.EMBEDS),
    ],
)
def test_so_is_what_a_plain_completion_asks_for(fields, trait):
    assert traits("completions", **fields) == {trait}


@pytest.mark.parametrize(
    ("told", "trait"),
    [
        ({"calls_tools": True}, Trait.TOOL_CALL),
        ({"reasons": True, "reasoned": True}, Trait.REASONING),
        ({"reasoned": True}, Trait.REASONED),
        ({"unclear": True}, Trait.UNCLEAR),
    ],
)
def test_so_is_what_has_been_shown(told, trait):
    said = Said()
    assert traits_shown(said) == frozenset()
    for name, value in told.items():
        setattr(said, name, value)
    assert traits_shown(said) == {trait}


def test_ids_are_shown_to_those_who_asked():
    for given, shown in ((True, True), (False, False), (None, False)):
        body = json.dumps({"model": "m", "messages": [USER], "return_token_ids": given}).encode()
        assert shows_ids(parse("chat", body, {})) == shown
    assert not shows_ids(parse("chat", json.dumps({"model": "m", "messages": [USER]}).encode(), {}))
