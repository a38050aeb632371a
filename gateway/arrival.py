"""A call at the moment it is known to be one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.limits import NO_HOLD, Hold

if TYPE_CHECKING:
    from gateway.auth import Key
    from gateway.tracing import CallTrace


class Arrival(Struct, frozen=True, gc=False):
    """A call at the moment its body was complete."""

    call_id: str
    request_id: str
    caller: Key
    """Who pays for it."""
    started_s: float
    """On the monotonic clock: the event loop's own has, with uvloop, a resolution of a millisecond."""
    trace: bytes = b""
    """Header lines with the client's trace context, or nothing."""
    hold: Hold = NO_HOLD
    """What it has taken of its key's limits."""
    traced: CallTrace | None = None
    """Where it is traced: endpoints then get its attempts' trace contexts in place of the client's."""
