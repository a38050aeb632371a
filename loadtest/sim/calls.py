"""What is asked of a simulated fleet: calls with their prompts as pages, generated or read from a trace.

A page is named by a hash of the prompt up to and with it, as in Mooncake's traces and in vLLM's cache. Text is never
made: who holds how much of a prompt is all that routing and caches know of it.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from loadtest.sim.cache import PagedCache
from loadtest.sim.fleet import CACHE_SHARE, Shape, capacity_per_s
from loadtest.sim.worker import prefill_work
from routing.types import Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from random import Random

    from loadtest.sim.fleet import Node

PAGE_TOKENS = 128
"""Of generated workloads: 512 bytes of text, the piece that `routing` hashes."""

TRACE_PAGE_TOKENS = 512
"""Of Mooncake's traces."""

WorkloadName = Literal["chat", "bursts", "little", "trace"]


class SimCall(Struct, frozen=True, gc=False):
    at_s: float
    prompt_tokens: int
    output_tokens: int
    pages: tuple[int, ...]
    """The full pages of its prompt."""
    answer: tuple[int, ...] = ()
    """The pages that its answer fills, which the next turn's prompt begins with."""
    earlier_tokens: int = 0
    """Tokens of its prompt that an earlier turn's prompt had; 0 in a first turn."""
    turn: Turn | None = None
    """Where it stands in its conversation, if that is known."""
    whole: bool = False
    """Whether its reply is wanted in one piece."""

    def rest(self, made: int) -> SimCall:
        """What is left of it when so many tokens of its answer have been made."""
        return msgspec.structs.replace(
            self, prompt_tokens=self.prompt_tokens + made, output_tokens=self.output_tokens - made
        )


class Names:
    """Names of pages: chained, so that equal names mean equal prompts up to there."""

    def __init__(self) -> None:
        self._next = count(1)

    def fresh(self, pages: int) -> tuple[int, ...]:
        # Spread over 64 bits, as hashes are: some policies take them modulo a number.
        return tuple((next(self._next) * 0x9E3779B97F4A7C15) & (2**64 - 1) for _ in range(pages))


class Session(Struct, frozen=True):
    """A conversation: when each turn is taken, and what it adds in tokens."""

    turns: list[tuple[float, int, int]]
    """At, tokens asked, tokens answered."""
    shared: tuple[int, ...]
    """The pages that it has in common with others."""


def chat(dice: Random, sessions_per_s: float, seconds: float) -> Iterator[SimCall]:
    """Multi-turn conversations on 30 system prompts, some far more often used than others.

    Those begun before the start are under way, so that the load is the same from the first second on.
    """
    names = Names()
    systems = [names.fresh(dice.randint(4, 24)) for _ in range(30)]
    weights = [1.0 / (rank + 1) for rank in range(len(systems))]
    starts = _poisson(dice, sessions_per_s, -_LONGEST_S, seconds)
    for at_s in starts:
        [shared] = dice.choices(systems, weights)
        yield from _turns(Session(_conversation(dice, at_s), shared), names, seconds)


def bursts(dice: Random, sessions_per_s: float, seconds: float) -> Iterator[SimCall]:
    """The same, but conversations begin ten at a time within a second, on one document of 2,000 to 6,000 tokens."""
    names = Names()
    for at_s in _poisson(dice, sessions_per_s / 10.0, -_LONGEST_S, seconds):
        shared = names.fresh(dice.randint(16, 48))
        for _ in range(10):
            start_s = at_s + dice.random()
            yield from _turns(Session(_conversation(dice, start_s), shared), names, seconds)


def little(dice: Random, calls_per_s: float, seconds: float) -> Iterator[SimCall]:
    """One-turn calls with a short system prompt in common and little else."""
    names = Names()
    systems = [names.fresh(3) for _ in range(8)]
    for at_s in _poisson(dice, calls_per_s, 0.0, seconds):
        own_tokens = min(16_000, int(dice.lognormvariate(7.0, 0.8)))
        session = Session([(at_s, own_tokens, _answer_tokens(dice))], dice.choice(systems))
        yield from _turns(session, names, seconds)


_LONGEST_S = 900.0
"""How long before the start conversations begin that may still go on."""


def _poisson(dice: Random, rate_per_s: float, start_s: float, end_s: float) -> Iterator[float]:
    at_s = start_s
    while (at_s := at_s + dice.expovariate(rate_per_s)) < end_s:
        yield at_s


def _answer_tokens(dice: Random) -> int:
    return min(2000, max(2, int(dice.lognormvariate(5.2, 0.8))))


def _conversation(dice: Random, at_s: float) -> list[tuple[float, int, int]]:
    """Six turns on average, half a minute apart."""
    turns = []
    while True:
        asked, answered = min(4000, max(8, int(dice.lognormvariate(4.8, 1.0)))), _answer_tokens(dice)
        turns.append((at_s, asked, answered))
        if dice.random() < 1 / 6 or len(turns) == 30:
            return turns
        at_s += answered * 0.03 + dice.expovariate(1 / 25.0)


def _turns(session: Session, names: Names, seconds: float) -> Iterator[SimCall]:
    pages, tokens, earlier = session.shared, len(session.shared) * PAGE_TOKENS, 0
    whole = 0
    for at_s, asked, answered in session.turns:
        before, heard = whole, tokens
        [whole] = names.fresh(1)
        tokens += asked
        pages += names.fresh(tokens // PAGE_TOKENS - len(pages))
        answer = names.fresh((tokens + answered) // PAGE_TOKENS - len(pages))
        if 0.0 <= at_s < seconds:
            turn = Turn(whole, before, heard // PAGE_TOKENS if before else 0)
            yield SimCall(at_s, tokens, answered, pages, answer, earlier, turn)
        earlier = tokens
        tokens += answered
        pages += answer


class _Line(Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def trace(path: Path, calls: int | None = None) -> Iterator[SimCall]:
    """The calls of a file in Mooncake's format, one line after another."""
    decode = msgspec.json.Decoder(_Line).decode
    seen: set[int] = set()
    with path.open("rb") as lines:
        for number, text in enumerate(lines):
            if number == calls:
                return
            line = decode(text)
            # The last page of a prompt is rarely full, and a cache holds full ones only.
            pages = tuple(line.hash_ids[: line.input_length // TRACE_PAGE_TOKENS])
            known = next((place for place, page in enumerate(pages) if page not in seen), len(pages))
            seen.update(pages)
            # The trace does not say which calls are turns of one conversation. Nearly all share the first page.
            earlier = known * TRACE_PAGE_TOKENS if known > 1 else 0
            output_tokens = max(1, line.output_length)
            yield SimCall(
                line.timestamp / 1000, line.input_length, output_tokens, pages, earlier_tokens=earlier
            )


GENERATED = {"chat": chat, "bursts": bursts, "little": little}


def shape_of(calls: Sequence[SimCall], nodes: Sequence[Node], page_tokens: int, dice: Random) -> Shape:
    """A workload in figures, its prefix hits as those of a placement that only keeps what belongs together on one worker.

    The first half fills the caches, the second is counted.
    """
    caches = [PagedCache(int(CACHE_SHARE * node.spec.kv_tokens) // page_tokens) for node in nodes]
    speeds = [node.spec.work_per_s for node in nodes]
    counted = calls[len(calls) // 2 :]
    work = 0.0
    for place, call in enumerate(calls):
        hits = [cache.hits(call.pages) for cache in caches]
        best = max(range(len(caches)), key=hits.__getitem__)
        if 2 * hits[best] <= len(call.pages):
            [best] = dice.choices(range(len(caches)), speeds)
        if place >= len(calls) // 2:
            work += prefill_work(call.prompt_tokens, hits[best] * page_tokens)
        if caches[best].admit(call.pages, 0):
            caches[best].release(call.pages, 0, call.answer)
    return Shape(
        work / len(counted),
        sum(call.prompt_tokens for call in counted) / len(counted),
        sum(call.output_tokens for call in counted) / len(counted),
    )


class Workload(Struct, frozen=True):
    calls: list[SimCall]
    page_tokens: int
    per_s: float
    capacity_per_s: float


def generated(name: str, nodes: tuple[Node, ...], load: float, seconds: float, dice: Random) -> Workload:
    """Calls for `seconds` at `load`, a share of what the fleet can do.

    How much the caches save depends on how many conversations there are at a time, and with it the rate that is meant:
    found in two rounds.
    """
    make = GENERATED[name]
    state = dice.getstate()
    rate, capacity = 2.0, 0.0
    for _ in range(3):
        dice.setstate(state)
        sample = sorted(make(dice, rate, 180.0), key=_at_s)
        per_s = len(sample) / 180.0
        capacity = capacity_per_s(nodes, shape_of(sample, nodes, PAGE_TOKENS, dice))
        rate *= load * capacity / per_s
    dice.setstate(state)
    calls = sorted(make(dice, rate, seconds), key=_at_s)
    return Workload(calls, PAGE_TOKENS, len(calls) / seconds, capacity)


def with_wholes(workload: Workload, share: float, dice: Random) -> Workload:
    """The same calls, this share of which want their replies in one piece."""
    if not share:
        return workload
    calls = [msgspec.structs.replace(call, whole=dice.random() < share) for call in workload.calls]
    return msgspec.structs.replace(workload, calls=calls)


def replayed(path: Path, nodes: tuple[Node, ...], load: float, seconds: float, dice: Random) -> Workload:
    """The calls of a trace, their arrivals drawn together or apart so as to make `load`, up to `seconds`."""
    calls = list(trace(path))
    largest = max(node.spec.kv_tokens for node in nodes)
    calls = [call for call in calls if call.prompt_tokens + call.output_tokens <= largest]
    capacity = capacity_per_s(nodes, shape_of(calls, nodes, TRACE_PAGE_TOKENS, dice))
    per_s = len(calls) / (calls[-1].at_s - calls[0].at_s)
    stretch = per_s / (load * capacity)
    moved = [msgspec.structs.replace(call, at_s=(call.at_s - calls[0].at_s) * stretch) for call in calls]
    kept = [call for call in moved if call.at_s < seconds]
    return Workload(kept, TRACE_PAGE_TOKENS, load * capacity, capacity)


def _at_s(call: SimCall) -> float:
    return call.at_s
