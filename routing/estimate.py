"""What serving a call at one endpoint would take, in seconds, and cost, in nano-USD.

Every term carries a unit, so nothing here is a weight to tune. A cached prefix is not a bonus either: it is prefill
work that need not be done, and shows as fewer seconds.
"""

# ruff: noqa: PLR1730, FURB136 - `max` costs five times a comparison, and this runs for every endpoint of every call.

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from routing.types import Call, Endpoint, Load, Price

LEAST_TOKENS = 16
"""Tokens. A worker computes at least the last block of a prompt anew, however much of it is cached (vLLM: 16)."""

QUADRATIC_TOKENS = 40_000
"""Tokens of context at which attention doubles the price of prefilling one more token. It matters little below 10k."""

STALL_SHARE = 0.5
"""Share of the seconds for which others are stalled that counts as seconds of this call's own; from simulation."""

MOST_BUSY = 0.7
"""Share of its time that an endpoint counts as busy at most: beyond it, the delay to those who come would be endless."""

MEAN_OUTPUT_TOKENS = 256.0
"""Tokens of output to expect before any call of a model has ended."""


NOTHING_CACHED: Mapping[str, int] = MappingProxyType({})

Figures = tuple[float, float, float, int]
"""The values of an `Estimate`, in its order. A call looks at one or two of those made for it, and a tuple costs a third."""


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
    uncached = prompt_tokens - cached_tokens
    if uncached < LEAST_TOKENS:
        uncached = LEAST_TOKENS
    # A prompt shorter than LEAST_TOKENS has no context worth the name: it counts as that long.
    context = prompt_tokens if prompt_tokens > uncached else uncached
    return uncached * (1.0 + (context - uncached / 2) / QUADRATIC_TOKENS)


def expected_cost_nano_usd(asked: Ask, price: Price, cached_tokens: int) -> int:
    """What the tokens asked for cost, so many of the prompt being cached."""
    pico_usd = asked.prompt_tokens * price.input_pico_usd + asked.output_tokens * price.output_pico_usd
    if cached_tokens and price.cached_input_pico_usd is not None:
        pico_usd -= cached_tokens * (price.input_pico_usd - price.cached_input_pico_usd)
    return (pico_usd + 500) // 1000


def estimates(
    asked: Ask, members: Iterable[tuple[Endpoint, Load]], cached_tokens: Mapping[str, int] = NOTHING_CACHED
) -> list[Figures]:
    """The estimate at each endpoint; `cached_tokens`, by its name, are how many of the prompt are expected in its cache.

    What a call imposes on others is the stall of those that are decoding there, and the delay of those still to come,
    who find it in front of them. Without it every endpoint would get a copy of every prefix, and near saturation the pool
    collapses.
    """
    if not cached_tokens:
        return [figures(asked, endpoint, load) for endpoint, load in members]
    held = cached_tokens.get
    return [figures(asked, endpoint, load, held(endpoint.name, 0)) for endpoint, load in members]


def figures(asked: Ask, endpoint: Endpoint, load: Load, cached_tokens: int = 0) -> Figures:
    """The estimate at one endpoint, in whose cache so many tokens of the prompt are expected."""
    work = prefill_work(asked.prompt_tokens, cached_tokens) if cached_tokens else asked.work
    rate, itl_s = load.work_per_s, load.itl_s
    own_s = work / rate
    waiting_s = load.pending_work / rate + own_s
    imposed_s = 0.0
    if load.decoding:
        imposed_s = STALL_SHARE * load.decoding * (own_s + asked.output_tokens * itl_s * load.crowding)
    if load.arrivals_per_s:
        free = 1.0 - load.busy if load.busy < MOST_BUSY else 1.0 - MOST_BUSY
        imposed_s += own_s * load.arrivals_per_s * waiting_s / free
    cost_nano_usd = expected_cost_nano_usd(asked, endpoint.cost, cached_tokens)
    return load.base_ttft_s + waiting_s, itl_s, imposed_s, cost_nano_usd
