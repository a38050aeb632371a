"""One simulated run: a workload, a fleet and a policy on a virtual clock.

Discrete events in one heap. The same seed gives the same run to the last digit, and every policy meets the same calls
and the same mishaps at the same times.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from msgspec import Struct

from loadtest.sim.policy import Flight, Place, Scraped
from loadtest.sim.worker import Job, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.fleet import Churn, Hosted, Mishap, Node
    from loadtest.sim.policy import Policy

PATIENCE_S = 300.0
"""After the last call has come, for so long answers are waited for."""

SAMPLE_S = 5.0
"""Between two looks at how much is under way."""


class Scene(Struct, frozen=True):
    """All that a run depends on but its policy."""

    nodes: tuple[Node, ...]
    hosted: tuple[Hosted, ...]
    calls: Sequence[SimCall]
    page_tokens: int
    mishaps: Sequence[Mishap]
    churn: Churn
    seed: int
    replicas: int = 1
    scrape_s: float = 0.05
    """Between two scrapes of the workers' metrics, for policies that use them (llm-d's default)."""


class Done(Struct, frozen=True, gc=False):
    """What became of a call."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    e2e_s: float | None
    """None: it broke off, or nothing came of it."""
    cached_tokens: int
    endpoint: int
    """The last one tried; -1: there was nobody."""
    attempts: int
    cost_usd: float


class Sample(Struct, frozen=True):
    at_s: float
    inflight: int
    waiting: int


class Result(Struct, frozen=True):
    done: list[Done]
    samples: list[Sample]
    events: int


class _Box:
    """A worker as the network sees it."""

    def __init__(self, node: Node, page_tokens: int) -> None:
        self.node = node
        self._page_tokens = page_tokens
        self.worker = Worker(node.spec, page_tokens)
        self.flights: dict[Job, Flight] = {}
        self.state = "up"
        """up, refuses (nobody listens), silent (packets vanish)."""
        self.wake = 0
        """Number of the wake-up that counts; those before it are void."""

    def fail(self, state: str) -> list[Flight]:
        """It goes down; gives those whom it was serving."""
        self.state = state
        self.wake += 1
        lost = [flight for flight in self.flights.values() if not flight.ended]
        self.flights.clear()
        return lost

    def restart(self, now_s: float) -> None:
        self.state = "up"
        self.worker = Worker(self.node.spec, self._page_tokens)
        self.worker.advance(now_s)


class Run:
    def __init__(
        self, scene: Scene, make: Callable[[Place], Policy], progress: Callable[[int], None] | None = None
    ) -> None:
        self.scene = scene
        self._boxes = [_Box(node, scene.page_tokens) for node in scene.nodes]
        self._dice = random.Random(scene.seed)
        self._scraped: tuple[list[Scraped], list[Scraped]] = ([], [])
        """Before last, and last."""
        self._scraped_s = float("-inf")
        place = Place(scene.nodes, scene.hosted, scene.page_tokens, self._scrape)
        self._policies = [make(place) for _ in range(scene.replicas)]
        self._holds = [node.spec.kv_tokens for node in scene.nodes]
        self._open = [True] * len(scene.nodes)
        self._hosted = list(range(len(scene.nodes), len(scene.nodes) + len(scene.hosted)))
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = count()
        self._now_s = 0.0
        self._inflight = 0
        self._result = Result([], [], 0)
        self._progress = progress

    def run(self) -> Result:
        calls = self.scene.calls
        self._at(calls[0].at_s, self._arrives, 0)
        for mishap in self.scene.mishaps:
            self._at(mishap.at_s, self._befalls, mishap)
        self._at(0.0, self._sample)
        end_s = calls[-1].at_s + PATIENCE_S
        heap, events = self._heap, 0
        while heap and heap[0][0] <= end_s:
            self._now_s, _, action, arguments = heappop(heap)
            action(*arguments)
            events += 1
            if len(self._result.done) == len(calls):
                break
        self._give_up()
        return Result(self._result.done, self._result.samples, events)

    def _at(self, at_s: float, action: Callable[..., None], *arguments: object) -> None:
        heappush(self._heap, (at_s, next(self._number), action, arguments))

    # The gateway's side.

    def _arrives(self, index: int) -> None:
        calls = self.scene.calls
        if index + 1 < len(calls):
            self._at(calls[index + 1].at_s, self._arrives, index + 1)
        if self._progress is not None and index % 500 == 0:
            self._progress(index)
        self._inflight += 1
        self._dispatch(calls[index], index % self.scene.replicas, ())

    def _dispatch(self, call: SimCall, replica: int, tried: tuple[int, ...]) -> None:
        need = call.prompt_tokens + call.output_tokens
        open_to = [
            index
            for index, room in enumerate(self._holds)
            if room >= need and self._open[index] and index not in tried
        ]
        open_to += [index for index in self._hosted if index not in tried]
        policy = self._policies[replica]
        endpoint = policy.choose(call, open_to, self._now_s, self._dice.random())
        if endpoint is None:
            self._done(call, None, None, 0, -1, len(tried), 0.0)
            return
        flight = Flight(call, endpoint, replica, self._now_s, tried)
        policy.sent(flight, self._now_s)
        if endpoint < len(self._boxes):
            box = self._boxes[endpoint]
            self._at(self._now_s + box.node.rtt_s / 2, self._submitted, flight, box)
        else:
            hosted = self.scene.hosted[endpoint - len(self._boxes)]
            first_s = self._now_s + hosted.first_token_s(call.prompt_tokens, self._dice)
            self._at(first_s, self._first, flight)
            self._at(first_s + (call.output_tokens - 1) * hosted.itl_s, self._ends, flight)

    def _first(self, flight: Flight) -> None:
        if flight.ended or flight.first_s is not None:
            return
        flight.first_s = self._now_s
        self._policies[flight.replica].first_token(flight, self._now_s)

    def _ends(self, flight: Flight) -> None:
        if flight.ended:
            return
        self._first(flight)
        flight.ended = True
        self._policies[flight.replica].ended(flight, self._now_s, None)
        self._finish(flight, whole=True)

    def _fails(self, flight: Flight, failure: str) -> None:
        if flight.ended:
            return
        flight.ended = True
        self._policies[flight.replica].ended(flight, self._now_s, failure)
        if flight.first_s is None:
            self._dispatch(flight.call, flight.replica, (*flight.tried, flight.endpoint))
        else:
            self._finish(flight, whole=False)

    def _finish(self, flight: Flight, *, whole: bool) -> None:
        call, scene = flight.call, self.scene
        ttft_s = None if flight.first_s is None else flight.first_s - call.at_s
        e2e_s = self._now_s - call.at_s if whole else None
        served = flight.endpoint
        by = scene.nodes[served] if served < len(scene.nodes) else scene.hosted[served - len(scene.nodes)]
        usd = call.prompt_tokens * by.input_usd_per_million + call.output_tokens * by.output_usd_per_million
        self._done(call, ttft_s, e2e_s, flight.cached_tokens, served, len(flight.tried) + 1, usd / 1e6)

    def _done(
        self,
        call: SimCall,
        ttft_s: float | None,
        e2e_s: float | None,
        cached_tokens: int,
        endpoint: int,
        attempts: int,
        cost_usd: float,
    ) -> None:
        self._inflight -= 1
        self._result.done.append(
            Done(
                call.at_s,
                call.prompt_tokens,
                call.output_tokens,
                ttft_s,
                e2e_s,
                cached_tokens,
                endpoint,
                attempts,
                cost_usd,
            )
        )

    # The workers' side.

    def _submitted(self, flight: Flight, box: _Box) -> None:
        if box.state == "refuses":
            self._at(self._now_s + box.node.rtt_s / 2, self._fails, flight, "connect")
            return
        call = flight.call
        job = Job(call.prompt_tokens, call.output_tokens, call.pages, call.answer)
        box.flights[job] = flight
        if box.state == "up":
            box.worker.submit(self._now_s, job)
            self._deliver(box)

    def _wakes(self, box: _Box, wake: int) -> None:
        if wake == box.wake:
            box.worker.advance(self._now_s)
            self._deliver(box)

    def _deliver(self, box: _Box) -> None:
        """Send out what the worker has made, and come back when it makes the next."""
        half_s = box.node.rtt_s / 2
        for event in box.worker.events():
            if not event.last:
                flight = box.flights[event.job]
                flight.cached_tokens = event.job.cached_tokens
                self._at(event.at_s + half_s, self._first, flight)
            else:
                self._at(event.at_s + half_s, self._ends, box.flights.pop(event.job))
        box.wake += 1
        next_s = box.worker.next_s()
        if next_s < float("inf"):
            self._at(next_s, self._wakes, box, box.wake)

    def _befalls(self, mishap: Mishap) -> None:
        box, index, now_s = self._boxes[mishap.index], mishap.index, self._now_s
        match mishap.kind:
            case "notice":
                self._leaves(index)
            case "reset":
                for flight in box.fail("refuses"):
                    self._at(now_s + box.node.rtt_s / 2, self._fails, flight, "reset")
                self._at(now_s + box.node.rtt_s / 2, self._leaves, index)
            case "silence":
                lost = box.fail("silent")
                self._at(now_s + self.scene.churn.silence_s, self._noticed, box, index, lost)
            case "back":
                box.restart(now_s)
                self._open[index] = True
                for policy in self._policies:
                    policy.back(index, now_s)
            case _:
                slowness = self.scene.churn.slowness if mishap.kind == "slow" else 1.0
                if box.state == "up":
                    box.worker.slow_down(now_s, slowness)
                    self._deliver(box)

    def _noticed(self, box: _Box, index: int, lost: list[Flight]) -> None:
        """A silent worker's checks have failed: everybody who waits on it is told."""
        self._leaves(index)
        for flight in [*lost, *box.fail("refuses")]:
            self._fails(flight, "silence")

    def _leaves(self, index: int) -> None:
        if self._open[index]:
            self._open[index] = False
            for policy in self._policies:
                policy.gone(index, self._now_s)

    # What is looked at from outside.

    def _scrape(self, now_s: float) -> Sequence[Scraped]:
        """The metrics of the scrape before last: what a gateway works with is under way for a while, too."""
        if now_s - self._scraped_s >= self.scene.scrape_s:
            self._scraped_s = now_s
            last = [self._look_at(box) for box in self._boxes]
            self._scraped = (self._scraped[1] or last, last)
        return self._scraped[0]

    def _look_at(self, box: _Box) -> Scraped:
        worker = box.worker
        if box.state == "up":
            worker.advance(self._now_s)
            self._deliver(box)
        return Scraped(len(worker.waiting), worker.running, worker.cache.usage)

    def _sample(self) -> None:
        waiting = sum(len(box.worker.waiting) for box in self._boxes if box.state == "up")
        self._result.samples.append(Sample(self._now_s, self._inflight, waiting))
        if self._now_s < self.scene.calls[-1].at_s:
            self._at(self._now_s + SAMPLE_S, self._sample)

    def _give_up(self) -> None:
        """Whoever is still waiting has met with nothing."""
        for box in self._boxes:
            for flight in box.fail("refuses"):
                flight.ended = True
                self._finish(flight, whole=False)


def simulate(
    scene: Scene, make: Callable[[Place], Policy], progress: Callable[[int], None] | None = None
) -> Result:
    return Run(scene, make, progress).run()
