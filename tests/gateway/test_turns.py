"""Where turns begin and end, in whatever order and spacing clients write their messages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from request_bodies import request

from gateway.openai import parse
from routing.prefix import PIECE_BYTES

ASKED = {"role": "user", "content": 'say "role": "assistant" {}}' * 20}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "{assistant}"}}]
ANSWERS = [
    {"role": "assistant", "content": "so"},
    {"content": 'first } and "role"', "refusal": None, "role": "assistant"},
    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", " : ")])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    "more", [[ASKED], [{"role": "tool", "content": "1"}, {"role": "tool", "content": "{2}"}], []]
)
def test_a_chat_tells_where_the_turn_before_ended_and_where_its_answer(
    separators: tuple[str, str], answer: dict[str, Any], tools: list[Any] | None, more: list[Any]
):
    def read(messages: list[Any]):
        body = {"model": "m", "messages": messages} | ({"tools": tools} if tools else {})
        return parse("chat", json.dumps(body, separators=separators).encode(), {})

    before, now = read([ASKED, ASKED]), read([ASKED, ASKED, answer, *more])
    assert before.ends is not None
    assert now.ends is not None
    assert before.ends.asked == before.ends.answered == 0
    assert now.prompt[: now.ends.asked] == before.prompt[: before.ends.whole]
    assert now.prompt[now.ends.asked : now.ends.answered].endswith(
        json.dumps(answer, separators=separators).encode()
    )
    assert now.prompt[now.ends.whole :] == b"]"


@pytest.mark.parametrize(
    "messages",
    [[], [1], ["assistant"], [{}], [[], {"role": "assistant"}], [{"role": "assistant"}], [None, "}"]],
)
def test_messages_that_are_none_have_no_turn_before(messages: list[Any]):
    ends = request(messages=[*messages, "x" * PIECE_BYTES]).ends
    assert ends is not None
    assert 0 <= ends.asked <= ends.answered <= ends.whole


def test_a_short_prompt_is_not_looked_at():
    assert request(messages=[{"role": "user", "content": "why?"}]).ends is None
