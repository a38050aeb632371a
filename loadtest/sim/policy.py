"""What a policy of routing sees and does in a simulation: what a real gateway does, no more.

It sees its own dispatches and the replies to them, who is in service, and, where it uses them, metrics that somebody
scraped a while ago.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from msgspec import Struct

from gateway.config import QueueSection
from gateway.resuming import WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.fleet import Hosted, Node
    from loadtest.sim.worker import Job


MOST_WAIT_S = QueueSection().max_wait_s
"""For so long calls wait at most, by default, and answers that go on for WAIT_S."""


class Scraped(Struct, frozen=True):
    """A worker's own metrics at one moment."""

    waiting: int
    running: int
    kv_usage: float


class Place(Struct, frozen=True):
    """What a policy is told of where it runs."""

    nodes: tuple[Node, ...]
    """Workers; the endpoints with lower numbers."""
    hosted: tuple[Hosted, ...]
    """Endpoints numbered from `len(nodes)` on; only policies that know of prices get any."""
    page_tokens: int
    scrape: Callable[[float], Sequence[Scraped]]
    """All workers' metrics, given the time now: as old as the interval of scraping makes them."""


class Story(Struct, eq=False):
    """A call as its client sees it, whatever attempts it takes."""

    call: SimCall
    first_s: float | None = None
    resumed: bool = False
    hurried: bool = False
    """Whether it has been had elsewhere since it took too long."""
    waits_since_s: float | None = None
    """Since when there has been nobody for it."""

    def waits_until_s(self, now_s: float) -> float:
        """Until when it waits for somebody, as in the gateway."""
        if self.waits_since_s is None:
            self.waits_since_s = now_s
        return self.waits_since_s + (MOST_WAIT_S if self.first_s is None else WAIT_S)


class Flight(Struct, eq=False):
    """One attempt on one endpoint, from dispatch to its end. Policies may keep a note on it."""

    call: SimCall
    endpoint: int
    replica: int
    sent_s: float
    story: Story
    tried: tuple[int, ...] = ()
    first_s: float | None = None
    cached_tokens: int = 0
    ended: bool = False
    note: object = None
    rival: Flight | None = None
    """The other one, where two of a call race for the first token."""
    job: Job | None = None
    """What the worker has of it, once it is there."""
    read_tokens: int = 0
    made_tokens: int = 0
    """Of its prompt and its answer, when its worker went down, or somebody was asked to go on with it."""
    watched: bool = True
    """Whether the worker was asked for a stream, so that its first token is seen."""
    heir: Flight | None = None
    """Who is to go on with it, since it runs slowly; and of that one, the first."""
    origin: Flight | None = None
    is_done: bool = False
    """It has come to its end while somebody else was asked to go on with it."""


class Policy(Protocol):
    """One gateway's routing."""

    def choose(self, call: SimCall, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        """One of `open_to`: endpoints in service that can hold the call and have not been tried. None: nobody."""

    def sent(self, flight: Flight, now_s: float) -> None:
        """It has been sent."""

    def first_token(self, flight: Flight, now_s: float) -> None:
        """Its first token has come."""

    def ended(self, flight: Flight, now_s: float, failure: str | None) -> None:
        """It has ended: whole, or by `failure` ("connect", "reset", "silence", "outrun" by its rival, or "moved")."""

    def gone(self, endpoint: int, now_s: float) -> None:
        """It has said that it will leave, or was seen to be gone."""

    def back(self, endpoint: int, now_s: float) -> None:
        """It is in service again, with nothing in its cache."""


@runtime_checkable
class Hides(Protocol):
    """A policy that hides churn from its clients: it may race a second attempt, and go on with what broke off."""

    resumes: bool
    moves: bool
    """Whether streams that run slowly go on elsewhere."""

    def late_s(self, flight: Flight) -> float | None:
        """Of the first attempt of a call: after how long it is late, if that matters."""

    def second(self, flight: Flight, open_to: Sequence[int], now_s: float, roll: float) -> int | None:
        """One of `open_to` to race a flight that is late. None: nobody, for now."""

    def slow(self, flight: Flight, made_tokens: int, now_s: float) -> bool:
        """A stream has come to so many tokens: whether it runs far below its speed."""

    def overdue(self, flight: Flight, open_to: Sequence[int], now_s: float) -> bool:
        """Of a reply in one piece: whether it takes far longer than it should, and one of `open_to` could do it."""

    def back_in_s(self, open_to: Sequence[int], now_s: float) -> float | None:
        """Where `choose` found nobody: in how many seconds one of `open_to` may be back, if that is worth waiting for."""

    def heir(
        self, flight: Flight, rest: SimCall, open_to: Sequence[int], now_s: float, roll: float
    ) -> int | None:
        """One of `open_to` to go on with one that does. None: it stays."""
