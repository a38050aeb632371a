"""What a call used and what it costs, as one immutable row.

A row is made once, when a call has ended however it ended; it goes to the journal with one write and from there to
the database. Money is integers: prices in pico-USD per token, amounts in nano-USD, rounded half to even once a share.

Most calls are answered by the one endpoint that was asked, and their row says it all. Where more than one has worked,
the row has the sums, and a `Share` for each piece of work says whose it was and what for. The tenant owes what the
client received, once; all else is waste, which somebody has to bear:

- the gateway, where the endpoint did what it was asked and the gateway chose to do without: the endpoint is paid.
- the node, where it failed to deliver: for tokens that reached nobody it is not paid. Those that did reach the client
  are paid for, though the node died afterwards.

Where an answer goes on elsewhere, the second endpoint has to read the prompt again, and what the first has written. It
is paid for that, by the gateway: it asked for it, the tenant has paid for one reading, and the first endpoint has earned
what it was paid for the tokens that the client has. A node's death is no debt: it would be one that nobody collects.
"""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, structs

if TYPE_CHECKING:
    from routing.types import Endpoint, Price, Usage

Waste = Literal["hedge_lost", "given_up", "read_again", "moved", "broken", "late", "failed"]
"""Why work reached no client."""

ONCE = 1_000_000
"""Multipliers of prices are in millionths; this one changes nothing."""

PAID_BY_GATEWAY: frozenset[Waste] = frozenset({"hedge_lost", "given_up", "read_again", "moved"})
"""Waste of the gateway's choosing. The rest is the node's, who is not paid for it."""

WASTE: dict[Waste, str] = {
    "hedge_lost": "Another attempt raced it and was first.",
    "given_up": "The gateway took it back before its client had anything: a flex call that gave way, a call refused, the gateway's own end.",
    "read_again": "The prompt, and what had been written, read by the endpoint where an answer goes on.",
    "moved": "Written before the answer was moved elsewhere, and written there again.",
    "broken": "The connection or the stream broke: what had not reached the client.",
    "late": "Nothing came in time, or no more.",
    "failed": "A 5xx, a reply that makes no sense, or one that is too large.",
}
"""By cause. The README's table is made of it."""


class Share(Struct, frozen=True, gc=False):
    """A piece of work for one call at one endpoint."""

    endpoint: str
    model: str
    purpose: str
    """`answer`, or of what kind of waste it is."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    charge_nano_usd: int
    """What the tenant owes for it: of waste, nothing."""
    cost_nano_usd: int
    """What the endpoint is paid for it."""
    waste_nano_usd: int
    """What it is worth by the endpoint's prices where it reached no client, paid or not."""
    reasoning_tokens: int = 0
    """Of the completion tokens."""
    hosted: bool = False
    """Whether it is a provider that is paid, and not a node."""


def waste(endpoint: Endpoint, usage: Usage, cause: Waste) -> Share:
    """Work at `endpoint` that reached no client."""
    worth_nano_usd = amount_nano_usd(endpoint.cost, usage)
    paid_nano_usd = worth_nano_usd if cause in PAID_BY_GATEWAY else 0
    return _share(endpoint, usage, cause, 0, paid_nano_usd, worth_nano_usd)


def answer(endpoint: Endpoint, usage: Usage, charge_nano_usd: int) -> Share:
    """Work at `endpoint` that reached the client, and the tenant's charge for it."""
    return _share(endpoint, usage, "answer", charge_nano_usd, amount_nano_usd(endpoint.cost, usage), 0)


def _share(endpoint: Endpoint, usage: Usage, purpose: str, charge: int, cost: int, wasted: int) -> Share:
    return Share(
        endpoint=endpoint.name,
        model=endpoint.model,
        purpose=purpose,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        estimated=usage.estimated,
        charge_nano_usd=charge,
        cost_nano_usd=cost,
        waste_nano_usd=wasted,
        reasoning_tokens=usage.reasoning_tokens,
        hosted=endpoint.kind != "worker",
    )


class UsageRow(Struct, frozen=True, gc=False, omit_defaults=True):
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
    """Name of the endpoint that served it, the first where it was several, or "" where none did."""
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
    """What serving it cost us, all shares together."""
    waste_nano_usd: int = 0
    """What the work was worth that reached no client; what of it was paid is in the cost as well."""
    project: str = ""
    """The key's, within its tenant."""
    customer: str = ""
    """Whom the tenant made the call for, in its own words."""
    reasoning_tokens: int = 0
    """Of the completion tokens."""
    hosted: bool = False
    """Whether the endpoint is a provider's, and not a node."""
    shares: tuple[Share, ...] = ()
    """Where it was not one endpoint alone: whose work it was."""


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
    if usage.reasoning_tokens and price.reasoning_pico_usd is not None:
        pico += usage.reasoning_tokens * (price.reasoning_pico_usd - price.output_pico_usd)
    parts = 1000 * price.parts
    nano, rest = divmod(pico, parts)
    if 2 * rest > parts or (2 * rest == parts and nano % 2 == 1):
        nano += 1
    return nano


def multiplied(price: Price, millionths: int) -> Price:
    """`price` times that many millionths, exactly."""
    shared = gcd(millionths, ONCE)
    factor, parts = millionths // shared, ONCE // shared
    cached, reasoning = price.cached_input_pico_usd, price.reasoning_pico_usd
    return structs.replace(
        price,
        input_pico_usd=price.input_pico_usd * factor,
        output_pico_usd=price.output_pico_usd * factor,
        cached_input_pico_usd=None if cached is None else cached * factor,
        reasoning_pico_usd=None if reasoning is None else reasoning * factor,
        parts=price.parts * parts,
    )
