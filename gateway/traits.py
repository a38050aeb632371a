"""What of a call, and of what has been shown of its answer, decides whether it can be gone on with elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from backends.handover import given_ids
from routing.resume import Trait

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

    from backends.said import Said
    from gateway.openai import Request

_MEDIA = re.compile(rb'"(image_url|input_audio|video_url|image_embeds|audio_embeds|audio_url|file)"')
"""As a field, or as the type of a part."""


def _given(value: Any) -> bool:
    return bool(value)


def _grammar(value: Any) -> bool:
    return bool(value) and value != {"type": "text"}


def _is_off(value: Any) -> bool:
    return value is False


_OF_FIELDS: dict[str, tuple[Trait, Callable[[Any], bool]]] = {
    "tools": (Trait.TOOLS, _given),
    "functions": (Trait.TOOLS, _given),
    "include_reasoning": (Trait.HIDDEN_REASONING, _is_off),
    "response_format": (Trait.GRAMMAR, _grammar),
    "structured_outputs": (Trait.GRAMMAR, _given),
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar"), (Trait.GRAMMAR, _given)
    ),
    "use_beam_search": (Trait.BEAM, _given),
    "echo": (Trait.ECHO, _given),
    "prompt_logprobs": (Trait.ECHO, lambda value: value is not None),
    "prompt_embeds": (Trait.EMBEDS, _given),
    "suffix": (Trait.SUFFIX, _given),
    "truncate_prompt_tokens": (Trait.TRUNCATED, lambda value: value is not None),
}


def traits_of(request: Request) -> frozenset[Trait]:
    """Those of the call itself."""
    fields, found = request.fields, set()
    if request.choices != 1:
        found.add(Trait.CHOICES)
    for name in _OF_FIELDS.keys() & fields.keys():
        trait, has = _OF_FIELDS[name]
        if has(_value(fields[name])):
            found.add(trait)
    if Trait.TOOLS in found and _value(fields.get("tool_choice")) == "none":
        found.remove(Trait.TOOLS)
    if request.api == "chat":
        if _MEDIA.search(fields["messages"]):
            found.add(Trait.MEDIA)
    elif given_ids(fields) is not None:
        found.add(Trait.PROMPT_IDS)
    return frozenset(found or {Trait.PLAIN})


def traits_shown(said: Said) -> frozenset[Trait]:
    """Those of what the client has seen."""
    shown = {
        Trait.TOOL_CALL: said.calls_tools,
        Trait.REASONING: said.reasons,
        Trait.REASONED: said.reasoned and not said.reasons,
        Trait.UNCLEAR: said.unclear,
    }
    return frozenset(trait for trait, is_so in shown.items() if is_so)


def shows_ids(request: Request) -> bool:
    """Whether the client asked for the ids of tokens."""
    return "return_token_ids" in request.fields and _value(request.fields["return_token_ids"]) is True


def _value(raw: Raw | None) -> Any:
    return None if raw is None else msgspec.json.decode(raw)
