"""Tidegate's own routing in a simulation: the very package that the gateway runs, told what the gateway would tell it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from routing.pool import Pool, Run
from routing.prefix import PIECE_TOKENS
from routing.types import Call, Candidate, Endpoint, Price, Tier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.fleet import Hosted, Node
    from loadtest.sim.policy import Flight, Place
    from routing.ejection import FailureKind

MODEL = "simulated"

PICO_USD_PER_TOKEN = 1_000_000
"""In a USD per million tokens."""

_KINDS: dict[str, FailureKind] = {"connect": "connect", "reset": "reset", "silence": "timeout"}


class Tidegate:
    """A pool of `routing`, and what comes of its plans."""

    def __init__(self, place: Place, tier: Tier) -> None:
        self._tier = tier
        self._pieces_per_page = place.page_tokens // PIECE_TOKENS
        self._pool = Pool()
        endpoints = [_worker(node) for node in place.nodes] + [_hosted(hosted) for hosted in place.hosted]
        self._standings = [self._pool.add(endpoint) for endpoint in endpoints]
        for standing, node in zip(self._standings, place.nodes, strict=False):
            # As scraped from vllm:cache_config_info.
            standing.resize(node.spec.kv_tokens)
        self._places = {endpoint.name: index for index, endpoint in enumerate(endpoints)}
        self._planned: tuple[SimCall, Call, dict[int, Candidate]] | None = None

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        asked = Call(
            model=MODEL,
            tier=self._tier,
            prompt_tokens=call.prompt_tokens,
            pieces=self._pieces(call.pages),
        )
        allowed = set(open_to)
        for candidate in self._pool.plan(asked, now_s, roll).ranked:
            index = self._places[candidate.endpoint.name]
            if index in allowed:
                self._planned = call, asked, {index: candidate}
                return index
        return None

    def _pieces(self, pages: tuple[int, ...]) -> tuple[int, ...]:
        parts = self._pieces_per_page
        if parts == 1:
            return pages
        return tuple([page * parts + part for page in pages for part in range(parts)])

    def sent(self, flight: Flight, now_s: float) -> None:
        assert self._planned is not None  # noqa: S101 - nothing is sent that was not planned
        _, asked, planned = self._planned
        cached_tokens = planned[flight.endpoint].cached_tokens
        flight.note = self._standings[flight.endpoint].begin(asked, now_s, cached_tokens)

    def first_token(self, flight: Flight, now_s: float) -> None:
        if isinstance(flight.note, Run):
            flight.note.first_token(now_s)

    def ended(self, flight: Flight, now_s: float, failure: str | None) -> None:
        run, standing = flight.note, self._standings[flight.endpoint]
        if not isinstance(run, Run):
            return
        if failure is None:
            standing.succeeded(now_s)
            run.ended(now_s, flight.call.output_tokens, flight.cached_tokens)
            self._pool.wrote("", flight.call.output_tokens)
            return
        run.unanswered(now_s)
        run.ended(now_s)
        # No dice: the jitter keeps replicas apart, which a simulation of one need not.
        standing.failed(now_s, _KINDS[failure], 0.5)

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
