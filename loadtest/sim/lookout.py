"""The gateway's lookout in a simulation: at every tick it sees how calls under way go, and has elsewhere what goes too slowly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.lookout import TICK_S
from loadtest.sim.policy import Flight, Hides

if TYPE_CHECKING:
    from loadtest.sim.run import Run


class Lookout:
    def __init__(self, run: Run, end_s: float) -> None:
        self._run = run
        self._end_s = end_s
        # Asked once: it takes as long as a look.
        self._hiding = [policy if isinstance(policy, Hides) else None for policy in run.policies]

    @property
    def is_wanted(self) -> bool:
        """Whether any policy goes on with streams: as in the gateway, those tell how they go."""
        return any(policy is not None and policy.resumes for policy in self._hiding)

    def begin(self) -> None:
        self._run.at(self._run.now_s + TICK_S, self._look)

    def _look(self) -> None:
        run = self._run
        if run.now_s < self._end_s:
            self.begin()
        for box in run.boxes:
            if box.state == "up":
                box.worker.advance(run.now_s)
                run.deliver(box)
                for job, made_tokens in box.worker.running_jobs():
                    flight = box.flights.get(job)
                    if (
                        flight is not None
                        and flight.first_s is not None
                        and not (flight.ended or flight.heir)
                    ):
                        self._look_at_stream(flight, made_tokens)
        run.wholes = [flight for flight in run.wholes if not flight.ended]
        for flight in list(run.wholes):
            self._look_at_whole(flight)

    def _look_at_stream(self, flight: Flight, made_tokens: int) -> None:
        run, call = self._run, flight.call
        policy = self._hiding[flight.replica]
        if policy is None or not policy.resumes or made_tokens >= call.output_tokens:
            return
        if not policy.slow(flight, made_tokens, run.now_s) or not policy.moves:
            return
        rest = call.rest(made_tokens)
        open_to = run.open_to(rest, (flight.endpoint,))
        endpoint = policy.heir(flight, rest, open_to, run.now_s, run.dice.random())
        if endpoint is not None:
            # It stays where it is until the other one has answered; what it makes until then is in vain.
            flight.made_tokens = made_tokens
            heir = Flight(rest, endpoint, flight.replica, run.now_s, flight.story, (flight.endpoint,))
            flight.heir, heir.origin = heir, flight
            run.send(heir)

    def _look_at_whole(self, flight: Flight) -> None:
        """A reply in one piece that takes far longer than it should is had elsewhere, once."""
        run, story, job = self._run, flight.story, flight.job
        policy, tried = self._hiding[flight.replica], (*flight.tried, flight.endpoint)
        if policy is None or not policy.moves or story.hurried or job is None:
            return
        box = run.boxes[flight.endpoint]
        if not policy.overdue(flight, run.open_to(flight.call, tried), run.now_s):
            return
        story.hurried = True
        run.toll.anew += 1
        if box.state == "up":
            box.worker.advance(run.now_s)
            flight.read_tokens, flight.made_tokens = box.worker.progress(job)
        run.at(run.now_s + box.node.rtt_s / 2, run.cancelled, flight, box)
        run.fails(flight, "silence")
