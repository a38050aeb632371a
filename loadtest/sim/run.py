"""One simulated run: a workload, a fleet and a policy on a virtual clock.

Discrete events in one heap. The same seed gives the same run to the last digit, and every policy meets the same calls
and the same mishaps at the same times.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from gateway.race import LOOKS_AGAIN
from loadtest.sim.box import Box
from loadtest.sim.policy import Flight, Hides, Place, Scraped, Story
from loadtest.sim.worker import Job

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


class Toll(Struct):
    """What churn, and hiding it, has cost over a run. In tokens, read or made by workers."""

    worked_tokens: int = 0
    wasted_tokens: int = 0
    """Of these: made for nobody, or read for a second time."""
    hedges: int = 0
    resumes: int = 0


class Result(Struct, frozen=True):
    done: list[Done]
    samples: list[Sample]
    events: int
    toll: Toll


class Run:
    def __init__(
        self, scene: Scene, make: Callable[[Place], Policy], progress: Callable[[int], None] | None = None
    ) -> None:
        self.scene = scene
        self._boxes = [Box(node, scene.page_tokens) for node in scene.nodes]
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
        self._result = Result([], [], 0, Toll())
        self._toll = self._result.toll
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
        return Result(self._result.done, self._result.samples, events, self._toll)

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
        self._dispatch(Story(calls[index]), calls[index], index % self.scene.replicas, ())

    def _dispatch(self, story: Story, call: SimCall, replica: int, tried: tuple[int, ...]) -> None:
        policy = self._policies[replica]
        endpoint = policy.choose(call, self._open_to(call, tried), self._now_s, self._dice.random())
        if endpoint is None:
            ttft_s = None if story.first_s is None else story.first_s - story.call.at_s
            self._done(story.call, ttft_s, None, 0, -1, len(tried), 0.0)
            return
        flight = Flight(call, endpoint, replica, self._now_s, story, tried)
        self._send(flight)
        if isinstance(policy, Hides) and story.first_s is None:
            late_s = policy.late_s(flight)
            if late_s is not None:
                self._at(self._now_s + late_s, self._late, flight)

    def _open_to(self, call: SimCall, tried: tuple[int, ...]) -> list[int]:
        need = call.prompt_tokens + call.output_tokens
        open_to = [
            index
            for index, room in enumerate(self._holds)
            if room >= need and self._open[index] and index not in tried
        ]
        return open_to + [index for index in self._hosted if index not in tried]

    def _send(self, flight: Flight) -> None:
        call, endpoint = flight.call, flight.endpoint
        self._policies[flight.replica].sent(flight, self._now_s)
        if endpoint < len(self._boxes):
            box = self._boxes[endpoint]
            self._at(self._now_s + box.node.rtt_s / 2, self._submitted, flight, box)
        else:
            hosted = self.scene.hosted[endpoint - len(self._boxes)]
            first_s = self._now_s + hosted.first_token_s(call.prompt_tokens, self._dice)
            self._at(first_s, self._first, flight)
            self._at(first_s + (call.output_tokens - 1) * hosted.itl_s, self._ends, flight)

    def _late(self, flight: Flight) -> None:
        """Its first token should have come: race it, if the policy knows somebody to."""
        policy = self._policies[flight.replica]
        if flight.ended or flight.first_s is not None or not isinstance(policy, Hides):
            return
        call, tried = flight.call, (*flight.tried, flight.endpoint)
        endpoint = policy.second(flight, self._open_to(call, tried), self._now_s, self._dice.random())
        if endpoint is None:
            waited_s = self._now_s - flight.sent_s
            self._at(flight.sent_s + LOOKS_AGAIN * waited_s, self._late, flight)
            return
        self._toll.hedges += 1
        second = Flight(call, endpoint, flight.replica, self._now_s, flight.story, tried, rival=flight)
        flight.rival = second
        self._send(second)

    def _first(self, flight: Flight) -> None:
        if flight.ended or flight.first_s is not None:
            return
        flight.first_s = self._now_s
        self._policies[flight.replica].first_token(flight, self._now_s)
        story, rival = flight.story, flight.rival
        if story.first_s is None:
            story.first_s = self._now_s
        if rival is not None and not rival.ended:
            rival.ended = True
            self._policies[rival.replica].ended(rival, self._now_s, "outrun")
            if rival.endpoint < len(self._boxes):
                box = self._boxes[rival.endpoint]
                self._at(self._now_s + box.node.rtt_s / 2, self._aborted, rival, box)

    def _aborted(self, flight: Flight, box: Box) -> None:
        job = flight.job
        if job is not None and box.flights.pop(job, None) is not None and box.state == "up":
            self._tally(*box.worker.abort(self._now_s, job), wasted=True)
            self._deliver(box)

    def _tally(self, read_tokens: int, made_tokens: int, *, wasted: bool) -> None:
        self._toll.worked_tokens += read_tokens + made_tokens
        self._toll.wasted_tokens += wasted * (read_tokens + made_tokens)

    def _ends(self, flight: Flight) -> None:
        if flight.ended:
            return
        self._first(flight)
        flight.ended = True
        self._policies[flight.replica].ended(flight, self._now_s, None)
        read_tokens = flight.call.prompt_tokens - flight.cached_tokens
        self._tally(read_tokens, 0, wasted=flight.story.resumed)
        self._tally(0, flight.call.output_tokens, wasted=False)
        self._finish(flight, whole=True)

    def _fails(self, flight: Flight, failure: str) -> None:
        if flight.ended:
            return
        flight.ended = True
        policy, story, rival = self._policies[flight.replica], flight.story, flight.rival
        policy.ended(flight, self._now_s, failure)
        call, tried = flight.call, tuple({*flight.tried, flight.endpoint, *(rival.tried if rival else ())})
        if flight.first_s is None:
            self._tally(flight.read_tokens, 0, wasted=True)
            if rival is None or rival.ended:
                self._dispatch(story, call, flight.replica, tried)
        elif isinstance(policy, Hides) and policy.resumes:
            self._tally(flight.read_tokens, 0, wasted=story.resumed)
            made = min(flight.made_tokens, call.output_tokens - 1)  # its end at the least has not come
            self._tally(0, made, wasted=False)
            self._toll.resumes += 1
            story.resumed = True
            rest = structs.replace(
                call, prompt_tokens=call.prompt_tokens + made, output_tokens=call.output_tokens - made
            )
            self._dispatch(story, rest, flight.replica, (flight.endpoint,))
        else:
            self._tally(flight.read_tokens, flight.made_tokens, wasted=True)
            self._finish(flight, whole=False)

    def _finish(self, flight: Flight, *, whole: bool) -> None:
        scene, story = self.scene, flight.story
        call = story.call
        ttft_s = None if story.first_s is None else story.first_s - call.at_s
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

    def _submitted(self, flight: Flight, box: Box) -> None:
        if box.state == "refuses":
            self._at(self._now_s + box.node.rtt_s / 2, self._fails, flight, "connect")
            return
        if flight.ended:
            return
        call = flight.call
        job = flight.job = Job(call.prompt_tokens, call.output_tokens, call.pages, call.answer)
        box.flights[job] = flight
        if box.state == "up":
            box.worker.submit(self._now_s, job)
            self._deliver(box)

    def _wakes(self, box: Box, wake: int) -> None:
        if wake == box.wake:
            box.worker.advance(self._now_s)
            self._deliver(box)

    def _deliver(self, box: Box) -> None:
        """Send out what the worker has made, and come back when it makes the next."""
        half_s = box.node.rtt_s / 2
        for event in box.worker.events():
            if event.job not in box.flights:
                continue  # its client has left
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
        if box.state == "up":
            box.worker.advance(now_s)
            self._deliver(box)
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

    def _noticed(self, box: Box, index: int, lost: list[Flight]) -> None:
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

    def _look_at(self, box: Box) -> Scraped:
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
