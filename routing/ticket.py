"""One attempt on one endpoint, as far as it teaches how fast that is."""

from __future__ import annotations

from msgspec import Struct


class Ticket(Struct, eq=False):
    """One attempt on one endpoint, from dispatch to its end. Compared by identity."""

    work: float
    """Token-equivalents of prefill."""
    start_s: float
    queued: bool
    """Whether others waited there when it was sent, so that its wait was not its own."""
    first_s: float | None = None
    """When its first token came."""
    watched: bool = True
    """Whether its first token can be seen: that of a reply which comes as one piece cannot."""
    mark: float = 0.0
    """What `Speed` expected a stream to have produced by then; see `Pace`."""
    seen_s: float = 0.0
    """Up to when it has been learned from, in the stream and `mark`."""
    seen_tokens: int = 1
    ended: bool = False
    read_before: float = 0.0
    """Work of prompts that had been read there by its first token."""
    read_per_s: float = 0.0
    """How much of it was read in a second then, as learned."""
    others_ahead: float = 0.0
    """Work of other gateways that was waiting there when it was sent."""
    others_done: float = 0.0
    """All that had been done for them by then."""
