"""What one call has used so far, turned into its usage row exactly once, however it ends.

The row is written before the last byte goes to the client, so that a gateway that is killed has lost no call whose end
somebody has seen. A call that ends any other way (the client leaves, the worker dies, a deadline passes) is settled
when the meter's block is left, from what had been counted by then.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from gateway.errors import ERRORS, ApiError
from gateway.ledger import UsageRow, amount_nano_usd
from routing.types import Endpoint, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.sse import CompletionStream
    from gateway.auth import Key
    from gateway.catalog import Model
    from gateway.openai import Request

CLIENT_LEFT = 499
"""The status of a call whose client left before it got one; nginx's number for it."""


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


class Meter:
    """The account of one call while it runs."""

    __slots__ = (
        "_arrival",
        "_asked_s",
        "_endpoint",
        "_first_token_s",
        "_record",
        "_request",
        "_settled",
        "_stream",
        "_upstream_s",
        "attempts",
        "charge_nano_usd",
        "model",
        "queued_s",
        "status",
        "tier",
        "usage",
    )

    def __init__(
        self,
        arrival: Arrival,
        request: Request,
        model: Model,
        record: Callable[[UsageRow], None],
    ) -> None:
        self.attempts = 0
        self.tier = request.tier
        self.usage: Usage | None = None
        """As a whole reply has it, reported or estimated; a stream knows its own."""
        self.status = CLIENT_LEFT
        """What the client got."""
        self.charge_nano_usd = 0
        """What the tenant owes, once it is settled."""
        self.queued_s = 0.0
        """Spent in the queue."""
        self._arrival = arrival
        self._request = request
        self.model = model
        """The one asked last: where a name has fallbacks, it changes."""
        self._record = record
        self._endpoint: Endpoint | None = None
        self._stream: CompletionStream | None = None
        self._asked_s = 0.0
        self._upstream_s = 0.0
        """Spent waiting for endpoints, the queue included."""
        self._first_token_s: float | None = None
        self._settled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError):
            self.status = error.status
        self.settle(_outcome(error))

    def asked(self, endpoint: Endpoint) -> None:
        """An attempt at `endpoint` begins."""
        self.attempts += 1
        self._endpoint = endpoint
        self._asked_s = time.monotonic()

    def answered(self, stream: CompletionStream | None) -> None:
        """It has brought a whole reply, or the first chunk of a stream."""
        now_s = time.monotonic()
        self._upstream_s += now_s - self._asked_s
        if stream is not None:
            self._stream, self._first_token_s = stream, now_s

    def failed(self) -> None:
        """It brought nothing to the client: what it used is not the tenant's to pay."""
        self._upstream_s += time.monotonic() - self._asked_s
        self._endpoint = None

    def queued(self, seconds: float) -> None:
        """It has waited in the queue for so long."""
        self.queued_s += seconds
        self._upstream_s += seconds

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it was tried last, or is."""
        return self._endpoint

    @property
    def ttft_s(self) -> float | None:
        return None if self._first_token_s is None else self._first_token_s - self._arrival.started_s

    @property
    def overhead_s(self) -> float:
        """Spent in the gateway so far rather than waiting for an endpoint."""
        return max(0.0, time.monotonic() - self._arrival.started_s - self._upstream_s)

    def settle(self, outcome: str) -> None:
        """Write the row. The first time counts."""
        if self._settled:
            return
        self._settled = True
        usage, endpoint, request, ttft_s = self._counted(), self._endpoint, self._request, self.ttft_s
        arrival, caller = self._arrival, self._arrival.caller
        duration_s = time.monotonic() - arrival.started_s
        self.charge_nano_usd = amount_nano_usd(self.model.price, usage)
        self._record(
            UsageRow(
                call_id=arrival.call_id,
                time_ms=int((time.time() - duration_s) * 1000),
                request_id=arrival.request_id,
                tenant=caller.tenant,
                key_id=caller.id,
                model=self.model.name,
                endpoint="" if endpoint is None else endpoint.name,
                tier=request.tier,
                api=request.api,
                stream=request.stream,
                status=self.status,
                outcome=outcome,
                attempts=self.attempts,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                estimated=usage.estimated,
                ttft_ms=None if ttft_s is None else int(ttft_s * 1e6) / 1000,
                duration_ms=int(duration_s * 1e6) / 1000,
                charge_nano_usd=self.charge_nano_usd,
                cost_nano_usd=0 if endpoint is None else amount_nano_usd(endpoint.cost, usage),
            )
        )

    def _counted(self) -> Usage:
        """What the endpoint reported, or else what was counted here. Nothing was used where no endpoint is at work."""
        stream = self._stream
        reported = self.usage if stream is None else stream.usage
        if reported is not None and not reported.estimated:
            return reported
        if self._endpoint is None:
            return Usage()
        seen = stream.tokens if stream is not None else reported.completion_tokens if reported else 0
        return Usage(self._request.prompt_tokens, 0, seen, estimated=True)


def _outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "ok"
        case ApiError():
            # An endpoint's own code could be anything, and an outcome is a metric's label.
            return error.code if error.code in ERRORS else "invalid_request"
        case Exception():
            return "internal_error"
    return "client_left"
