"""What an endpoint is asked that is to go on with an answer.

From the token: the prompt's token ids and those of the answer so far are the prompt of a plain completion, and a worker
writes on as if nothing had happened. From the text: the answer so far is a message to be continued.

Stop strings are not for the endpoint, which cannot see one that began before it was asked: `Stops` finds them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMPLETION_TOKENS = 16
"""What plain completions write where they are not told."""
_REPLACEMENT = "\ufffd"
_special = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,30}\]").finditer
"""`<|assistant|>`, `</s>`, `[TOOL_CALLS]`."""
_MOST_BIAS = 100.0

_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode

_SETTLED_HERE = (
    "stop",
    "include_stop_str_in_output",
    "request_id",
    "return_token_ids",
    "n",
    "best_of",
    "echo",
)
"""What the gateway sees to itself, or what would be wrong a second time."""
_OF_CHAT = (
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "response_format",
    "add_generation_prompt",
    "add_special_tokens",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "reasoning_effort",
)
"""What has made the prompt, or means something else in a plain completion."""
_OF_TEMPLATE = (
    "messages",
    "tools",
    "add_generation_prompt",
    "add_special_tokens",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
)

Fields = dict[str, Raw]


class CannotGoOn(Exception):
    """The call is such that it cannot be gone on with in this way after all."""


def prompt_request(fields: Mapping[str, Raw], *, chat: bool, served_model: str) -> bytes:
    """The body for /tokenize that asks for the ids of the call's prompt."""
    asked = {
        name: fields[name] for name in (_OF_TEMPLATE if chat else ("add_special_tokens",)) if name in fields
    }
    asked["model"] = Raw(_encode(served_model))
    if not chat:
        asked["prompt"] = Raw(_encode(_one_prompt(fields)))
    return _encode(asked)


def text_request(ids: Sequence[int], served_model: str) -> bytes:
    """The body for /detokenize that asks for the text of these tokens."""
    return _encode({"model": served_model, "tokens": ids})


def given_ids(fields: Mapping[str, Raw]) -> list[int] | None:
    """The prompt's ids, where the client gave them itself."""
    prompt = _decode(fields["prompt"]) if "prompt" in fields else None
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        prompt = prompt[0]
    return prompt if isinstance(prompt, list) and prompt and isinstance(prompt[0], int) else None


def from_token(
    fields: Mapping[str, Raw], *, chat: bool, prompt: Sequence[int], ids: Sequence[int], context_tokens: int
) -> Fields:
    """The fields of the plain completion that goes on behind these ids of the answer.

    `context_tokens` are what the model takes in all: what a chat may fill that names no limit. Raises CannotGoOn.
    """
    left = _without(fields, *_SETTLED_HERE, *(_OF_CHAT if chat else ()))
    limit = token_limit(fields, chat=chat)
    room = context_tokens - len(prompt) if limit is None else limit
    if limit is not None and len(ids) >= limit:
        raise CannotGoOn("all the tokens have been written that it may have")
    left["prompt"] = Raw(_encode([*prompt, *ids]))
    left["max_tokens"] = Raw(_encode(max(1, room - len(ids))))
    if chat and _value(fields, "logprobs"):
        left["logprobs"] = Raw(_encode(_value(fields, "top_logprobs") or 0))
    _fewer(left, "min_tokens", len(ids))
    bias = _penalties(fields, ids)
    if bias:
        left["logit_bias"] = Raw(_encode(bias))
    return left


def from_text(fields: Mapping[str, Raw], *, chat: bool, text: str, tokens: int) -> Fields:
    """The fields of the call that goes on behind `text`, which was about so many tokens. Raises CannotGoOn."""
    left = _without(fields, *_SETTLED_HERE)
    if chat:
        messages = _decode(fields["messages"])
        if _value(fields, "continue_final_message") and isinstance(messages[-1].get("content"), str):
            messages[-1]["content"] += text
        elif _value(fields, "continue_final_message"):
            raise CannotGoOn("the message that is to be continued is not plain text")
        else:
            messages.append({"role": "assistant", "content": text})
        left["messages"] = Raw(_encode(messages))
        left["add_generation_prompt"], left["continue_final_message"] = Raw(b"false"), Raw(b"true")
    else:
        left["prompt"] = Raw(_encode(_one_prompt(fields) + text))
    for name in ("max_tokens", "max_completion_tokens"):
        if _value(fields, name) is not None:
            left[name] = Raw(_encode(int(_value(fields, name)) - tokens))
    if not chat and _value(fields, "max_tokens") is None:
        left["max_tokens"] = Raw(_encode(COMPLETION_TOKENS - tokens))
    _fewer(left, "min_tokens", tokens)
    return left


def stop_strings(fields: Mapping[str, Raw]) -> tuple[str, ...]:
    stop = _value(fields, "stop")
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def shows_stop_string(fields: Mapping[str, Raw]) -> bool:
    """Whether the stop string that ends the answer is shown."""
    return bool(_value(fields, "include_stop_str_in_output"))


def count_in(fields: Mapping[str, Raw], name: str) -> int:
    """A field that should be a number; 0 where it is not given. Raises CannotGoOn."""
    try:
        return int(_value(fields, name) or 0)
    except (TypeError, ValueError):
        raise CannotGoOn(f"{name} is no number") from None


def whole_characters(text: str) -> bool:
    """Whether text that tokens stand for does not end in a part of a character, of which a worker could make no text."""
    return not text.endswith(_REPLACEMENT)


def beyond(shown: str, text: str) -> str | None:
    """What `text`, which all tokens stand for, has beyond what has been shown; None where it is not the same text.

    Some tokenizers swallow the space with which a text begins. And special tokens, which a reply leaves out, are written out
    where a worker is asked what text tokens stand for.
    """
    for begun in (text, " " + text):
        for seen in (_visible(shown, begun), begun):
            if seen.startswith(shown):
                return seen[len(shown) :]
    return None


def _visible(shown: str, text: str) -> str:
    """`text` without what looks like a special token and does not stand in `shown`."""
    kept, at, length = [], 0, 0
    hidden: set[str] = set()
    for found in _special(text):
        word, begins = found[0], found.start()
        length += begins - at
        kept.append(text[at:begins])
        at = found.end()
        known = shown[length : length + len(word)]
        is_hidden = word in hidden or word.startswith("<|") if not known else not word.startswith(known)
        if is_hidden:
            hidden.add(word)
        else:
            kept.append(word)
            length += len(word)
    return "".join([*kept, text[at:]])


def _without(fields: Mapping[str, Raw], *names: str) -> Fields:
    return {name: value for name, value in fields.items() if name not in names}


def _value(fields: Mapping[str, Raw], name: str) -> Any:
    return _decode(fields[name]) if name in fields else None


def token_limit(fields: Mapping[str, Raw], *, chat: bool) -> int | None:
    """How many tokens the answer may have."""
    limit = _value(fields, "max_completion_tokens") if chat else None
    limit = _value(fields, "max_tokens") if limit is None else limit
    if limit is None:
        return None if chat else COMPLETION_TOKENS
    return int(limit)


def _one_prompt(fields: Mapping[str, Raw]) -> str:
    prompt = _value(fields, "prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise CannotGoOn("the prompt is no text")
    return prompt


def _fewer(fields: Fields, name: str, by: int) -> None:
    if count := count_in(fields, name):
        fields[name] = Raw(_encode(max(0, count - by)))


def _penalties(fields: Mapping[str, Raw], ids: Sequence[int]) -> dict[str, float]:
    """The call's logit_bias, and what its penalties come to for the answer so far: a worker counts only what it writes."""
    frequency, presence = (
        float(_value(fields, name) or 0.0) for name in ("frequency_penalty", "presence_penalty")
    )
    bias: dict[str, float] = dict(_value(fields, "logit_bias") or {})
    if frequency or presence:
        for token in ids:
            bias[str(token)] = bias.get(str(token), 0.0) - frequency
        for token in set(ids):
            bias[str(token)] -= presence
    return {token: max(-_MOST_BIAS, min(_MOST_BIAS, each)) for token, each in bias.items()}
