"""What a plan costs, and what routing keeps in memory, by how many endpoints there are.

The pool is driven as the gateway drives it: calls of many conversations on one system prompt begin, have their first token
and end, with an index of prefixes that is full. Each size has a process of its own, so that memory is its own.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING

from msgspec import Struct

from loadtest import procfs
from loadtest.plan_bench import TIER, pool
from routing.pool import Pool
from routing.prefix import MOST_PIECES_HELD, PIECE_TOKENS
from routing.types import Call

if TYPE_CHECKING:
    from routing.run import Run

CALLS_PER_S = 500.0
"""About what one process of a gateway may serve with all that it does besides."""
CALL_S = 0.8
FIRST_TOKEN_S = 0.2
SYSTEM_PIECES = 4
OWN_PIECES = 12
"""Of a prompt: what all have in common, and what is a conversation's; two thousand tokens in all."""
_BLOCK = 200
_BLOCKS = 8


class Routed(Struct, frozen=True):
    """Routing over so many endpoints."""

    endpoints: int
    plan_us: float
    """From a call to its plan, loads and cached prefixes included."""
    round_us: float
    """All else that routing does for a call: begun, first token, ended."""
    resident_mb: float
    """Of the pool and its index."""


def routed(endpoints: int, pieces: int = MOST_PIECES_HELD) -> Routed:
    """Measured in a process of its own, with so many pieces of prompts in the index."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        return alone.submit(_routed, endpoints, pieces).result()


def _routed(endpoints: int, pieces: int) -> Routed:
    before = procfs.resident_bytes(os.getpid())
    drive = _Drive(endpoints, pieces, random.Random(1))
    resident_mb = (procfs.resident_bytes(os.getpid()) - before) / 1e6
    drive.block()
    plan_us, round_us = zip(*(drive.block() for _ in range(_BLOCKS)), strict=True)
    return Routed(endpoints, min(plan_us), min(round_us), resident_mb)


class _Drive:
    """Calls through a pool, on a clock of its own."""

    def __init__(self, endpoints: int, pieces: int, dice: random.Random) -> None:
        self._dice = dice
        self._now_s = 1.0
        self._under_way: deque[tuple[float, Run]] = deque()
        self._waiting: deque[tuple[float, Run]] = deque()
        self._pool = Pool()
        for endpoint, _ in pool(endpoints, dice):
            self._pool.add(endpoint)
        system = self._names(SYSTEM_PIECES)
        self._prompts = [(*system, *self._names(OWN_PIECES)) for _ in range(pieces // OWN_PIECES)]
        places = [standing.place for standing in self._pool]
        for number, prompt in enumerate(self._prompts):
            self._pool.prefixes.place(places[number % endpoints], prompt)

    def _names(self, count: int) -> tuple[int, ...]:
        return tuple(self._dice.getrandbits(64) for _ in range(count))

    def block(self) -> tuple[float, float]:
        """Processor time of a plan, and of the rest, in microseconds: means over some calls."""
        planning_ns = rest_ns = 0
        for _ in range(_BLOCK):
            self._now_s += 1.0 / CALLS_PER_S
            prompt = self._dice.choice(self._prompts)
            call = Call("m", TIER, len(prompt) * PIECE_TOKENS, pieces=prompt)
            begun_ns = time.thread_time_ns()
            chosen = self._pool.plan(call, self._now_s, self._dice.random()).ranked[0]
            planned_ns = time.thread_time_ns()
            run = self._pool.standings[chosen.endpoint.name].begin(call, self._now_s, chosen.cached_tokens)
            self._waiting.append((self._now_s + FIRST_TOKEN_S, run))
            self._under_way.append((self._now_s + CALL_S, run))
            while self._waiting[0][0] <= self._now_s:
                self._waiting.popleft()[1].first_token(self._now_s)
            while self._under_way[0][0] <= self._now_s:
                self._under_way.popleft()[1].ended(self._now_s, 60)
            planning_ns += planned_ns - begun_ns
            rest_ns += time.thread_time_ns() - planned_ns
        return planning_ns / _BLOCK / 1e3, rest_ns / _BLOCK / 1e3
