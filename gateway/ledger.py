"""What a call used and what it costs, as one immutable row.

A row is made once, when a call has ended however it ended; it goes to the journal with one write and from there to
the database. Money is integers: prices in pico-USD per token, amounts in nano-USD, rounded half to even once a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from routing.types import Price, Usage


class UsageRow(Struct, frozen=True, gc=False):
    """One call that has ended."""

    call_id: str
    """Made by the gateway, unique for ever: what keeps a row from being counted twice."""
    time_ms: int
    """When the call began, milliseconds since 1970 UTC."""
    request_id: str
    """What the client saw as x-request-id; may repeat where clients choose it."""
    tenant: str
    key_id: str
    model: str
    """Public name."""
    endpoint: str
    """Name of the endpoint that served it, or "" where none did."""
    tier: str
    api: str
    """chat, completions or embeddings."""
    stream: bool
    status: int
    """HTTP status the client got (499: it left before it got one)."""
    outcome: str
    """ok, client_left, or the code of the error."""
    attempts: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    """True where the tokens were counted by the gateway because the worker did not report them."""
    ttft_ms: float | None
    duration_ms: float
    charge_nano_usd: int
    """What the tenant owes."""
    cost_nano_usd: int
    """What serving it cost us."""


def amount_nano_usd(price: Price, usage: Usage) -> int:
    """The amount for `usage` at `price`, in nano-USD, rounded half to even."""
    cached_price = (
        price.input_pico_usd if price.cached_input_pico_usd is None else price.cached_input_pico_usd
    )
    pico = (
        (usage.prompt_tokens - usage.cached_tokens) * price.input_pico_usd
        + usage.cached_tokens * cached_price
        + usage.completion_tokens * price.output_pico_usd
    )
    nano, rest = divmod(pico, 1000)
    if rest > 500 or (rest == 500 and nano % 2 == 1):
        nano += 1
    return nano
