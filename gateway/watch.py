"""Calls as they happen, for those who look at them now: the plan of each, its attempts, and what became of it.

While nobody looks, a call pays for it with one comparison. While somebody does, so many calls a second are followed and the
rest are only counted, so that a busy gateway stays one; and the latest few hundred are kept. Of what anybody wrote, nothing
is here.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import contextmanager
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gateway.explain import CandidateShown, RejectionShown
from gateway.meter import Meter
from gateway.open_calls import DIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.arrival import Arrival
    from gateway.catalog import Model
    from gateway.ledger import UsageRow, Waste
    from gateway.meter import Counting
    from gateway.openai import Request
    from routing.types import Endpoint, Plan, Usage

KEPT_CALLS = 300
"""Beyond that, those go that have ended."""
MOST_CALLS = 2000
"""Beyond that, all."""
FOLLOWED_PER_S = 100.0
_SHOWN = 12
"""Of the candidates of a plan, and of the rejected, so many."""


class AttemptSeen(Struct):
    endpoint: str
    at_ms: float
    """Since the call began; so also below."""
    state: str = "asked"
    """asked, answering, failed, or over."""
    first_ms: float | None = None
    ended_ms: float | None = None
    cause: str | None = None


class CallSeen(Struct):
    """One call, as far as it has come."""

    id: str
    time_ms: int
    request_id: str
    tenant: str
    key: str
    key_name: str | None
    project: str | None
    asked_model: str
    model: str
    tier: str
    api: str
    stream: bool
    state: str = "planning"
    """planning, queued, asked, answering, or ended."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    candidates: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    more: int = 0
    """Endpoints that the plan names beyond those."""
    attempts: list[AttemptSeen] = []
    queued_ms: float = 0.0
    status: int | None = None
    outcome: str | None = None
    endpoint: str = ""
    ttft_ms: float | None = None
    duration_ms: float | None = None
    charge_nano_usd: int = 0
    cost_nano_usd: int = 0
    waste_nano_usd: int = 0
    elsewhere: str = ""
    """The process that serves it, where it is another than this."""
    seq: int = 0
    """Grows with each change of any call."""


class Watch:
    """What is seen of calls, and by how many."""

    def __init__(self) -> None:
        self.on = False
        self.meter: Callable[..., Meter] = Meter
        """What calls are metered by."""
        self.unseen = 0
        """Calls that were too many to be followed, since somebody looks."""
        self._lookers = 0
        self._seq = 0
        self._calls: OrderedDict[str, CallSeen] = OrderedDict()
        """The one that has changed last comes last."""
        self._answering: dict[str, _WatchedMeter] = {}
        """By the call's id."""
        self._room = FOLLOWED_PER_S
        self._room_at_s = 0.0

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Somebody looks, as long as the block runs."""
        self._lookers += 1
        self.on, self.meter = True, partial(_followed, self)
        try:
            yield
        finally:
            self._lookers -= 1
            if not self._lookers:
                self.on, self.meter, self.unseen = False, Meter, 0
                self._calls.clear()
                self._answering.clear()

    @property
    def lookers(self) -> int:
        return self._lookers

    def since(self, seq: int) -> list[CallSeen]:
        """Those that have changed since, the latest change last."""
        latest = takewhile(lambda call: call.seq > seq, reversed(self._calls.values()))
        return list(latest)[::-1]

    def own_since(self, seq: int) -> list[CallSeen]:
        """Of this process alone."""
        return [call for call in self.since(seq) if not call.elsewhere]

    def take(self, process: str, calls: list[CallSeen]) -> None:
        """So much has changed in another process."""
        for call in calls:
            call.elsewhere = process
            self._keep(call)

    def lost(self, process: str) -> None:
        """It is gone, and what it had under way with it: so the ledger will have it, too."""
        for call in list(self._calls.values()):
            if call.elsewhere == process and call.state != "ended":
                call.state, call.outcome = "ended", DIED
                self.changed(call)

    def forget_others(self) -> None:
        """Other processes are not listened to any more."""
        for call in [call for call in self._calls.values() if call.elsewhere]:
            del self._calls[call.id]

    def written(self) -> dict[str, int]:
        """Tokens so far of the answers under way that are followed, by the call's id."""
        return {call_id: meter.written_tokens for call_id, meter in self._answering.items()}

    def answers(self, call_id: str, meter: _WatchedMeter | None) -> None:
        """It is being answered; or, without a meter, no longer."""
        if meter is None:
            self._answering.pop(call_id, None)
        elif self.on:
            self._answering[call_id] = meter

    @property
    def seq(self) -> int:
        """Of the latest change."""
        return self._seq

    def planned(self, call_id: str, model: str, prompt_tokens: int, plan: Plan) -> None:
        """Routing has made this plan for it; where a name has fallbacks, or a call waits, not the first one."""
        call = self._calls.get(call_id)
        if call is None:
            return
        call.model, call.prompt_tokens = model, prompt_tokens
        call.candidates = [CandidateShown.of(each).model_dump() for each in islice(plan.ranked, _SHOWN)]
        call.rejected = [RejectionShown.of(each).model_dump() for each in plan.rejected[:_SHOWN]]
        call.more = max(0, len(plan.ranked) - _SHOWN) + max(0, len(plan.rejected) - _SHOWN)
        call.more += len(plan.passed_over)
        self.changed(call)

    def follow(self, arrival: Arrival, request: Request, model: Model) -> CallSeen | None:
        """A call begins; None where it is one too many."""
        now_s = time.monotonic()
        self._room = min(FOLLOWED_PER_S, self._room + FOLLOWED_PER_S * (now_s - self._room_at_s))
        self._room_at_s = now_s
        if self._room < 1:
            self.unseen += 1
            return None
        self._room -= 1
        caller = arrival.caller
        call = CallSeen(
            id=arrival.call_id,
            time_ms=time.time_ns() // 1_000_000,
            request_id=arrival.request_id,
            tenant=caller.tenant,
            key=caller.id,
            key_name=caller.name,
            project=caller.project,
            asked_model=request.model,
            model=model.name,
            tier=request.tier,
            api=request.api,
            stream=request.stream,
        )
        self._keep(call)
        return call

    def _keep(self, call: CallSeen) -> None:
        self._calls[call.id] = call
        self.changed(call)
        if len(self._calls) > KEPT_CALLS:
            ended = (each.id for each in self._calls.values() if each.state == "ended")
            oldest = next(ended, None)
            if oldest is not None:
                del self._calls[oldest]
            elif len(self._calls) > MOST_CALLS:
                self._calls.popitem(last=False)

    def changed(self, call: CallSeen) -> None:
        self._seq += 1
        call.seq = self._seq
        if call.id in self._calls:
            self._calls.move_to_end(call.id)


def _followed(
    watch: Watch, arrival: Arrival, request: Request, model: Model, record: Callable[[UsageRow], None]
) -> Meter:
    call = watch.follow(arrival, request, model)
    if call is None:
        return Meter(arrival, request, model, record)
    return _WatchedMeter(watch, call, arrival, request, model, record)


class _WatchedMeter(Meter):
    """A meter that passes on what it is told."""

    __slots__ = ("_call", "_started_s", "_watch")

    def __init__(
        self,
        watch: Watch,
        call: CallSeen,
        arrival: Arrival,
        request: Request,
        model: Model,
        record: Callable[[UsageRow], None],
    ) -> None:
        def recorded(row: UsageRow) -> None:
            self._ended(row)
            record(row)

        super().__init__(arrival, request, model, recorded)
        self._watch, self._call, self._started_s = watch, call, arrival.started_s

    def asked(self, endpoint: Endpoint) -> None:
        super().asked(endpoint)
        call = self._call
        call.attempts.append(AttemptSeen(endpoint.name, self._ms))
        if call.state != "answering":
            call.state = "asked"
        self._watch.changed(call)

    def answered(self, endpoint: Endpoint, stream: Counting | None) -> None:
        super().answered(endpoint, stream)
        self._answers(endpoint)

    def continued(
        self,
        endpoint: Endpoint,
        stream: Counting,
        kept_tokens: int,
        again_tokens: int = 0,
        cause: Waste = "broken",
    ) -> None:
        before = self.endpoint
        super().continued(endpoint, stream, kept_tokens, again_tokens, cause)
        if before is not None:
            self._over(before, "moved" if cause == "moved" else "failed", cause)
        self._answers(endpoint)

    def failed(self, endpoint: Endpoint, cause: Waste | None = None, usage: Usage | None = None) -> None:
        super().failed(endpoint, cause, usage)
        self._over(endpoint, "failed", cause)
        self._watch.changed(self._call)

    def queued(self, seconds: float) -> None:
        super().queued(seconds)
        self._call.queued_ms += seconds * 1000
        self._watch.changed(self._call)

    @property
    def written_tokens(self) -> int:
        """By all who have been at the answer."""
        return self.kept_tokens + (0 if self._stream is None else self._stream.tokens)

    @property
    def _ms(self) -> float:
        return round((time.monotonic() - self._started_s) * 1000, 1)

    def _answers(self, endpoint: Endpoint) -> None:
        call = self._call
        call.state, call.endpoint = "answering", endpoint.name
        self._watch.answers(call.id, self)
        for each in reversed(call.attempts):
            if each.endpoint == endpoint.name and each.state == "asked":
                each.state, each.first_ms = "answering", self._ms
                break
        self._watch.changed(call)

    def _over(self, endpoint: Endpoint, state: str, cause: str | None) -> None:
        for each in reversed(self._call.attempts):
            if each.endpoint == endpoint.name and each.ended_ms is None:
                each.state, each.cause, each.ended_ms = state, cause, self._ms
                break

    def _ended(self, row: UsageRow) -> None:
        call, ms = self._call, self._ms
        for each in call.attempts:
            if each.ended_ms is None:
                each.state, each.ended_ms = "over" if each.state == "answering" else "left", ms
        call.state = "ended"
        self._watch.answers(call.id, None)
        for name in _OF_ROW:
            setattr(call, name, getattr(row, name))
        self._watch.changed(call)


_OF_ROW = (
    *("model", "status", "outcome", "endpoint", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("ttft_ms", "duration_ms", "charge_nano_usd", "cost_nano_usd", "waste_nano_usd"),
)
