"""What was done in the midst of a call to hide churn from its client: when, why, whom it was taken from and who took it.

Most calls have none. Those that do tell it in their reply's headers, as far as these have not gone out yet, and where a
decision log is kept each step is a line of it, with the plan that it was made by and what the call came to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from backends.base import EndpointLeaves, RunsSlowly

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backends.base import AttemptFailed
    from gateway.meter import Meter

Kind = Literal["hedge", "resume", "hand_over", "move"]
"""hedge: a second endpoint is asked beside one that is late. resume: what has broken goes on elsewhere. hand_over: the same
of what was taken from an endpoint that has to leave. move: the same of a stream that ran slowly, and had not broken."""


class Step(Struct):
    """One of them. Its outcome is known later."""

    kind: Kind
    cause: str
    """late, slow, leaving, or the code of the failure by which a stream broke."""
    begun: str
    """The endpoint that was late or slow, has broken or has to leave."""
    taken: str = ""
    """The one asked beside it, or that has gone on."""
    outcome: str = ""
    """Of a hedge: won, lost, failed or abandoned, as `tidegate_hedges_total` counts them. Of the others: tokens or text, by
    which it went on; failed, where those asked could not; error, where nobody could be asked, or it was not possible."""
    tokens: int = 0
    """Written of the answer by then."""
    at_s: float = 0.0
    """Since the call came."""
    expected_nano_usd: int = 0
    """What it was expected to cost. What it has cost is in the shares of the call."""


def cause_of(failure: AttemptFailed) -> str:
    """What it is counted under."""
    match failure:
        case RunsSlowly():
            return "slow"
        case EndpointLeaves():
            return "leaving"
    return failure.code


def kind_of(failure: AttemptFailed) -> Kind:
    match failure:
        case RunsSlowly():
            return "move"
        case EndpointLeaves():
            return "hand_over"
    return "resume"


def rare_lines(meter: Meter) -> bytes:
    """Header lines that most replies have not: of a call that had to wait for a place, or had steps."""
    queued = b"x-tidegate-queued-ms: %.3f\r\n" % (meter.queued_s * 1000) if meter.queued_s else b""
    _, request = meter.what
    return queued + (header_line(meter.steps, prices=request.explain) if meter.steps else b"")


def header_line(steps: Iterable[Step], *, prices: bool) -> bytes:
    """Of a reply: a list of RFC 8941, in the order in which they were taken; `prices` for those who may see them."""
    items = []
    for step in steps:
        item = f'{step.kind};cause={step.cause};from="{step.begun}";to="{step.taken}";outcome={step.outcome or "open"}'
        usd = f";usd={step.expected_nano_usd / 1e9:.9f}" if prices else ""
        items.append(f"{item};tokens={step.tokens}{usd}")
    return f"x-tidegate-steps: {', '.join(items)}\r\n".encode()
