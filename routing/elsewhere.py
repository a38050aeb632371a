"""What other gateways have at an endpoint that we share with them, all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

    from routing.gossip import Standings


class Elsewhere(Struct, frozen=True, gc=False):
    """As `gossip.Standings`, of all of them."""

    waiting: int = 0
    decoding: int = 0
    pending_work: float = 0.0
    sent_work_per_s: float = 0.0
    sent_per_s: float = 0.0
    rate_work: float = 0.0
    rate_s: float = 0.0
    slower_s: float = 0.0
    guessed_s: float = 0.0


NOTHING_ELSEWHERE = Elsewhere()


def together(said: Iterable[Standings]) -> Elsewhere:
    """Written out, since it is done for every endpoint of every batch."""
    waiting = decoding = 0
    pending = sent_work = sent = rate_work = rate_s = slower_s = guessed_s = 0.0
    for each in said:
        waiting += each.waiting
        decoding += each.decoding
        pending += each.pending_work
        sent_work += each.sent_work_per_s
        sent += each.sent_per_s
        rate_work += each.rate_work
        rate_s += each.rate_s
        slower_s += each.slower_s
        guessed_s += each.guessed_s
    return Elsewhere(waiting, decoding, pending, sent_work, sent, rate_work, rate_s, slower_s, guessed_s)
