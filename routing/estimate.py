"""What serving a call at one endpoint would take, in seconds, and cost, in nano-USD.

Every term carries a unit, so nothing here is a weight to tune. A cached prefix is not a bonus either: it is prefill
work that need not be done, and shows as fewer seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from routing.types import Estimate

if TYPE_CHECKING:
    from routing.types import Call, Endpoint, Load

LEAST_TOKENS = 16
"""Tokens. A worker computes at least the last block of a prompt anew, however much of it is cached (vLLM: 16)."""

QUADRATIC_TOKENS = 40_000
"""Tokens of context at which attention doubles the price of prefilling one more token. It matters little below 10k."""

STALL_SHARE = 0.25
"""Share of the seconds for which others are stalled that counts as seconds of this call's own; from simulation."""

MEAN_OUTPUT_TOKENS = 256.0
"""Tokens of output to expect before any call of a model has ended."""


class Ask(Struct, frozen=True):
    """What a call asks of any endpoint, worked out once a plan."""

    prompt_tokens: int
    output_tokens: int
    """Expected."""
    work: float
    """Token-equivalents of prefill where nothing of the prompt is cached."""


def ask(call: Call, mean_output_tokens: float = MEAN_OUTPUT_TOKENS) -> Ask:
    """What `call` asks. It is expected to write the running mean, unless it allows less."""
    output_tokens = round(mean_output_tokens)
    if call.max_tokens is not None:
        output_tokens = min(output_tokens, call.max_tokens)
    return Ask(call.prompt_tokens, output_tokens, prefill_work(call.prompt_tokens))


def prefill_work(prompt_tokens: int, cached_tokens: int = 0) -> float:
    """The work of prefilling a prompt, in token-equivalents: uncached tokens, dearer the longer their context."""
    uncached = max(LEAST_TOKENS, prompt_tokens - cached_tokens)
    # A prompt shorter than LEAST_TOKENS has no context worth the name: it counts as that long.
    mean_context = max(prompt_tokens, uncached) - uncached / 2
    return uncached * (1.0 + mean_context / QUADRATIC_TOKENS)


def estimate(asked: Ask, endpoint: Endpoint, load: Load, cached_tokens: int = 0) -> Estimate:
    """The estimate at one endpoint, in whose cache `cached_tokens` of the prompt are expected."""
    rate = load.work_per_s
    price = endpoint.cost
    work = asked.work
    pico_usd = asked.prompt_tokens * price.input_pico_usd + asked.output_tokens * price.output_pico_usd
    if cached_tokens:
        work = prefill_work(asked.prompt_tokens, cached_tokens)
        if price.cached_input_pico_usd is not None:
            pico_usd -= cached_tokens * (price.input_pico_usd - price.cached_input_pico_usd)
    return Estimate(
        load.base_ttft_s + (load.pending_work + work) / rate,
        load.itl_s,
        STALL_SHARE * load.inflight * work / rate,
        (pico_usd + 500) // 1000,
    )
