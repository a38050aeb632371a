"""What can be asked of usage, and what the answer is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Mapping

Grouping = Literal[
    "tenant", "project", "key", "model", "endpoint", "tier", "customer", "hour", "day", "month"
]
Order = Literal["charge", "group"]

GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)


class Measures(Struct, frozen=True):
    """What some calls add up to."""

    calls: int
    errors: int
    """Calls that ended in neither a whole answer nor the client's leaving."""
    estimated_calls: int
    """Calls whose tokens the gateway counted itself."""
    helped_calls: int
    """By endpoint: calls that name another endpoint in their row, and that this one has worked for."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    wasted_tokens: int
    """Of work that reached no client; none of the others are."""
    charge_nano_usd: int
    cost_nano_usd: int
    waste_nano_usd: int


class Total(Struct, frozen=True):
    group: tuple[str, ...]
    """One value for each grouping."""
    sums: Measures


class Question(Struct, frozen=True):
    """What to sum up."""

    since_ms: int
    until_ms: int
    """Calls that began before it."""
    by: tuple[Grouping, ...] = ()
    """Nothing: one total, or none where there was no call."""
    only: Mapping[Grouping, str | tuple[str, ...]] = {}
    """Calls of this tenant, of one of these projects and so on."""
    order: Order = "charge"
    """The largest charge first, or in the order of the groups, which pages are made of."""
    after: tuple[str, ...] | None = None
    """In the order of the groups, those behind this one."""
    limit: int | None = None
