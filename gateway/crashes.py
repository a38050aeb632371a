"""Stops calls under which workers crash: what `routing.poison` decides, asked by whoever runs attempts.

    crashes.refuse(request, arrival)                     before the first attempt
    crashes.saw(failure, endpoint, arrival, tokens)      when one has failed, of a first answer or of a resumed one
    await crashes.judge(failure, request, arrival)       before the next
    crashes.answered(request, arrival)                   when the call has been answered

The client is told with a 422. The call is to blame by all that is seen, and it is 4xx that no SDK repeats by itself:
repeated, it would bring down two workers more.
"""

from __future__ import annotations

import asyncio
import time
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from gateway.errors import ApiError
from routing.poison import SETTLES_S, Poison

if TYPE_CHECKING:
    from backends.base import AttemptFailed
    from backends.fleet import Fleet
    from gateway.arrival import Arrival
    from gateway.openai import Request
    from routing.types import Endpoint

_BESIDE = frozenset(
    {"user", "metadata", "routing", "service_tier", "stream", "stream_options", "store", "model"}
)
"""Fields that no engine sees, or that change nothing of what it computes."""

_encode = msgspec.json.Encoder(order="sorted").encode


class Crashes:
    __slots__ = ("_fleet", "_poison")

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._poison = Poison()

    def refuse(self, request: Request, arrival: Arrival) -> None:
        """Raises ApiError where the call has been stopped a moment ago. Costs nothing where none has."""
        poison = self._poison
        if poison.any_known and poison.knows(_fingerprint(request, arrival), time.monotonic()):
            raise _poisonous("workers crashed under this call a moment ago")

    def saw(self, failure: AttemptFailed, endpoint: Endpoint, arrival: Arrival, tokens: int = 0) -> None:
        """An attempt has failed after so many tokens of the answer, those of earlier attempts included."""
        if failure.crashed:
            worker = (endpoint.model, endpoint.name)
            self._poison.crashed(arrival.call_id, worker, tokens, time.monotonic())

    async def judge(self, failure: AttemptFailed, request: Request, arrival: Arrival) -> None:
        """Raises ApiError where the call is not to be tried again: a worker has crashed under it, and not the first."""
        if not failure.crashed or not self._poison.suspects(arrival.call_id):
            return
        await asyncio.sleep(SETTLES_S)
        now_s = time.monotonic()
        victims = self._poison.guilty(arrival.call_id, now_s)
        if not victims:
            return
        self._poison.remember(_fingerprint(request, arrival), now_s)
        for member in self._fleet.members:
            if (member.endpoint.model, member.endpoint.name) in victims:
                member.pardon(now_s)
        raise _poisonous(f"{len(victims)} workers crashed under this call; the last: {failure}") from failure

    def answered(self, request: Request, arrival: Arrival) -> None:
        """It has been: the likes of it are not to blame."""
        if self._poison.any_known:
            self._poison.acquit(_fingerprint(request, arrival))


def _fingerprint(request: Request, arrival: Arrival) -> bytes:
    """Of one tenant's calls, those that ask an engine for the same."""
    fields = {name: value for name, value in request.fields.items() if name not in _BESIDE}
    return blake2b(_encode([arrival.caller.tenant, request.api, fields]), digest_size=16).digest()


def _poisonous(message: str) -> ApiError:
    return ApiError("poisonous_call", f"{message}; it is not tried again")
