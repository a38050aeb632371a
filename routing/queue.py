"""The calls that wait for an endpoint: in what order they go, and who is refused where there are too many.

Tiers come first: priority before default before flex. Within a tier and model, tenants share by start-time fair queueing
(Goyal, Vin and Cheng, 1996): each has a tag that grows by the work of its calls that have gone, and the least tag is
next, so that a tenant who sends a thousand calls delays another's one by no more than a call. Of one tenant, the first
to come is the first to go.

The queue is bounded in all, for each tenant and by age. Where it is full, the tenant that has most calls waiting in the
lowest tier loses its last one; so a full queue still takes a call that matters more, and one of a tenant that has fewer.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from msgspec import Struct

from routing.estimate import prefill_work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from routing.types import TierName

ORDER: tuple[TierName, ...] = ("priority", "default", "flex")

OUTPUT_WORK = 4.0
"""Token-equivalents of prefill that an output token takes of a worker. Prices say the same: output costs two to five
times what input does."""

HALF_LIFE_S = 30.0
"""After which what has gone from the queue counts half in the rate at which it drains."""

LEAST_RETRY_S = 1.0
LONGEST_RETRY_S = 600.0
"""What a refused call is told to wait, at least and at most."""


def serving_work(prompt_tokens: int, output_tokens: float) -> float:
    """What serving a call takes of a worker, in token-equivalents of prefill."""
    return prefill_work(prompt_tokens) + OUTPUT_WORK * output_tokens


class QueueLimits(Struct, frozen=True):
    calls: int = 1024
    calls_per_tenant: int = 256


class Waiting(Struct, eq=False):
    """One call that waits. Compared by identity."""

    model: str
    tier: TierName
    tenant: str
    work: float
    """Token-equivalents, above 0."""
    until_s: float
    """How long it waits at most."""
    charged: float = 0.0
    """What its tenant has been charged for letting it go."""


class Shed(Struct, frozen=True):
    """A call that has to go, since there are too many."""

    waiting: Waiting
    of_tenant: bool
    """Whether its tenant's share is full, rather than the queue."""


class _Tenant:
    """The calls of one tenant in one line, and what it has had of the line's service."""

    __slots__ = ("calls", "tag")

    def __init__(self, tag: float) -> None:
        self.calls: OrderedDict[Waiting, None] = OrderedDict()
        self.tag = tag


class _Line:
    """The calls of one tier that wait for one model. One without a call is thrown away: nobody is ahead then."""

    __slots__ = ("_clock", "count", "tenants", "work")

    def __init__(self) -> None:
        self.count = 0
        self.work = 0.0
        self.tenants: dict[str, _Tenant] = {}
        """Those without a call are kept as long as they have had more than their share."""
        self._clock = 0.0
        """The tag of the last call that went: who comes new is owed nothing for the time before."""

    def add(self, waiting: Waiting) -> None:
        self._tenant(waiting.tenant).calls[waiting] = None
        self._counted(waiting, 1)

    def put_back(self, waiting: Waiting) -> None:
        tenant = self._tenant(waiting.tenant)
        tenant.calls[waiting] = None
        tenant.calls.move_to_end(waiting, last=False)
        tenant.tag -= waiting.charged
        waiting.charged = 0.0
        self._counted(waiting, 1)

    def remove(self, waiting: Waiting) -> bool:
        tenant = self.tenants.get(waiting.tenant)
        if tenant is None or waiting not in tenant.calls:
            return False
        del tenant.calls[waiting]
        self._counted(waiting, -1)
        return True

    def charge(self, waiting: Waiting) -> None:
        """It goes."""
        tenant = self.tenants[waiting.tenant]
        self._clock = max(self._clock, tenant.tag)
        tenant.tag += waiting.work
        waiting.charged = waiting.work

    def calls_of(self, tenant: str) -> OrderedDict[Waiting, None]:
        """In the order in which they came."""
        known = self.tenants.get(tenant)
        return OrderedDict() if known is None else known.calls

    def __iter__(self) -> Iterator[Waiting]:
        """In the order in which they go."""
        heads = [
            (tenant.tag, place, iter(tenant.calls))
            for place, tenant in enumerate(self.tenants.values())
            if tenant.calls
        ]
        heapify(heads)
        while heads:
            tag, place, calls = heappop(heads)
            waiting = next(calls, None)
            if waiting is not None:
                heappush(heads, (tag + waiting.work, place, calls))
                yield waiting

    def _counted(self, waiting: Waiting, change: int) -> None:
        self.count += change
        self.work += change * waiting.work

    def _tenant(self, name: str) -> _Tenant:
        """That tenant. While it has no call here, its tag is not left behind by the others'."""
        tenant = self.tenants.get(name)
        if tenant is None:
            clock, tenants = self._clock, self.tenants
            for idle in [n for n, t in tenants.items() if not t.calls and t.tag <= clock]:
                del tenants[idle]
            tenant = tenants[name] = _Tenant(clock)
        elif not tenant.calls:
            tenant.tag = max(tenant.tag, self._clock)
        return tenant


class _Drain:
    """How much work goes from the queue per second while somebody waits; both sums fade with HALF_LIFE_S."""

    __slots__ = ("_at_s", "_seconds", "_work")

    def __init__(self, now_s: float) -> None:
        self._work = self._seconds = 0.0
        self._at_s = now_s

    def pass_time(self, now_s: float) -> None:
        """Somebody has been waiting up to now."""
        fade = self._fade(now_s)
        self._seconds = self._seconds * fade + (now_s - self._at_s)
        self._at_s = now_s

    def skip_time(self, now_s: float) -> None:
        """Nobody has."""
        self._seconds *= self._fade(now_s)
        self._at_s = now_s

    def went(self, work: float) -> None:
        self._work += work

    @property
    def work_per_s(self) -> float | None:
        """None where nothing has gone yet."""
        return self._work / self._seconds if self._work > 0.0 and self._seconds > 0.0 else None

    def _fade(self, now_s: float) -> float:
        fade = 2.0 ** ((self._at_s - now_s) / HALF_LIFE_S)
        self._work *= fade
        return float(fade)


class Queue:
    """All calls that wait, for whatever model. Time is an argument: any clock that does not go back."""

    def __init__(self, limits: QueueLimits) -> None:
        self.limits = limits
        self._lines: dict[tuple[str, TierName], _Line] = {}
        self._drains: dict[str, _Drain] = {}
        self._of_tenant: Counter[str] = Counter()
        self._count = 0
        self.depth: Counter[TierName] = Counter()
        """Calls waiting, by tier."""

    def __len__(self) -> int:
        return self._count

    def join(self, waiting: Waiting, now_s: float) -> Shed | None:
        """The call waits from now on, unless it is the one that has to go because there are too many.

        Of a tenant that has its share of calls waiting, its last in its lowest tier has to go; where the queue as a
        whole is full, the last in the lowest tier of the tenant that has most there.
        """
        shed = None
        if self._of_tenant[waiting.tenant] >= self.limits.calls_per_tenant:
            shed = Shed(self._last_in_lowest(waiting, waiting.tenant), of_tenant=True)
        elif self._count >= self.limits.calls:
            shed = Shed(self._last_in_lowest(waiting), of_tenant=False)
        if shed is not None:
            if shed.waiting is waiting:
                return shed
            self.leave(shed.waiting, now_s)
        self._pass_time(waiting.model, now_s)
        self._line(waiting).add(waiting)
        self._counted(waiting, 1)
        return shed

    def put_back(self, waiting: Waiting, now_s: float) -> None:
        """A call that had gone is back, before all others of its tenant. It is never refused: it had its place."""
        self._pass_time(waiting.model, now_s)
        self._line(waiting).put_back(waiting)
        self._counted(waiting, 1)

    def go(self, waiting: Waiting, now_s: float) -> None:
        """A call that waits is served now: its tenant has had that much."""
        self._lines[waiting.model, waiting.tier].charge(waiting)
        self._pass_time(waiting.model, now_s)
        self._drains[waiting.model].went(waiting.work)
        self.leave(waiting, now_s)

    def leave(self, waiting: Waiting, now_s: float) -> bool:
        """The call waits no more; False where it was not waiting."""
        line = self._lines.get((waiting.model, waiting.tier))
        if line is None:
            return False
        self._pass_time(waiting.model, now_s)
        if not line.remove(waiting):
            return False
        self._counted(waiting, -1)
        if line.count == 0:
            del self._lines[waiting.model, waiting.tier]
        return True

    def waits(self, model: str, tier: TierName) -> bool:
        """Whether a call of this or a better tier waits for the model."""
        return any((model, each) in self._lines for each in ORDER[: ORDER.index(tier) + 1])

    def models(self) -> list[str]:
        """Those that calls wait for."""
        return list(dict.fromkeys(model for model, _ in self._lines))

    def ordered(self, model: str) -> Iterator[Waiting]:
        """The calls that wait for the model, in the order in which they go. While you look, none may come or go."""
        for tier in ORDER:
            line = self._lines.get((model, tier))
            if line is not None:
                yield from line

    def expired(self, now_s: float) -> list[Waiting]:
        """Those that have waited as long as they may. They stay until they `leave`."""
        return [
            waiting
            for line in self._lines.values()
            for tenant in line.tenants.values()
            for waiting in tenant.calls
            if waiting.until_s <= now_s
        ]

    def retry_after_s(self, waiting: Waiting, now_s: float) -> float:
        """When one who is refused might get through: what goes before it and itself, by the rate at which work goes."""
        self._pass_time(waiting.model, now_s)
        rate = self._drains[waiting.model].work_per_s
        if rate is None:
            return LEAST_RETRY_S
        lines = (self._lines.get((waiting.model, tier)) for tier in ORDER[: ORDER.index(waiting.tier) + 1])
        work = waiting.work + sum(line.work for line in lines if line is not None)
        return min(LONGEST_RETRY_S, max(LEAST_RETRY_S, work / rate))

    def _last_in_lowest(self, newcomer: Waiting, of: str | None = None) -> Waiting:
        """Of all calls and the newcomer, or of those of one tenant: the last of who has most in the lowest tier."""
        for tier in reversed(ORDER):
            lines = [line for (_, each), line in self._lines.items() if each == tier]
            counts = Counter({newcomer.tenant: 1} if tier == newcomer.tier else {})
            for line in lines:
                for name, tenant in line.tenants.items():
                    if of is None or name == of:
                        counts[name] += len(tenant.calls)
            most = max(counts.values(), default=0)
            if most and counts[newcomer.tenant] == most and tier == newcomer.tier:
                return newcomer
            if most:
                heaviest = next(name for name, count in counts.items() if count == most)
                longest = max((line.calls_of(heaviest) for line in lines), key=len)
                return next(reversed(longest))
        return newcomer

    def _line(self, waiting: Waiting) -> _Line:
        return self._lines.setdefault((waiting.model, waiting.tier), _Line())

    def _counted(self, waiting: Waiting, change: int) -> None:
        self._count += change
        self.depth[waiting.tier] += change
        self._of_tenant[waiting.tenant] += change
        if not self._of_tenant[waiting.tenant]:
            del self._of_tenant[waiting.tenant]

    def _pass_time(self, model: str, now_s: float) -> None:
        """Reckon with the time since anything came or went; call before anything does."""
        drain = self._drains.get(model)
        if drain is None:
            self._drains[model] = _Drain(now_s)
        elif self.waits(model, "flex"):
            drain.pass_time(now_s)
        else:
            drain.skip_time(now_s)
