"""One simulated run: a workload, a fleet and a policy on a virtual clock.

Discrete events in one heap. The same seed gives the same run to the last digit, and every policy meets the same calls
and the same mishaps at the same times.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

from gateway.race import LOOKS_AGAIN
from loadtest.sim.box import Box
from loadtest.sim.gossip import gossip
from loadtest.sim.lookout import Lookout
from loadtest.sim.policy import Flight, Hides, Place, Scraped, Story
from loadtest.sim.scene import Done, Result, Sample, Toll, done_of, unserved
from loadtest.sim.worker import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.fleet import Mishap
    from loadtest.sim.policy import Policy
    from loadtest.sim.scene import Scene

PATIENCE_S = 300.0
"""After the last call has come, for so long answers are waited for."""

SAMPLE_S = 5.0
"""Between two looks at how much is under way."""


class Run:
    def __init__(
        self, scene: Scene, make: Callable[[Place], Policy], progress: Callable[[int], None] | None = None
    ) -> None:
        self.scene = scene
        self.boxes = [Box(node, scene.page_tokens) for node in scene.nodes]
        self.dice = random.Random(scene.seed)
        self._scraped: tuple[list[Scraped], list[Scraped]] = ([], [])
        """Before last, and last."""
        self._scraped_s = float("-inf")
        place = Place(scene.nodes, scene.hosted, scene.page_tokens, self._scrape)
        self.policies = [make(place) for _ in range(scene.replicas)]
        self._holds = [node.spec.kv_tokens for node in scene.nodes]
        self._open = [True] * len(scene.nodes)
        self._hosted = list(range(len(scene.nodes), len(scene.nodes) + len(scene.hosted)))
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = count()
        self.now_s = 0.0
        self._inflight = 0
        self.wholes: list[Flight] = []
        """Of which nothing will be seen before their end, and some that have ended."""
        self._result = Result([], [], 0, Toll())
        self.toll = self._result.toll
        self._progress = progress

    def run(self) -> Result:
        calls = self.scene.calls
        self.at(calls[0].at_s, self._arrives, 0)
        for mishap in self.scene.mishaps:
            self.at(mishap.at_s, self._befalls, mishap)
        self.at(0.0, self._sample)
        heap, events, end_s = self._heap, 0, calls[-1].at_s + PATIENCE_S
        lookout = Lookout(self, end_s)
        if lookout.is_wanted:
            lookout.begin()
        gossip(self.policies, self.scene.gossip_s, end_s, self.at)
        while heap and heap[0][0] <= end_s:
            self.now_s, _, action, arguments = heappop(heap)
            action(*arguments)
            events += 1
            if len(self._result.done) == len(calls):
                break
        self._give_up()
        return Result(self._result.done, self._result.samples, events, self.toll)

    def at(self, at_s: float, action: Callable[..., None], *arguments: object) -> None:
        heappush(self._heap, (at_s, next(self._number), action, arguments))

    # The gateway's side.

    def _arrives(self, index: int) -> None:
        calls = self.scene.calls
        if index + 1 < len(calls):
            self.at(calls[index + 1].at_s, self._arrives, index + 1)
        if self._progress is not None and index % 500 == 0:
            self._progress(index)
        self._inflight += 1
        self.dispatch(Story(calls[index]), calls[index], index % self.scene.replicas, ())

    def dispatch(self, story: Story, call: SimCall, replica: int, tried: tuple[int, ...]) -> None:
        policy, open_to = self.policies[replica], self.open_to(call, tried)
        endpoint = policy.choose(call, open_to, self.now_s, self.dice.random())
        if endpoint is None:
            wait_s = policy.back_in_s(open_to, self.now_s) if isinstance(policy, Hides) else None
            if wait_s is None or self.now_s + wait_s > story.waits_until_s(self.now_s):
                self._done(unserved(story, len(tried)))
            else:
                self.at(self.now_s + wait_s, self.dispatch, story, call, replica, tried)
            return
        story.waits_since_s = None
        flight = Flight(call, endpoint, replica, self.now_s, story, tried, watched=not story.call.whole)
        self.send(flight)
        if isinstance(policy, Hides) and flight.watched and story.first_s is None:
            late_s = policy.late_s(flight)
            if late_s is not None:
                self.at(self.now_s + late_s, self._late, flight)

    def open_to(self, call: SimCall, tried: tuple[int, ...]) -> list[int]:
        need = call.prompt_tokens + call.output_tokens
        open_to = [
            index
            for index, room in enumerate(self._holds)
            if room >= need and self._open[index] and index not in tried
        ]
        return open_to + [index for index in self._hosted if index not in tried]

    def send(self, flight: Flight) -> None:
        call, endpoint = flight.call, flight.endpoint
        self.policies[flight.replica].sent(flight, self.now_s)
        if not flight.watched:
            self.wholes.append(flight)
        if endpoint < len(self.boxes):
            box = self.boxes[endpoint]
            self.at(self.now_s + box.node.rtt_s / 2, self._submitted, flight, box)
        else:
            hosted = self.scene.hosted[endpoint - len(self.boxes)]
            first_s = self.now_s + hosted.first_token_s(call.prompt_tokens, self.dice)
            self.at(first_s, self._first, flight)
            self.at(first_s + (call.output_tokens - 1) * hosted.itl_s, self._ends, flight)

    def _late(self, flight: Flight) -> None:
        """Its first token should have come: race it, if the policy knows somebody to."""
        policy = self.policies[flight.replica]
        if flight.ended or flight.first_s is not None or not isinstance(policy, Hides):
            return
        call, tried = flight.call, (*flight.tried, flight.endpoint)
        endpoint = policy.second(flight, self.open_to(call, tried), self.now_s, self.dice.random())
        if endpoint is None:
            waited_s = self.now_s - flight.sent_s
            self.at(flight.sent_s + LOOKS_AGAIN * waited_s, self._late, flight)
            return
        self.toll.hedges += 1
        second = Flight(call, endpoint, flight.replica, self.now_s, flight.story, tried, rival=flight)
        flight.rival = second
        self.send(second)

    def _inherits(self, flight: Flight, origin: Flight) -> None:
        """The other one has answered: it goes on there."""
        self.toll.moves += 1
        box = self.boxes[origin.endpoint]
        _, made_tokens = (
            box.worker.progress(origin.job) if origin.job in box.flights else (0, origin.call.output_tokens)
        )
        read_tokens = origin.call.prompt_tokens - origin.cached_tokens
        self.tally(read_tokens, 0, wasted=flight.story.resumed)
        self.tally(0, origin.made_tokens, wasted=False)
        self.tally(0, max(0, made_tokens - origin.made_tokens), wasted=True)
        flight.story.resumed = True
        origin.ended = True
        self.policies[origin.replica].ended(origin, self.now_s, "moved")
        self.at(self.now_s + box.node.rtt_s / 2, self.cancelled, origin, box)

    def cancelled(self, flight: Flight, box: Box) -> None:
        """What it has done has been accounted for."""
        job = flight.job
        if job is not None and box.flights.pop(job, None) is not None and box.state == "up":
            box.worker.abort(self.now_s, job)
            self.deliver(box)

    def _first(self, flight: Flight) -> None:
        if flight.ended or flight.first_s is not None or not flight.watched:
            return
        flight.first_s = self.now_s
        if flight.origin is not None and not flight.origin.ended:
            self._inherits(flight, flight.origin)
        self.policies[flight.replica].first_token(flight, self.now_s)
        story, rival = flight.story, flight.rival
        if story.first_s is None:
            story.first_s = self.now_s
        if rival is not None and not rival.ended:
            rival.ended = True
            self.policies[rival.replica].ended(rival, self.now_s, "outrun")
            if rival.endpoint < len(self.boxes):
                box = self.boxes[rival.endpoint]
                self.at(self.now_s + box.node.rtt_s / 2, self._aborted, rival, box)

    def _aborted(self, flight: Flight, box: Box) -> None:
        job = flight.job
        if job is not None and box.flights.pop(job, None) is not None and box.state == "up":
            self.tally(*box.worker.abort(self.now_s, job), wasted=True)
            self.deliver(box)

    def tally(self, read_tokens: int, made_tokens: int, *, wasted: bool) -> None:
        self.toll.worked_tokens += read_tokens + made_tokens
        self.toll.wasted_tokens += wasted * (read_tokens + made_tokens)

    def _ends(self, flight: Flight) -> None:
        if flight.ended:
            return
        if flight.heir is not None and not flight.heir.ended:
            flight.is_done = True  # it is not listened to meanwhile
            return
        self._first(flight)
        flight.ended = True
        self.policies[flight.replica].ended(flight, self.now_s, None)
        read_tokens = flight.call.prompt_tokens - flight.cached_tokens
        self.tally(read_tokens, 0, wasted=flight.story.resumed)
        self.tally(0, flight.call.output_tokens, wasted=False)
        self._finish(flight, whole=True)

    def fails(self, flight: Flight, failure: str) -> None:
        if flight.ended:
            return
        flight.ended = True
        policy, story, rival = self.policies[flight.replica], flight.story, flight.rival
        policy.ended(flight, self.now_s, failure)
        if flight.first_s is None and flight.origin is not None and not flight.origin.ended:
            self.tally(flight.read_tokens, 0, wasted=True)
            flight.origin.heir = None  # it goes on where it was
            if flight.origin.is_done:
                self._ends(flight.origin)
            return
        if flight.heir is not None and not flight.heir.ended:
            self.tally(flight.read_tokens, flight.made_tokens, wasted=False)
            story.resumed = True
            return  # the other one has it
        call, tried = flight.call, tuple({*flight.tried, flight.endpoint, *(rival.tried if rival else ())})
        if flight.first_s is None:
            self.tally(flight.read_tokens, flight.made_tokens, wasted=True)
            if rival is None or rival.ended:
                self.dispatch(story, call, flight.replica, tried)
        elif isinstance(policy, Hides) and policy.resumes:
            self.tally(flight.read_tokens, 0, wasted=story.resumed)
            made = min(flight.made_tokens, call.output_tokens - 1)  # its end at the least has not come
            self.tally(0, made, wasted=False)
            self.toll.resumes += 1
            story.resumed = True
            self.dispatch(story, call.rest(made), flight.replica, (flight.endpoint,))
        elif story.call.whole:  # nothing has been shown
            self.tally(flight.read_tokens, flight.made_tokens, wasted=True)
            self.dispatch(story, story.call, flight.replica, tried)
        else:
            self.tally(flight.read_tokens, flight.made_tokens, wasted=True)
            self._finish(flight, whole=False)

    def _finish(self, flight: Flight, *, whole: bool) -> None:
        self._done(done_of(self.scene, flight, self.now_s, whole=whole))

    def _done(self, done: Done) -> None:
        self._inflight -= 1
        self._result.done.append(done)

    # The workers' side.

    def _submitted(self, flight: Flight, box: Box) -> None:
        if box.state == "refuses":
            self.at(self.now_s + box.node.rtt_s / 2, self.fails, flight, "connect")
            return
        if flight.ended:
            return
        call = flight.call
        job = flight.job = Job(call.prompt_tokens, call.output_tokens, call.pages, call.answer)
        box.flights[job] = flight
        if box.state == "up":
            box.worker.submit(self.now_s, job)
            self.deliver(box)

    def _wakes(self, box: Box, wake: int) -> None:
        if wake == box.wake:
            box.worker.advance(self.now_s)
            self.deliver(box)

    def deliver(self, box: Box) -> None:
        """Send out what the worker has made, and come back when it makes the next."""
        half_s = box.node.rtt_s / 2
        for event in box.worker.events():
            if event.job not in box.flights:
                continue  # its client has left
            if not event.last:
                flight = box.flights[event.job]
                flight.cached_tokens = event.job.cached_tokens
                self.at(event.at_s + half_s, self._first, flight)
            else:
                self.at(event.at_s + half_s, self._ends, box.flights.pop(event.job))
        box.wake += 1
        next_s = box.worker.next_s()
        if next_s < float("inf"):
            self.at(next_s, self._wakes, box, box.wake)

    def _befalls(self, mishap: Mishap) -> None:
        box, index, now_s = self.boxes[mishap.index], mishap.index, self.now_s
        if box.state == "up":
            box.worker.advance(now_s)
            self.deliver(box)
        match mishap.kind:
            case "notice":
                self._leaves(index)
            case "reset":
                self._cuts(box, "refuses")
                self.at(now_s + box.node.rtt_s / 2, self._leaves, index)
            case "silence":
                lost = box.fail("silent")
                self.at(now_s + self.scene.churn.silence_s, self._noticed, box, index, lost)
            case "blip":
                self._cuts(box, "up")
                box.restart(now_s)
            case "back":
                box.restart(now_s)
                self._open[index] = True
                for policy in self.policies:
                    policy.back(index, now_s)
            case _:
                slowness = self.scene.churn.slowness if mishap.kind == "slow" else 1.0
                if box.state == "up":
                    box.worker.slow_down(now_s, slowness)
                    self.deliver(box)

    def _cuts(self, box: Box, state: str) -> None:
        """All its connections are reset."""
        for flight in box.fail(state):
            self.at(self.now_s + box.node.rtt_s / 2, self.fails, flight, "reset")

    def _noticed(self, box: Box, index: int, lost: list[Flight]) -> None:
        """A silent worker's checks have failed: everybody who waits on it is told."""
        self._leaves(index)
        for flight in [*lost, *box.fail("refuses")]:
            self.fails(flight, "silence")

    def _leaves(self, index: int) -> None:
        if self._open[index]:
            self._open[index] = False
            for policy in self.policies:
                policy.gone(index, self.now_s)

    # What is looked at from outside.

    def _scrape(self, now_s: float) -> Sequence[Scraped]:
        """The metrics of the scrape before last: what a gateway works with is under way for a while, too."""
        if now_s - self._scraped_s >= self.scene.scrape_s:
            self._scraped_s = now_s
            last = [self._look_at(box) for box in self.boxes]
            self._scraped = (self._scraped[1] or last, last)
        return self._scraped[0]

    def _look_at(self, box: Box) -> Scraped:
        worker = box.worker
        if box.state == "up":
            worker.advance(self.now_s)
            self.deliver(box)
        return Scraped(len(worker.waiting), worker.running, worker.cache.usage)

    def _sample(self) -> None:
        waiting = sum(len(box.worker.waiting) for box in self.boxes if box.state == "up")
        self._result.samples.append(Sample(self.now_s, self._inflight, waiting))
        if self.now_s < self.scene.calls[-1].at_s:
            self.at(self.now_s + SAMPLE_S, self._sample)

    def _give_up(self) -> None:
        """Whoever is still waiting has met with nothing."""
        left = [flight for box in self.boxes for flight in box.fail("refuses")]
        for flight in {
            id(flight.story): flight for flight in left
        }.values():  # one of two that race, or take over
            self._finish(flight, whole=False)


def simulate(
    scene: Scene, make: Callable[[Place], Policy], progress: Callable[[int], None] | None = None
) -> Result:
    return Run(scene, make, progress).run()
