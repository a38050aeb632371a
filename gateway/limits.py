"""What a key's limits mean for a call: what is held before it begins, of which accounts, and what it is told.

A call of a key without limits holds nothing, and pays a look at an empty tuple. Any other takes from the slices that this
process has, all that it needs or nothing; where one is short, the store is asked. It holds what it takes until it is settled,
however it ends.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from gateway.limit_refusals import (
    budget_held,
    budget_spent,
    limit_lines,
    limits_unavailable,
    rate_exceeded,
    too_many_at_once,
)
from gateway.windows import Window
from gateway.worst_case import (
    Calibration,
    give_most,
    most_nano_usd,
    most_output_tokens,
    most_prompt_tokens,
)
from routing.types import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.allowance import Slice
    from gateway.auth import Key
    from gateway.errors import ApiError
    from gateway.limit_accounts import Accounts
    from gateway.openai import Request
    from routing.types import Price

_RECALL_S = 1.0
"""By when another process has given back what it does not need, though the machine be busy."""
_RATE_RECALL_S = 0.25
"""Of a rate: by then some of it has drained anyway."""
_RECALL_PAUSE_S = 0.05
_SETTLING_S = 5.0
_OVERTAKEN_S = 10.0
"""How long a call asks again for what is there, when others are quicker to take what comes."""
_OVERTAKEN_PAUSE_S = 0.01
_PAUSE_S = 0.25
_NEVER_S = float("inf")


NOTHING_USED = Usage()


class Settings(Protocol):
    """Of the configuration."""

    @property
    def when_store_is_away(self) -> str: ...
    @property
    def wait_for_budget_s(self) -> float: ...
    @property
    def default_max_tokens(self) -> int: ...


class Served(Struct, frozen=True):
    """What a call may be answered by."""

    model: str
    prices: tuple[Price, ...]
    """Of the models on offer, as its tenant is charged."""
    contexts: tuple[int | None, ...]
    """Of their endpoints."""
    expected_tokens: float
    """What such calls have written of late."""


class Hold:
    """What one call has taken."""

    __slots__ = ("_accounts", "_call_id", "_saw", "_taken", "lines", "most_nano_usd", "time_ms")

    def __init__(
        self,
        accounts: Accounts | None = None,
        call_id: str = "",
        taken: Sequence[tuple[Slice, int]] = (),
        most_nano_usd: int | None = None,
        lines: bytes = b"",
        time_ms: int = 0,
        saw: Callable[[int], None] = lambda _tokens: None,
    ) -> None:
        self.time_ms = time_ms
        """When it was taken: by this it is told in which windows the call falls."""
        self.most_nano_usd = most_nano_usd
        """The tenant is never charged more for it, where it has a budget."""
        self.lines = lines
        """Header lines of its reply."""
        self._accounts = accounts
        self._call_id = call_id
        self._taken = taken
        self._saw = saw

    def bounded(self, nano_usd: int) -> int:
        """The charge, for a call that by its price would be charged so much."""
        most = self.most_nano_usd
        if most is None or nano_usd <= most:
            return nano_usd
        if self._accounts is not None:
            self._accounts.charges_cut += 1
        return most

    def settle(self, usage: Usage = NOTHING_USED, nano_usd: int = 0) -> None:
        """It has ended, having used so much. The first time counts. Its row is not in the journal yet."""
        taken, accounts = self._taken, self._accounts
        if not taken or accounts is None:
            return
        self._taken = ()
        tokens = usage.prompt_tokens + usage.completion_tokens
        if not usage.estimated:
            self._saw(usage.prompt_tokens)
        budgets = []
        for each, amount in taken:
            if each.kind == "usd":
                each.settle(amount, nano_usd)
                budgets.append(each)
            elif each.kind == "calls" or each.account.endswith("/tokens"):
                each.settle(amount, tokens)
        accounts.holds -= 1
        if budgets and nano_usd:
            accounts.charged(self._call_id, nano_usd, tuple(budgets))
        else:
            accounts.wake()


NO_HOLD = Hold()
"""Of calls without limits. It is empty, so that it can be everybody's."""


class _Bounds(Struct):
    """The slices of one key."""

    bounds: tuple[tuple[str, Any], ...]
    until_s: float
    """When the first window of a budget ends."""
    ones: tuple[tuple[Slice, int], ...]
    """Of requests and calls, of which each call takes one."""
    requests: tuple[Slice, ...]
    """The narrowest is the last."""
    tokens: tuple[Slice, ...]
    calls: tuple[Slice, ...]
    budgets: tuple[Slice, ...]


class Limits:
    """The limits of all keys."""

    def __init__(self, accounts: Accounts, settings: Callable[[], Settings]) -> None:
        self.accounts = accounts
        self.refused: Counter[str] = Counter()
        """By reason: requests, tokens, calls, budget, held, away."""
        self.let_go = 0
        """Calls that were not limited since the store was away."""
        self.calibration = Calibration()
        self._settings = settings
        self._bounds: dict[str, _Bounds] = {}
        """By key; begun anew when slices have been dropped, so that keys which call no more are not kept."""
        self._generation = accounts.generation

    async def hold(self, caller: Key, request: Request, served: Served, call_id: str) -> Hold:
        """What the call needs is taken from all accounts that it counts in. Raises ApiError where it may not be made.

        A call with a budget that has not said how much it may write is given a limit.
        """
        now_s, settings, estimated_tokens = time.time(), self._settings(), request.prompt_tokens
        bounds, now_ms = self._bounds_of(caller, now_s), int(now_s * 1000)
        prompt_tokens = self.calibration.tokens(served.model, estimated_tokens)
        taking = [*bounds.ones]
        if bounds.tokens:
            writes = request.max_tokens
            if writes is None:
                writes = 0 if request.api == "embeddings" else round(served.expected_tokens)
            taking += [(each, prompt_tokens + writes * request.choices) for each in bounds.tokens]
        most = None
        if bounds.budgets:
            most = self._most_nano_usd(request, served, prompt_tokens, settings)
            taking += [(each, most) for each in bounds.budgets]
        for each, amount in taking:
            if each.lease - each.held - each.owed < amount:  # is it free: as a property, three times as slow
                await self._get(taking, settings)
                if self._generation != self.accounts.generation:
                    # One of the slices may have been dropped meanwhile, and made anew for another call.
                    return await self.hold(caller, request, served, call_id)
                break
        for each, amount in taking:
            each.take(amount)
        self.accounts.holds += 1

        def saw(tokens: int) -> None:
            self.calibration.saw(served.model, estimated_tokens, tokens)

        return Hold(self.accounts, call_id, taking, most, self._lines(bounds), now_ms, saw)

    def _most_nano_usd(self, request: Request, served: Served, prompt_tokens: int, settings: Settings) -> int:
        default = max(settings.default_max_tokens, round(served.expected_tokens))
        writes = most_output_tokens(request, default, served.contexts, prompt_tokens)
        if request.max_tokens is None and request.api != "embeddings":
            give_most(request, writes)
        reads = most_prompt_tokens(request, served.contexts)
        return most_nano_usd(served.prices, reads, writes * request.choices)

    def slices_of(self, caller: Key, now_s: float) -> tuple[Slice, ...]:
        """Those that its calls are held in."""
        bounds = self._bounds_of(caller, now_s)
        return (*bounds.requests, *bounds.tokens, *bounds.calls, *bounds.budgets)

    def _bounds_of(self, caller: Key, now_s: float) -> _Bounds:
        if self._generation != self.accounts.generation:
            self._bounds.clear()
            self._generation = self.accounts.generation
        found = self._bounds.get(caller.id)
        if found is None or found.bounds is not caller.bounds or now_s >= found.until_s:
            found = self._bounds[caller.id] = self._made(caller, now_s)
        return found

    def _made(self, caller: Key, now_s: float) -> _Bounds:
        requests, tokens, calls, budgets, until_s = [], [], [], [], _NEVER_S
        slice_of = self.accounts.slice
        for subject, policy in caller.bounds:
            if policy.requests_per_min is not None:
                requests.append(slice_of(f"{subject}/requests", "rate", policy.requests_per_min))
            if policy.tokens_per_min is not None:
                tokens.append(slice_of(f"{subject}/tokens", "rate", policy.tokens_per_min))
            if policy.concurrency is not None:
                calls.append(slice_of(f"{subject}/calls", "calls", policy.concurrency))
            for period, nano_usd in policy.budgets.items():
                window = Window.at(subject, period, now_s)
                budgets.append(slice_of(window.account, "usd", nano_usd))
                until_s = min(until_s, window.until_s)
        return _Bounds(
            caller.bounds, until_s, tuple((each, 1) for each in (*requests, *calls)),
            tuple(requests), tuple(tokens), tuple(calls), tuple(budgets),
        )  # fmt: skip

    def _lines(self, bounds: _Bounds) -> bytes:
        if not bounds.requests and not bounds.tokens:
            return b""
        requests = bounds.requests[-1] if bounds.requests else None
        return limit_lines(requests, bounds.tokens[-1] if bounds.tokens else None, time.monotonic_ns())

    # Where a slice is short

    async def _get(self, taking: Sequence[tuple[Slice, int]], settings: Settings) -> None:
        """Return when all of it is there to be taken. Raises ApiError where it will not be."""
        began_s, first = time.monotonic(), True
        while True:
            short = [(each, amount) for each, amount in taking if each.free < amount]
            if not short:
                return
            if not self.accounts.away and (first or self.accounts.store.shared):
                await self.accounts.ask(short)
                first = False
                short = [(each, amount) for each, amount in taking if each.free < amount]
                if not short:
                    return
            if self.accounts.away:
                if settings.when_store_is_away == "open":
                    self.let_go += 1
                    return
                raise self._refusal("away", limits_unavailable(), taking)
            pause_s = _worth_waiting_s(short, time.monotonic() - began_s, settings.wait_for_budget_s)
            if pause_s <= 0:
                raise self._refused(short, taking)
            await self.accounts.news(pause_s)
            first = first or any(each.settling_ms for each, _ in short) or _is_there(short)

    def _refused(self, short: Sequence[tuple[Slice, int]], taking: Sequence[tuple[Slice, int]]) -> ApiError:
        """The refusal that asks for the longest patience."""
        now_ns = time.monotonic_ns()
        for each, amount in short:
            if _is_spent(each, amount):
                return self._refusal("budget", budget_spent(each, amount, time.time()), taking)
        rates = [(each, amount) for each, amount in short if each.kind == "rate"]
        if rates:
            each, amount = max(rates, key=lambda pair: pair[0].until_ns(pair[1], now_ns))
            what = each.account.rpartition("/")[2]
            return self._refusal(what, rate_exceeded(each, amount, now_ns), taking)
        each, amount = short[0]
        if each.kind == "calls":
            return self._refusal("calls", too_many_at_once(each), taking)
        return self._refusal("held", budget_held(each, amount), taking)

    def _refusal(self, reason: str, error: ApiError, taking: Sequence[tuple[Slice, int]]) -> ApiError:
        self.refused[reason] += 1
        shown: dict[str, Slice] = {}
        for each, _ in taking:
            shown[each.account.rpartition("/")[2]] = each  # the last is the narrowest
        lines = limit_lines(shown.get("requests"), shown.get("tokens"), time.monotonic_ns())
        named = (line.split(b": ", 1) for line in lines.split(b"\r\n") if line)
        error.extra_headers = [*error.extra_headers, *((name, value) for name, value in named)]
        return error


def _worth_waiting_s(short: Sequence[tuple[Slice, int]], waited_s: float, for_budget_s: float) -> float:
    """How long to wait before asking again; 0 where it is not worth it."""
    settling_ms = max(each.settling_ms for each, _ in short)
    if settling_ms:
        return min(settling_ms / 1000, _SETTLING_S - waited_s)
    if any(_is_spent(each, amount) for each, amount in short):
        return 0.0
    if waited_s < _OVERTAKEN_S and _is_there(short):
        return _OVERTAKEN_PAUSE_S
    rates = any(each.kind == "rate" for each, _ in short)
    if any(each.others for each, _ in short) and waited_s < (_RATE_RECALL_S if rates else _RECALL_S):
        return _RECALL_PAUSE_S
    if all(each.kind == "usd" for each, _ in short):
        return min(_PAUSE_S, for_budget_s - waited_s)
    return 0.0


def _is_there(short: Sequence[tuple[Slice, int]]) -> bool:
    """Whether the accounts have it, as far as is known here, and it has not come to us."""
    now_ns = time.monotonic_ns()
    return all(each.left(now_ns) >= amount for each, amount in short)


def _is_spent(each: Slice, amount: int) -> bool:
    """Whether so much of a budget will not be there again in its window."""
    return each.kind == "usd" and amount > each.limit - each.spent - each.owed
