"""Tidegate's own routing in a simulation: the very package that the gateway runs, told what the gateway would tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, structs

from gateway.lookout import LEAST_WAIT_S as LOOKS_FROM_S
from gateway.whole import LONG_S
from routing.gossip import Batch, Gossip
from routing.hedging import SLOW_AFTER_S, Going, is_slow, left_tokens, longest_s
from routing.pool import Pool
from routing.prefix import PIECE_TOKENS
from routing.types import Call, Candidate, Endpoint, Price, Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.fleet import Hosted, Node
    from loadtest.sim.policy import Flight, Place
    from routing.ejection import FailureKind
    from routing.run import Run

MODEL = "simulated"

PICO_USD_PER_TOKEN = 1_000_000
"""In a USD per million tokens."""

_KINDS: dict[str, FailureKind] = {"connect": "connect", "reset": "reset", "silence": "timeout"}


MOST_MOVES = 2
"""Of one answer, as in `gateway.resuming`."""


LEAST_WAIT_S = 0.05
"""Between two looks of a call that waits, as in `gateway.admission`."""


class _Attempt(Struct):
    """What is noted of a flight."""

    run: Run
    asked: Call
    planned: Candidate
    is_paced: bool = False
    """Whether its pace has been learned from."""
    made_tokens: int = 0
    moves: int = 0
    """Of its answer, until then."""


class Tidegate:
    """A pool of `routing`, and what comes of its plans."""

    def __init__(self, place: Place, tier: Tier, *, hedges: bool = False, resumes: bool = False) -> None:
        """`hedges` and `resumes` where it hides churn as the gateway does, which none of its peers can."""
        self.resumes = resumes
        # Only what can be gone on with can be moved, and that is switched off with hedging.
        self.moves = hedges and resumes
        self._hedges = hedges
        self._tier = tier
        self._pieces_per_page = place.page_tokens // PIECE_TOKENS
        self._pool = Pool()
        endpoints = [_worker(node) for node in place.nodes] + [_hosted(hosted) for hosted in place.hosted]
        self._standings = [self._pool.add(endpoint) for endpoint in endpoints]
        for standing, node in zip(self._standings, place.nodes, strict=False):
            # As scraped from vllm:cache_config_info.
            standing.resize(node.spec.kv_tokens)
        self._places = {endpoint.name: index for index, endpoint in enumerate(endpoints)}
        self._planned: tuple[Call, Candidate] | None = None
        self._gossip = Gossip(f"replica {id(self)}", lambda: [self._pool])

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        asked = Call(
            model=MODEL,
            tier=self._tier,
            prompt_tokens=call.prompt_tokens,
            pieces=self._pieces(call.pages),
            turn=call.turn,
        )
        return self._take(asked, self._ranked(asked, open_to, now_s, roll)[:1])

    def late_s(self, flight: Flight) -> float | None:
        if not self._hedges or not isinstance(flight.note, _Attempt) or not flight.watched:
            return None
        self._pool.hedging.budget.call()
        return self._pool.hedging.lateness.late_after_s(flight.note.planned.estimate.ttft_s)

    def second(self, flight: Flight, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        note = flight.note
        assert isinstance(note, _Attempt)  # noqa: S101 - it was sent by us
        others = self._ranked(note.asked, open_to, now_s, roll)
        found = self._pool.hedging.racer(now_s - flight.sent_s, note.planned, others, note.asked)
        return None if isinstance(found, str) else self._take(note.asked, [found])

    def slow(self, flight: Flight, made_tokens: int, now_s: float) -> bool:
        note = flight.note
        assert isinstance(note, _Attempt)  # noqa: S101 - it was sent by us
        assert flight.first_s is not None  # noqa: S101 - only those are looked at
        note.run.progress(now_s, made_tokens)
        note.made_tokens = made_tokens
        ran_s, itl_s, pace = note.run.wrote_s(now_s), note.planned.estimate.itl_s, self._pool.hedging.pace
        if ran_s < SLOW_AFTER_S:
            return False
        if not note.is_paced:
            note.is_paced = True
            pace.saw(ran_s, itl_s * made_tokens)
        return note.moves < MOST_MOVES and is_slow(ran_s, made_tokens - 1, itl_s, pace.ratio)

    def heir(
        self, flight: Flight, rest: SimCall, open_to: Sequence[int], now_s: float, roll: float
    ) -> int | None:
        note, hedging = flight.note, self._pool.hedging
        assert isinstance(note, _Attempt)  # noqa: S101 - it was sent by us
        assert flight.first_s is not None  # noqa: S101 - only those are looked at
        call = flight.story.call
        written = call.output_tokens - rest.output_tokens
        asked = structs.replace(note.asked, prompt_tokens=call.prompt_tokens + written)
        left = left_tokens(written, self._pool.output_tokens(""), None)
        going = Going(
            note.run.wrote_s(now_s),
            note.made_tokens - 1,
            note.planned.estimate.itl_s,
            left,
            hedging.pace.ratio,
        )
        found = hedging.heir(going, note.planned, self._ranked(asked, open_to, now_s, roll), asked)
        if isinstance(found, str):
            return None
        note.moves += 1
        return self._take(asked, [found])

    def overdue(self, flight: Flight, open_to: Sequence[int], now_s: float) -> bool:
        note, waited_s = flight.note, now_s - flight.sent_s
        assert isinstance(note, _Attempt)  # noqa: S101 - it was sent by us
        if not self._pool.hedging.overdue(waited_s, self._longest_s(note)):
            return False
        return bool(self._ranked(note.asked, open_to, now_s, 0.0))

    def _longest_s(self, note: _Attempt) -> float:
        return longest_s(note.planned, None, self._pool.output_tokens(""))

    def back_in_s(self, open_to: Sequence[int], now_s: float) -> float | None:
        standings = [self._standings[index] for index in open_to]
        loads = [each.load(now_s) for each in standings if each.soon(now_s)]
        waits_s = [each.retry_after_s if each.resort_s is None else each.resort_s for each in loads]
        return min((max(LEAST_WAIT_S, each) for each in waits_s if each is not None), default=None)

    def _ranked(self, asked: Call, open_to: Sequence[int], now_s: float, roll: float) -> list[Candidate]:
        allowed = set(open_to)
        ranked = self._pool.plan(asked, now_s, roll).ranked
        return [candidate for candidate in ranked if self._places[candidate.endpoint.name] in allowed]

    def _take(self, asked: Call, candidates: list[Candidate]) -> int | None:
        if not candidates:
            return None
        self._planned = asked, candidates[0]
        return self._places[candidates[0].endpoint.name]

    def _pieces(self, pages: tuple[int, ...]) -> tuple[int, ...]:
        parts = self._pieces_per_page
        if parts == 1:
            return pages
        return tuple([page * parts + part for page in pages for part in range(parts)])

    def sent(self, flight: Flight, now_s: float) -> None:
        assert self._planned is not None  # noqa: S101 - nothing is sent that was not planned
        asked, planned = self._planned
        if flight.call.whole:
            expected = planned.estimate
            takes_s = expected.ttft_s + self._pool.output_tokens("") * expected.itl_s
            at_worker = self._standings[flight.endpoint].endpoint.kind == "worker"
            flight.watched = at_worker and (takes_s >= LONG_S or bool(flight.tried))
        run = self._standings[flight.endpoint].begin(
            asked, now_s, planned.cached_tokens, watched=flight.watched
        )
        origin = flight.origin
        moves = origin.note.moves if origin is not None and isinstance(origin.note, _Attempt) else 0
        flight.note = _Attempt(run, asked, planned, moves=moves)
        if origin is None and flight.watched:
            self._pool.hedging.moves.call()

    def first_token(self, flight: Flight, now_s: float) -> None:
        if isinstance(flight.note, _Attempt):
            flight.note.run.first_token(now_s)
            if flight.origin is None:
                self._saw(flight, flight.note, now_s)

    def ended(self, flight: Flight, now_s: float, failure: str | None) -> None:
        note, standing = flight.note, self._standings[flight.endpoint]
        if not isinstance(note, _Attempt):
            return
        if failure is None:
            standing.succeeded(now_s, flight.sent_s)
            if not flight.watched and now_s - flight.sent_s >= LOOKS_FROM_S:
                self._pool.hedging.wholes.saw(now_s - flight.sent_s, self._longest_s(note))
            note.run.ended(now_s, flight.call.output_tokens, flight.cached_tokens)
            self._pool.wrote("", flight.call.output_tokens)
            return
        note.run.unanswered(now_s)
        note.run.ended(now_s, note.made_tokens)
        if failure == "outrun":
            self._saw(flight, note, now_s)
        elif failure != "moved":
            # No dice: the jitter keeps replicas apart, which a simulation of one need not.
            standing.failed(now_s, _KINDS[failure], 0.5, flight.sent_s)

    def say(self, now_s: float) -> object | None:
        self._gossip.forget(now_s)
        return self._gossip.batch(now_s)

    def hear(self, said: object, now_s: float) -> None:
        assert isinstance(said, Batch)  # noqa: S101 - nobody else gossips
        self._gossip.take(said, now_s)

    def _saw(self, flight: Flight, note: _Attempt, now_s: float) -> None:
        self._pool.hedging.lateness.saw(now_s - flight.sent_s, note.planned.estimate.ttft_s)

    def gone(self, endpoint: int, now_s: float) -> None:
        standing = self._standings[endpoint]
        standing.ejection.health(now_s, ok=False, detail="gone")
        standing.changed()

    def back(self, endpoint: int, now_s: float) -> None:
        standing = self._standings[endpoint]
        standing.ejection.health(now_s, ok=True)
        standing.restarted()
        standing.changed()


def _price(by: Node | Hosted) -> Price:
    return Price(
        input_pico_usd=round(by.input_usd_per_million * PICO_USD_PER_TOKEN),
        output_pico_usd=round(by.output_usd_per_million * PICO_USD_PER_TOKEN),
    )


def _worker(node: Node) -> Endpoint:
    return Endpoint(
        name=node.name,
        model=MODEL,
        served_model=MODEL,
        gpu=node.gpu,
        context_tokens=node.spec.kv_tokens,
        cost=_price(node),
    )


def _hosted(hosted: Hosted) -> Endpoint:
    return Endpoint(name=hosted.name, model=MODEL, served_model=MODEL, kind="openai", cost=_price(hosted))
