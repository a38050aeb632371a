"""Calls that two equal workers get, on a virtual clock: a real one would let the machine's own pauses decide."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from routing.pool import Pool
from routing.types import Call, Endpoint, Tier

if TYPE_CHECKING:
    from routing.run import Run

TIER = Tier("default", max_ttft_s=5.0, waiting_nano_usd_per_s=4e9 / 3600)
LONG = Call("m", TIER, prompt_tokens=9, max_tokens=20_000)
TICK_S = 0.25
"""Between two looks at all streams, as in the gateway."""
STEP_S = 0.005
TTFT_S = 0.01
ITL_S = 0.01
"""Half of what is guessed."""


@dataclass
class Stream:
    run: Run
    sent_s: float
    first_s: float | None = None


@dataclass
class Machine:
    """A gateway and two workers: for a while all three of them may stand still."""

    dice: Random
    watched: bool = True
    stands_still_s: tuple[float, float] = (0.0, 0.0)
    """From when, and for how long."""

    def __post_init__(self) -> None:
        self.pool = Pool()
        for name in ("one", "two"):
            self.pool.add(Endpoint(name, "m", "m"))
        self.now_s = self.ran_s = 0.0
        self.streams: list[Stream] = []
        self.looks_s = TICK_S

    def send(self, call: Call) -> Stream:
        best = self.pool.plan(call, self.now_s, self.dice.random()).ranked[0].endpoint
        run = self.pool.standings[best.name].begin(call, self.now_s, watched=self.watched)
        self.streams.append(Stream(run, self.ran_s))
        return self.streams[-1]

    def goes_on(self, seconds: float) -> None:
        until_s = self.ran_s + seconds
        while self.ran_s < until_s:
            self._step()

    def _step(self) -> None:
        at_s, for_s = self.stands_still_s
        if self.ran_s <= at_s < self.ran_s + STEP_S:
            self.now_s += for_s
        self.now_s += STEP_S
        self.ran_s += STEP_S
        for stream in self.streams:
            if stream.first_s is None and self.ran_s >= stream.sent_s + TTFT_S:
                stream.first_s = self.ran_s
                stream.run.first_token(self.now_s)
        if self.now_s >= self.looks_s:
            self.looks_s = self.now_s + TICK_S
            for stream in self.streams:
                if stream.first_s is not None:
                    stream.run.progress(self.now_s, 1 + int((self.ran_s - stream.first_s) / ITL_S))

    def short_call(self) -> None:
        stream = self.send(structs.replace(LONG, max_tokens=5))
        self.goes_on(TTFT_S + 4 * ITL_S + STEP_S)
        stream.run.ended(self.now_s, 5)
        self.pool.wrote("", 5)
        self.streams.remove(stream)

    @property
    def fewer(self) -> int:
        """Calls under way at that which has fewer."""
        return min(standing.inflight for standing in self.pool)


@pytest.mark.parametrize("kind", ["stream", "whole reply"])
@pytest.mark.parametrize("short_calls", [0, 10])
@pytest.mark.parametrize("seed", range(5))
def test_two_equal_workers_share_long_calls(kind: str, short_calls: int, seed: int):
    machine = Machine(Random(seed), watched=kind == "stream")  # noqa: S311 - it is to be the same each time
    for _ in range(short_calls):
        machine.short_call()
    for _ in range(12):
        machine.send(LONG)
        machine.goes_on(0.03)
    assert machine.fewer >= 4


def test_two_equal_workers_go_on_to_share_long_calls_after_a_pause_of_the_machine():
    """Both have shown the same, and so much of it, whoever has more streams to show it."""
    fewer = 0
    for seed in range(20):
        dice = Random(seed)  # noqa: S311 - it is to be the same each time
        machine = Machine(dice, stands_still_s=(dice.uniform(0.1, 1.0), 0.5))
        for _ in range(24):
            machine.send(LONG)
            machine.goes_on(0.1)
        fewer += machine.fewer
    assert fewer / 20 >= 8
