"""Streams that break and cannot go on from the ids of their tokens: from their text, anew, or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from resumed import (
    CHAT,
    MODELS,
    PLAIN,
    finishes_in,
    pair,
    roles_in,
    same,
    text_of,
)

from loadtest.worker import Fault

if TYPE_CHECKING:
    from pathlib import Path


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "tide_at", "parameters": PLACE}}
WORDS = {
    "type": "object",
    "properties": {"words": {"type": "string", "minLength": 4000}},
    "required": ["words"],
}
LONG_TOOL = {"type": "function", "function": {"name": "recite", "parameters": WORDS}}
"""Its arguments are too long to be held back."""
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "s", "schema": PLACE},
}

FROM_TEXT: dict[str, dict[str, Any]] = {
    "a picture": {
        "messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is this?"}]}]
    },
    "tools offered": {"tools": [TOOL], "messages": [{"role": "user", "content": "Is it high tide?"}]},
}


@pytest.mark.parametrize("how", FROM_TEXT)
async def test_what_cannot_be_given_as_ids_goes_on_from_its_text(how: str, tmp_path: Path):
    async with pair(tmp_path) as both:
        more = FROM_TEXT[how]
        expected = await both.undisturbed(**more)
        assert text_of(expected)  # no tool is called
        both.bad.order(Fault("reset", after_chunks=20, count=1))
        same(await both.heard(**more), expected)
        taken_over = both.good.requests[-1]
        assert taken_over.target == CHAT
        asked = msgspec.json.decode(taken_over.body)
        assert asked["continue_final_message"]
        assert text_of(expected).startswith(asked["messages"][-1]["content"])
        assert await both.resumes() == {("upstream_broken", "text"): 1}


UNFIT: dict[str, tuple[str, dict[str, Any]]] = {
    "two choices": (CHAT, {"n": 2}),
    "two prompts": (PLAIN, {"prompt": ["High?", "Low?"]}),
    "a schema": (CHAT, {"response_format": SCHEMA}),
    "echo": (PLAIN, {"echo": True}),
    "logprobs of the prompt": (PLAIN, {"prompt_logprobs": 1}),
    "a truncated prompt": (PLAIN, {"truncate_prompt_tokens": 100}),
    "beams": (PLAIN, {"use_beam_search": True}),
    "hidden reasoning": (CHAT, {"include_reasoning": False}),
}


@pytest.mark.parametrize("how", UNFIT)
async def test_what_cannot_be_gone_on_with_ends_in_an_error_at_once(how: str, tmp_path: Path):
    path, more = UNFIT[how]
    async with pair(tmp_path) as both:
        both.bad.order(Fault("reset", after_chunks=4, count=1))
        *shown, last = await both.heard(path, **more)
        assert shown
        assert last["error"]["code"] == "upstream_broken"
        assert both.good.requests == ()


CALLED = {"tools": [TOOL], "tool_choice": "required", "max_tokens": None}


def calls_in(events: list[dict[str, Any]]) -> tuple[list[str], str]:
    """The names of the tools that are called, and all arguments."""
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
    return [call["name"] for call in calls if call.get("name")], "".join(call["arguments"] for call in calls)


async def test_a_call_of_a_tool_is_shown_when_it_is_whole_and_begun_anew_where_it_breaks_before(
    tmp_path: Path,
):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(**CALLED)
        assert calls_in(expected)[0] == ["tide_at"]
        for name, after in zip(MODELS, (2, 3, 6, 10), strict=True):
            both.bad.order(Fault("reset", after_chunks=after, count=1))
            heard = await both.heard(model=name, **CALLED)
            assert calls_in(heard) == calls_in(expected)
            assert len({event["id"] for event in heard}) == 1
            assert roles_in(heard) == ["assistant"]
            assert finishes_in(heard) == finishes_in(expected)
        assert await both.resumes() == {}
        assert {(row.outcome, row.attempts) for row in await both.gw.rows(least=4)} == {("ok", 2)}


@pytest.mark.parametrize(("tool", "after"), [(TOOL, 11), (LONG_TOOL, 800)], ids=["whole", "long"])
async def test_a_call_of_a_tool_that_has_been_shown_is_gone_on_with_by_nobody(
    tool: dict[str, Any], after: int, tmp_path: Path
):
    async with pair(tmp_path) as both:
        both.bad.order(Fault("reset", after_chunks=after, count=1))
        *shown, last = await both.heard(**CALLED | {"tools": [tool]})
        assert calls_in(shown)[0] == [tool["function"]["name"]]
        assert last["error"]["code"] == "upstream_broken"
        assert both.good.requests == ()


@pytest.mark.parametrize("how", UNFIT)
async def test_it_is_begun_anew_where_nothing_had_been_shown(how: str, tmp_path: Path):
    path, more = UNFIT[how]
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(path, **more)
        both.bad.order(Fault("reset", after_chunks=0 if path == PLAIN else 1, count=1))
        assert text_of(await both.heard(path, **more)) == text_of(expected)
