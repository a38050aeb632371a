"""A simulated worker as the network sees it: up, refusing connections, or silent, and what is under way there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.sim.worker import Worker

if TYPE_CHECKING:
    from loadtest.sim.fleet import Node
    from loadtest.sim.policy import Flight
    from loadtest.sim.worker import Job


class Box:
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
        for job, flight in self.flights.items():
            flight.read_tokens, flight.made_tokens = self.worker.progress(job)
        self.state = state
        self.wake += 1
        lost = [flight for flight in self.flights.values() if not flight.ended]
        self.flights.clear()
        return lost

    def restart(self, now_s: float) -> None:
        self.state = "up"
        self.worker = Worker(self.node.spec, self._page_tokens)
        self.worker.advance(now_s)
