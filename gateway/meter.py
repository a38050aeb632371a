"""What one call has used so far, turned into its usage row exactly once, however it ends.

The row is written before the last byte goes to the client, so that a gateway that is killed has lost no call whose end
somebody has seen. A call that ends any other way (the client leaves, the worker dies, a deadline passes) is settled
when the meter's block is left, from what had been counted by then.

Whoever runs attempts tells the meter of each, and counts nothing:

    asked(endpoint)                       an attempt begins; several may be under way
    answered(endpoint, stream)            the client gets its answer: the first chunk is there, or a whole reply
    failed(endpoint, cause)               it is over, and the client has nothing of it; cause None: no work was done
    continued(endpoint, stream, kept_tokens, again_tokens, cause)       the answer that had begun goes on here

Nothing is to be told when a call is cancelled: what is under way then is settled as it stands.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self

from gateway.errors import ApiError, outcome_of
from gateway.ledger import UsageRow, amount_nano_usd, waste
from gateway.open_calls import DIED, OpenCall
from gateway.pieces import Piece, shares_of
from gateway.plausible import as_seen, most_written, plausible
from routing.types import Endpoint, Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.said import Said
    from gateway.arrival import Arrival
    from gateway.catalog import Model
    from gateway.ledger import Share, Waste
    from gateway.open_calls import OpenCalls
    from gateway.openai import Request
    from gateway.steps import Step
    from routing.types import Price

CLIENT_LEFT = 499
"""The status of a call whose client left before it got one; nginx's number for it."""


class Counting(Protocol):
    """A stream that knows what has been seen of it."""

    @property
    def tokens(self) -> int: ...

    @property
    def said(self) -> Said | None: ...

    @property
    def usage(self) -> Usage | None:
        """As the endpoint reported it."""


class Meter:
    """The account of one call while it runs."""

    __slots__ = (
        "_answering",
        "_arrival",
        "_asked_s",
        "_earlier",
        "_first_token_s",
        "_made_since_s",
        "_page",
        "_record",
        "_request",
        "_settled",
        "_slot",
        "_stream",
        "_upstream_s",
        "_waiting",
        "_wasted",
        "attempts",
        "charge_nano_usd",
        "hedged",
        "model",
        "noted",
        "queued_s",
        "speaks",
        "status",
        "steps",
        "tier",
        "usage",
        "what",
    )

    def __init__(
        self,
        arrival: Arrival,
        request: Request,
        model: Model,
        record: Callable[[UsageRow], None],
    ) -> None:
        self.attempts = 0
        self.hedged = False
        """Whether a second attempt has been made beside one that was late."""
        self.speaks = False
        """Whether the first token has come of what is held back still."""
        self.steps: tuple[Step, ...] = ()
        """Taken to hide churn from its client."""
        self.what = arrival, request
        self.tier = request.tier
        self.usage: Usage | None = None
        """What the client has been told, or what a whole reply is estimated to be; a stream knows its own."""
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
        self._waiting: list[Endpoint] = []
        """Asked, and no answer yet; the first asked comes first."""
        self._answering: Endpoint | None = None
        self._stream: Counting | None = None
        self._earlier: tuple[Piece, ...] = ()
        """Of the answer."""
        self._wasted: tuple[Share, ...] = ()
        self._asked_s = 0.0
        self._upstream_s = 0.0
        """Spent waiting for endpoints, the queue included."""
        self._first_token_s: float | None = None
        self._made_since_s: float | None = None
        """Since when a reply in one piece is made of a stream, all of which is time of the endpoints."""
        self._settled = False
        self._page: OpenCalls | None = None
        self._slot: int | None = None
        self.noted: tuple[memoryview, int] | None = None
        """Where to note the tokens that the client has so far: `tokens[slot] = 17`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError):
            # The client gets this and nothing else: what had been written for it, or is being, is not its to pay.
            self.status = error.status
            self.given_up()
            if self._answering is not None:
                self.failed(self._answering, "given_up")
        self.settle(outcome_of(error))

    def asked(self, endpoint: Endpoint) -> None:
        """An attempt at `endpoint` begins."""
        self.attempts += 1
        if not self._waiting:
            self._asked_s = time.monotonic()
        self._waiting.append(endpoint)

    def answered(self, endpoint: Endpoint, stream: Counting | None) -> None:
        """It has brought a whole reply, or the first chunk of a stream, and the client gets that."""
        now_s = self._waits_no_more(endpoint)
        self._answering = endpoint
        if stream is not None:
            self._stream, self._first_token_s = stream, now_s
            if not self._request.stream:
                self._made_since_s = now_s

    def failed(self, endpoint: Endpoint, cause: Waste | None = None, usage: Usage | None = None) -> None:
        """An attempt is over and has brought nothing to the client: what it used is not the tenant's to pay.

        `cause` says whose it is, None that there was nothing to use; `usage` where it is known, otherwise it is estimated.
        One that has not come to ask, because it was cancelled before, leaves nothing.
        """
        tokens = 0
        if endpoint in self._waiting:  # asked at first: an answer may go on where it broke off
            self._waits_no_more(endpoint)
        elif endpoint is self._answering:
            stream, self._answering, self._stream, self._first_token_s = self._stream, None, None, None
            self._upstream_s, self._made_since_s = self._spent_upstream_s(time.monotonic()), None
            self.usage = None
            if stream is not None:
                tokens, usage = stream.tokens, usage or stream.usage
            earlier, self._earlier = self._earlier, ()
            for piece in earlier:
                read = piece.reported or Usage(
                    self._request.prompt_tokens, 0, piece.kept_tokens, estimated=True
                )
                self._wasted += (waste(piece.endpoint, read, cause or "broken"),)
        else:
            return
        if cause is not None:
            self._wasted += (waste(endpoint, usage or self._read_by_now(tokens), cause),)

    def continued(
        self,
        endpoint: Endpoint,
        stream: Counting,
        kept_tokens: int,
        again_tokens: int = 0,
        cause: Waste = "broken",
    ) -> None:
        """An answer that had begun goes on here, and this is the rest of it.

        The client has, or will be shown, `kept_tokens` of those that the one before has written; it is for `cause` that
        the others, `again_tokens`, come again.
        """
        self._waits_no_more(endpoint)
        before, written = self._answering, self._stream
        if before is not None and written is not None:
            if again_tokens > 0:
                again = Usage(0, 0, again_tokens, estimated=True)
                self._wasted += (waste(before, again, cause),)
            self._earlier += (Piece(before, written.usage, kept_tokens),)
        self._answering, self._stream = endpoint, stream

    def stepped(self, step: Step) -> None:
        step.at_s = time.monotonic() - self._arrival.started_s
        self.steps = (*self.steps, step)

    def given_up(self) -> None:
        """The gateway has taken it from whoever was at it, before the client had anything."""
        for endpoint in self._waiting[:]:
            self.failed(endpoint, "given_up")

    def _waits_no_more(self, endpoint: Endpoint) -> float:
        now_s = time.monotonic()
        self._waiting.remove(endpoint)
        if not self._waiting and self._made_since_s is None:
            self._upstream_s += now_s - self._asked_s
        return now_s

    def _spent_upstream_s(self, now_s: float) -> float:
        made_s = 0.0 if self._made_since_s is None else now_s - self._made_since_s
        return self._upstream_s + made_s

    def _read_by_now(self, tokens: int = 0) -> Usage:
        """What an attempt is taken to have used that did not say so: all that there was to read."""
        return Usage(self._request.prompt_tokens + self.kept_tokens, 0, tokens, estimated=True)

    def queued(self, seconds: float) -> None:
        """It has waited in the queue for so long."""
        self.queued_s += seconds
        self._upstream_s += seconds

    @property
    def kept_tokens(self) -> int:
        """Of the answer, written by endpoints before the one that is at it."""
        return sum(piece.kept_tokens for piece in self._earlier)

    @property
    def endpoint(self) -> Endpoint | None:
        """Where it is being tried or answered."""
        if self._answering is None and self._waiting:
            return self._waiting[0]
        return self._answering

    @property
    def ttft_s(self) -> float | None:
        """Of streams."""
        if self._first_token_s is None or not self._request.stream:
            return None
        return self._first_token_s - self._arrival.started_s

    @property
    def overhead_s(self) -> float:
        """Spent in the gateway so far rather than waiting for an endpoint."""
        now_s = time.monotonic()
        return max(0.0, now_s - self._arrival.started_s - self._spent_upstream_s(now_s))

    def settle(self, outcome: str) -> None:
        """Write the row. The first time counts."""
        if self._settled:
            return
        self._settled = True
        usage, endpoint, arrival = self._counted(), self.endpoint, self._arrival
        self.charge_nano_usd = self._charged(usage)
        if self._earlier or self._wasted or len(self._waiting) > (self._answering is None):
            shares = self._shares(usage)
            cost_nano_usd = sum(share.cost_nano_usd for share in shares)
            waste_nano_usd = sum(share.waste_nano_usd for share in shares)
            endpoint = self._earlier[0].endpoint if self._earlier else endpoint
        else:
            shares, waste_nano_usd = (), 0
            cost_nano_usd = 0 if endpoint is None else amount_nano_usd(endpoint.cost, usage)
        arrival.hold.settle(usage, self.charge_nano_usd)
        self._record(
            self._row(outcome, usage, endpoint, self.charge_nano_usd, cost_nano_usd, waste_nano_usd, shares)
        )
        if self._page is not None:
            self._page.ended(self._slot)

    def note(self, page: OpenCalls) -> None:
        """From now on what the client gets is noted where it outlives this process; see `noted`."""
        endpoint = self._answering
        if endpoint is None:
            return
        row = self._row(DIED, self._seen(endpoint, 0), endpoint, 0, 0)
        call = OpenCall(row, self._price, endpoint.cost, self._arrival.hold.most_nano_usd)
        self._page, self._slot = page, page.begun(call)
        if self._slot is not None:
            self.noted = page.tokens, self._slot

    def _row(
        self,
        outcome: str,
        usage: Usage,
        endpoint: Endpoint | None,
        charge_nano_usd: int,
        cost_nano_usd: int,
        waste_nano_usd: int = 0,
        shares: tuple[Share, ...] = (),
    ) -> UsageRow:
        request, arrival, ttft_s = self._request, self._arrival, self.ttft_s
        caller, duration_s = arrival.caller, time.monotonic() - arrival.started_s
        return UsageRow(
            call_id=arrival.call_id,
            time_ms=arrival.hold.time_ms or int((time.time() - duration_s) * 1000),
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
            charge_nano_usd=charge_nano_usd,
            cost_nano_usd=cost_nano_usd,
            waste_nano_usd=waste_nano_usd,
            project=caller.project or "",
            customer=request.customer,
            reasoning_tokens=usage.reasoning_tokens,
            hosted=endpoint is not None and endpoint.kind != "worker",
            shares=shares,
        )

    @property
    def _price(self) -> Price:
        """What this tenant is charged for a token, in this tier."""
        return self.model.price_for(self._request.tier, self._arrival.caller.tenant)

    def _charged(self, usage: Usage) -> int:
        return self._arrival.hold.bounded(amount_nano_usd(self._price, usage))

    def _counted(self) -> Usage:
        """What the endpoint reported, or else what was counted here. Nothing was used where no endpoint is at work."""
        stream = self._stream
        told = self.usage
        if told is None and stream is not None:
            told = stream.usage if not self._earlier else self._told_in_pieces(stream)
        request, endpoint = self._request, self.endpoint
        if endpoint is None:
            return told or Usage()
        seen = 0 if stream is None else stream.tokens + self.kept_tokens
        if told is not None and not told.estimated and plausible(told, request, endpoint, seen_tokens=seen):
            return told
        if told is not None and (told.estimated or stream is None):
            seen = told.completion_tokens
        seen = min(seen, most_written(request, endpoint))
        return self._seen(endpoint, seen)

    def _seen(self, endpoint: Endpoint, tokens: int) -> Usage:
        said = None if self._stream is None or self._earlier else self._stream.said
        return as_seen(self._request, endpoint, said, tokens)

    def _told_in_pieces(self, last: Counting) -> Usage | None:
        """The usage of an answer of several pieces: the prompt of the first, and what all of them wrote."""
        if last.usage is None:
            return None
        kept_tokens = self.kept_tokens
        # The last one was given what had been written as a part of its prompt.
        own_prompt = Usage(max(0, last.usage.prompt_tokens - kept_tokens))
        first = self._earlier[0].reported or own_prompt
        return Usage(
            first.prompt_tokens,
            first.cached_tokens,
            kept_tokens + last.usage.completion_tokens,
            reasoning_tokens=last.usage.reasoning_tokens,
        )

    def _shares(self, usage: Usage) -> tuple[Share, ...]:
        """The work of all who were asked, `usage` being what the client received."""
        serving, stream = self.endpoint, self._stream
        reported = None if stream is None else stream.usage
        last = () if serving is None else (Piece(serving, reported, usage.completion_tokens),)
        shares = shares_of((*self._earlier, *last), usage, self._request, self._charged)
        beside = self._waiting if self._answering is not None else self._waiting[1:]
        cause: Waste = "read_again" if self._earlier or self._answering is not None else "hedge_lost"
        shares += [waste(endpoint, self._read_by_now(), cause) for endpoint in beside]
        return (*shares, *self._wasted)
