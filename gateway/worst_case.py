"""What a call may use at most, and what it will probably use: what is held for it before it begins.

What counts against a rate may be wrong by a bit: it is put right when the call has ended. What counts against a budget is
a bound. No tokenizer makes more tokens of a text than it has bytes, a call is given the most that it may write where it
has not said so itself, and whatever an endpoint should report beyond that is never charged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Raw, structs

from gateway.ledger import amount_nano_usd
from routing.types import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.openai import Request
    from routing.types import Price

TEMPLATE_TOKENS = 256
"""What a chat template may put around a prompt, a system prompt of its own for instance."""
TOOLS_TOKENS = 1024
"""Its instructions for tools."""
MOST_MEDIA_TOKENS = 20_000
"""Of one picture or piece of sound; Qwen2-VL's largest picture has 16,384."""
MOST_VIDEO_TOKENS = 100_000
"""Of a video beyond that."""
COMPLETION_TOKENS = 16
"""What a plain completion writes that has not said how much."""

_LEAST_ROOM = 16
_WEIGHT = 0.1
_LEAST_RATIO, _MOST_RATIO = 0.25, 4.0
_MEDIA = re.compile(rb';base64,[A-Za-z0-9+/=_\\-]+|"data"\s*:\s*"[A-Za-z0-9+/=_\\-]+"')
_NAMED = rb'"(?:image_url|video_url|audio_url|input_audio|file)"'
_FIELD, _TYPE = re.compile(_NAMED + rb"\s*:"), re.compile(rb":\s*" + _NAMED)
"""A part has one of them, or both."""
_READS_NOT = frozenset(
    {"model", "user", "safety_identifier", "routing", "stream_options", "stop", "logit_bias", "metadata"}
)
"""Fields that are no part of any prompt, whatever is in them."""
_A_TEXT = (b'"', b"[", b"{")


class Calibration:
    """How many tokens prompts turn out to have for each that was estimated, by model."""

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}

    def tokens(self, model: str, estimated: int) -> int:
        return round(estimated * self._ratios.get(model, 1.0))

    def saw(self, model: str, estimated: int, real: int) -> None:
        if estimated <= 0 or real <= 0:
            return
        ratio = min(_MOST_RATIO, max(_LEAST_RATIO, real / estimated))
        before = self._ratios.get(model)
        self._ratios[model] = ratio if before is None else before + _WEIGHT * (ratio - before)


def most_prompt_tokens(request: Request, contexts: Sequence[int | None]) -> int:
    """What an endpoint with one of these contexts can count at most."""
    tokens = TEMPLATE_TOKENS + (TOOLS_TOKENS if "tools" in request.fields else 0)
    for name, value in request.fields.items():
        text = bytes(value)
        if name in _READS_NOT or not text.startswith(_A_TEXT):
            continue
        if name == "messages" and (linked := _linked(text)):
            text, encoded = _MEDIA.subn(b"", text)
            videos = text.count(b'"video_url"')
            tokens += max(linked, encoded) * MOST_MEDIA_TOKENS + videos * MOST_VIDEO_TOKENS
        tokens += len(text)
    return _within(tokens, contexts)


def _linked(messages: bytes) -> int:
    """How many parts there are that are no text."""
    if b"_" not in messages and b'"file"' not in messages:
        return 0  # as in most: a hundredth of the time
    return max(len(_FIELD.findall(messages)), len(_TYPE.findall(messages)))


def most_output_tokens(
    request: Request, default: int, contexts: Sequence[int | None], prompt_tokens: int
) -> int:
    """Of one choice: what the call says, else `default`, or what is left of the shortest context beside such a prompt."""
    if request.api == "embeddings":
        return 0
    if request.max_tokens is not None:
        return _within(request.max_tokens, contexts)
    if request.api == "completions":
        return COMPLETION_TOKENS
    known = [context for context in contexts if context is not None]
    if not known:
        return default
    # Twice what the prompt is estimated to have: an endpoint refuses a call for which its context is too short.
    return min(default, max(_LEAST_ROOM, min(known) - 2 * prompt_tokens - _LEAST_ROOM))


def _within(tokens: int, contexts: Sequence[int | None]) -> int:
    known = [context for context in contexts if context is not None]
    # One that has not said how much it takes may take everything.
    return min(tokens, max(known)) if known and len(known) == len(contexts) else tokens


def give_most(request: Request, tokens: int) -> None:
    """Let the call write no more than that; it has said nothing."""
    request.max_tokens = tokens
    name = "max_completion_tokens" if request.api == "chat" else "max_tokens"
    request.fields[name] = Raw(b"%d" % tokens)


def most_nano_usd(prices: Iterable[Price], prompt_tokens: int, output_tokens: int) -> int:
    """By the dearest of the prices."""
    return max(amount_nano_usd(_dearest(price), Usage(prompt_tokens, 0, output_tokens)) for price in prices)


def _dearest(price: Price) -> Price:
    """As if each token were of the dearer kind."""
    return structs.replace(
        price,
        input_pico_usd=max(price.input_pico_usd, price.cached_input_pico_usd or 0),
        cached_input_pico_usd=None,
        output_pico_usd=max(price.output_pico_usd, price.reasoning_pico_usd or 0),
        reasoning_pico_usd=None,
    )
