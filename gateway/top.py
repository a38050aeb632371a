"""What `tidegate top` shows: fleet and calls of a running gateway, as its events tell them, and what they sum up to.

Calls that ended before anybody looked come from the ledger. Rates are of the last half minute, in which tokens count when they
are written, not when their call ends; times to the first token, and failures, are of the last minute.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WINDOW_MS = 60_000
RATES_MS = 30_000
KEPT_CALLS = 400
"""That have ended."""
LISTED_CALLS = 100
_FINE = ("ok", "rejected", "abandoned")
"""Outcomes of attempts that are nobody's failure."""


class Call(Struct):
    id: str
    time_ms: int
    tenant: str
    model: str
    tier: str
    api: str
    state: str
    """planning, queued, asked, answering, or the outcome."""
    endpoint: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    ttft_ms: float | None
    duration_ms: float | None
    charge_nano_usd: int
    cost_nano_usd: int
    attempts: int
    steps: list[str]
    """What was done beside asking one endpoint."""
    ended: bool = False

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Call:
        """As the events or the ledger tell it."""
        given = {name: told[name] for name in _SAME}
        attempts = told["attempts"]
        seen = attempts if isinstance(attempts, list) else []
        state = told.get("state", "ended")
        ended = state == "ended"
        firsts = [each["first_ms"] for each in seen if each["first_ms"] is not None]
        if given["ttft_ms"] is None and firsts and not ended and told["stream"]:
            given["ttft_ms"] = firsts[0]
        asked = seen[-1]["endpoint"] if seen else ""
        return cls(
            **{**given, "endpoint": told["endpoint"] or asked},
            state=told["outcome"] if ended else state,
            attempts=len(seen) if isinstance(attempts, list) else attempts,
            steps=_steps(seen) if isinstance(attempts, list) else _shared(told["shares"]),
            ended=ended,
        )

    @property
    def failed(self) -> bool:
        return self.ended and self.state not in ("ok", "client_left")


_SAME = (
    *("id", "time_ms", "tenant", "model", "tier", "api", "endpoint", "prompt_tokens", "cached_tokens"),
    *("completion_tokens", "ttft_ms", "duration_ms", "charge_nano_usd", "cost_nano_usd"),
)


def _steps(attempts: list[dict[str, Any]]) -> list[str]:
    """Of several attempts, what became of each."""
    if len(attempts) < 2:
        return []
    words = {"over": "answered", "left": "not needed", "moved": "moved on", "answering": "answers"}
    said = [(each["endpoint"], each["state"], each["cause"]) for each in attempts]
    return [f"{name} {cause or words.get(state, state)}" for name, state, cause in said]


def _shared(shares: list[dict[str, Any]]) -> list[str]:
    return [f"{each['endpoint']} {each['purpose']}".replace("_", " ") for each in shares]


class Node(Struct):
    """An endpoint."""

    name: str
    model: str
    kind: str
    gpu: str | None
    region: str | None
    state: str
    reason: str | None
    inflight: int
    waiting: int | None
    busy: float
    kv_usage: float | None
    cache_hits: float | None
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    ejections: int
    leaves_in_s: float | None
    answered: int
    """Attempts since the gateway's start that ended well."""
    errors: int
    """That failed."""
    tokens_per_s: float
    """That it has written to clients of late."""
    earned_nano_usd: int
    """Within a day."""


class Totals(Struct):
    """Of late."""

    running: int
    calls_per_s: float
    tokens_per_s: float
    failed: int
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    unseen: int
    """Calls beyond those that could be followed: what is said is a sample then."""


class Picture(Struct):
    """All of it, as `--json` prints it."""

    at_ms: int
    url: str
    away: str | None
    """Why the gateway cannot be asked."""
    processes: int
    totals: Totals
    endpoints: list[Node]
    calls: list[Call]
    """Under way first, then those that have ended; of each the latest first."""


class Top:
    """What is known so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.away: str | None = None
        self._fleet: dict[str, Any] = {"endpoints": [], "running": 0, "processes": 1}
        self._now_ms = 0
        self._running = 0
        self._calls: dict[str, Call] = {}
        """Under way."""
        self._ended: deque[Call] = deque(maxlen=KEPT_CALLS)
        self._ends: deque[Call] = deque()
        """Those of the last minute, by when they ended."""
        self._written: deque[tuple[int, str, int]] = deque()
        """Of the last half minute: when, where, how many tokens."""
        self._unseen: deque[tuple[int, int]] = deque()
        """Of the last half minute: when so many in all had not been followed."""
        self._known_since_ms = 0
        """Before, there may have been calls that are not known."""

    # What is told

    def begin(self, fleet: dict[str, Any], page: dict[str, Any], now_ms: int) -> None:
        """As the gateway answers before it tells anything, the first time or once it is back."""
        self.away = None
        self.lost()
        self._ended.clear()
        self._ends.clear()
        self._written.clear()
        self.take_fleet(fleet)
        self._now_ms, self._running = now_ms, fleet["running"]
        calls = [Call.of(each) for each in page["data"]]
        if page["before"] is not None:
            self._known_since_ms = calls[-1].time_ms
        for call in sorted(calls, key=_end_ms):
            self._end(call, call.completion_tokens)

    def take_fleet(self, fleet: dict[str, Any]) -> None:
        self._fleet = fleet

    def take_calls(self, found: Iterable[Mapping[str, Any]]) -> None:
        for told in found:
            call = Call.of(told)
            before = self._calls.get(call.id)
            if call.ended:
                self._calls.pop(call.id, None)
                known = 0 if before is None else before.completion_tokens
                # The ledger has told of some that are in the events, too, where others have been looking.
                if not any(each.id == call.id for each in self._ended):
                    self._end(call, call.completion_tokens - known)
            else:
                call.completion_tokens = 0 if before is None else before.completion_tokens
                self._calls[call.id] = call

    def take_tick(self, tick: Mapping[str, Any]) -> None:
        self._now_ms, self._running = tick["now_ms"], tick["running"]
        for call_id, tokens in tick["written"].items():
            call = self._calls.get(call_id)
            if call is not None:
                self._write(call.endpoint, tokens - call.completion_tokens, self._now_ms)
                call.completion_tokens = tokens
        self._unseen.append((self._now_ms, tick["unseen"]))
        self._forget()

    def lost(self) -> None:
        """The gateway tells nothing more: what was under way is not known any longer."""
        self._calls.clear()
        self._unseen.clear()
        self._running = 0

    def _end(self, call: Call, tokens: int) -> None:
        self._ended.append(call)
        self._ends.append(call)
        self._write(call.endpoint, tokens, _end_ms(call))

    def _write(self, endpoint: str, tokens: int, at_ms: int) -> None:
        if tokens > 0:
            self._written.append((at_ms, endpoint, tokens))

    def _forget(self) -> None:
        while self._ends and _end_ms(self._ends[0]) < self._now_ms - WINDOW_MS:
            self._ends.popleft()
        for counted in (self._written, self._unseen):
            while counted and counted[0][0] < self._now_ms - RATES_MS:
                counted.popleft()

    # What it comes to

    def picture(self, now_ms: int) -> Picture:
        if self.away is not None:  # its clock is not heard, ours goes on
            self._now_ms = max(self._now_ms, now_ms)
        self._forget()
        window_s = min(RATES_MS, max(1000, self._now_ms - self._known_since_ms)) / 1000
        since_ms = self._now_ms - RATES_MS
        ends = sum(_end_ms(call) >= since_ms for call in self._ends)
        unseen = max(0, self._unseen[-1][1] - self._unseen[0][1]) if self._unseen else 0
        # Those that were not followed are taken to be as those that were.
        share = 1 + unseen / ends if ends else 1.0
        of_each: Counter[str] = Counter()
        for _, endpoint, tokens in self._written:
            of_each[endpoint] += tokens
        nodes = [_node(each, of_each[each["name"]] * share / window_s) for each in self._fleet["endpoints"]]
        firsts = sorted(call.ttft_ms for call in self._ends if call.ttft_ms is not None)
        totals = Totals(
            running=self._running,
            calls_per_s=round((ends + unseen) / window_s, 2),
            tokens_per_s=round(of_each.total() * share / window_s, 1),
            failed=sum(call.failed for call in self._ends),
            ttft_p50_ms=_quantile(firsts, 0.5),
            ttft_p99_ms=_quantile(firsts, 0.99),
            unseen=unseen,
        )
        under_way = sorted(self._calls.values(), key=lambda call: -call.time_ms)
        calls = [structs.replace(each, duration_ms=self._took_ms(each)) for each in under_way]
        calls += islice(reversed(self._ended), LISTED_CALLS)
        processes = self._fleet["processes"]
        return Picture(self._now_ms, self.url, self.away, processes, totals, nodes, calls)

    def _took_ms(self, call: Call) -> float:
        return float(max(0, self._now_ms - call.time_ms))


def _end_ms(call: Call) -> int:
    return call.time_ms + round(call.duration_ms or 0)


def _node(told: Mapping[str, Any], tokens_per_s: float) -> Node:
    given = {name: told[name] for name in Node.__struct_fields__ if name in told}
    attempts: dict[str, int] = told["attempts"]
    return Node(
        **given,
        answered=attempts.get("ok", 0),
        errors=sum(count for outcome, count in attempts.items() if outcome not in _FINE),
        tokens_per_s=round(tokens_per_s, 1),
        earned_nano_usd=told["done"]["earned_nano_usd"] if told["done"] else 0,
    )


def _quantile(ordered: list[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
