"""Replies wanted in one piece that take seconds: their workers are asked for streams, of which the reply is made here.

Of a reply in one piece nothing is seen before its end: a worker that has fallen silent under it looks like one that
writes, and where it dies, all that was written is lost. A stream is watched, raced and gone on with like any other. Short
replies are left as they are, since a stream costs the gateway more than it could save there: they are begun anew instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw, structs

from backends.assembly import Assembly, can_be_assembled
from backends.usage import WholeReply, whole_reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.openai import Request
    from routing.types import Call, Plan

LONG_S = 2.0
"""Expected to take so long, a reply is worth it."""


def as_stream(
    request: Request, plan: Plan, call: Call, output_tokens: Callable[[Call], float], *, again: bool
) -> Request:
    """The request as workers are to be asked it: for a stream, where the best of the plan is a worker that is expected to
    take long for the tokens expected of the call, and where the reply is known to be the same.

    One that has been in vain before is asked for so however short it is: another time it would not be begun anew.
    """
    if request.stream or not plan.ranked:
        return request
    best = plan.ranked[0]
    if best.endpoint.kind != "worker":
        return request
    expected = best.estimate
    takes_s = expected.ttft_s + output_tokens(call) * expected.itl_s
    if (takes_s < LONG_S and not again) or not can_be_assembled(request.fields, request.choices):
        return request
    return streamed(request)


def streamed(request: Request) -> Request:
    """The same request for a stream."""
    fields = {**request.fields, "stream": Raw(b"true")}
    return structs.replace(request, stream=True, shows_usage=True, fields=fields)


class Making:
    """A whole reply in the making: stands in the client's place while its stream is relayed."""

    def __init__(self, request: Request, limit_bytes: int) -> None:
        self._request = request
        self._assembly = Assembly(chat=request.api == "chat", limit_bytes=limit_bytes)

    @property
    def full(self) -> bool:
        """Never: what is too much is refused."""
        return False

    async def drain(self) -> None:
        """Nothing to wait for."""

    def write(self, block: bytes) -> None:
        """Events as the client of a stream would see them. Raises ReplyMalformed or ReplyOversized."""
        self._assembly.write(block)

    def reply(self, model: str) -> WholeReply:
        """All of it, under the model's public name. Raises AttemptFailed where it is none."""
        tier = self._request.tier if self._request.tier_asked else None
        return whole_reply(self._assembly.body(), model, tier, 1)
