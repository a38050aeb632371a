"""What gateways tell each other of the endpoints that they share, so that several route nearly as well as one.

Each says of an endpoint what it has there itself: calls, prompts still to be read, what it sends of late, what it has learned of
its speed, and that it has failed; and which prompts it has sent there. All of that but the prompts is how things stand, not what has happened: the
last word counts, one that is lost is made good by the next, and one that comes twice or late changes nothing. What has
not been said again for a while is forgotten, as of a gateway that is gone. A prompt that is not told of costs a hit in a cache.

No I/O and no clock: who carries batches, and when, is the caller's business.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from routing.ejection import FailureKind  # noqa: TC001 - msgspec reads annotations at run time
from routing.types import Turn  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from routing.pool import Pool, Standing
    from routing.types import Endpoint

AGAIN_S = 1.0
"""What goes on is said again so often, even where nothing has changed."""
FORGOTTEN_S = 3.0
"""What has not been said again for so long does not hold any more."""
MOST_SAID = 1000
MOST_PIECES = 4096
"""Of one batch. Endpoints that find no place in it are in the next; prompts that do not are never told of."""
MOST_PLACED = 1000
"""Prompts that wait for a batch: the latest."""
MOST_PEERS = 1024
OF_ITS_OWN = 0.5
"""A gateway that calls more than this share of the endpoints it speaks of failed has trouble of its own, and is not believed."""


class Standings(Struct, array_like=True, frozen=True, gc=False):
    """How one gateway stands with one endpoint."""

    endpoint: int
    """See `name_of`."""
    inflight: int = 0
    waiting: int = 0
    """Of them, those whose first token has not come."""
    decoding: int = 0
    pending_work: float = 0.0
    """Token-equivalents of prefill that are still to be done for them."""
    done_work: float = 0.0
    """The same that has been done for it since it began: this never falls."""
    sent_work_per_s: float = 0.0
    sent_per_s: float = 0.0
    rate_work: float = 0.0
    rate_s: float = 0.0
    """What the rate of prefill was learned from: work and seconds."""
    slower_s: float = 0.0
    guessed_s: float = 0.0
    """What the pace was learned from: how long streams took, and how long they were expected to."""
    out_s: float = 0.0
    """For how long it is left alone, having failed so."""
    failure: FailureKind | None = None

    @property
    def idle(self) -> bool:
        return not (self.inflight or self.out_s or self.rate_s > 0.1 or self.sent_per_s > 0.01)


class Placed(Struct, array_like=True, frozen=True, gc=False):
    """A prompt that was sent to an endpoint."""

    endpoint: int
    pieces: tuple[int, ...]
    turn: Turn | None
    output_tokens: float


class Batch(Struct, array_like=True, frozen=True):
    """What one gateway says at once."""

    who: str
    """A name that no other has, nor has had."""
    number: int
    """Its batches are counted."""
    standings: list[Standings]
    placed: list[Placed]


class _Heard(Struct, gc=False):
    said: Standings
    at_s: float


class News:
    """What other gateways may want to know of a pool."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether anybody looks at it."""
        self.members = 0
        """How often one has joined or left."""
        self.changed: set[Standing] = set()
        self.placed: deque[tuple[Standing, tuple[int, ...], Turn | None, float]] = deque(maxlen=MOST_PLACED)


def name_of(endpoint: Endpoint) -> int:
    """The same for all gateways that mean the same endpoint, whatever else they call by its name."""
    return xxh3_64_intdigest(f"{endpoint.model}\0{endpoint.name}\0{endpoint.url}".encode())


class Gossip:
    """What one gateway says, and what it has heard, of all its pools."""

    def __init__(self, who: str, pools: Callable[[], Iterable[Pool]]) -> None:
        self.who = who
        self.sent = self.heard = 0
        """Batches."""
        self._pools = pools
        self._number = 0
        self._numbers: OrderedDict[str, int] = OrderedDict()
        """Of the last batch of each other gateway, the one heard of last at the end."""
        self._heard: dict[int, dict[str, _Heard]] = {}
        """By endpoint, then by gateway."""
        self._said_s: dict[Standing, float] = {}
        """When those were last spoken of that are not idle."""
        self._named: dict[int, Standing] = {}
        self._name: dict[Standing, int] = {}
        self._members = -1

    def batch(self, now_s: float) -> Batch | None:
        """What is new, or to be said again; None where there is nothing."""
        self._name_all()
        for standing, said_s in list(self._said_s.items()):
            if now_s - said_s >= AGAIN_S and standing in self._name:
                standing.unsaid()
        standings: list[Standings] = []
        placed: list[Placed] = []
        pieces = 0
        for pool in self._pools():
            if not pool.news.wanted:
                pool.news.wanted = True
                pool.news.changed.update(pool)
            while pool.news.changed and len(standings) < MOST_SAID:
                standing = pool.news.changed.pop()
                if standing in self._name:
                    standings.append(self._say(standing, now_s))
            while pool.news.placed and pieces < MOST_PIECES:
                standing, names, turn, output_tokens = pool.news.placed.popleft()
                pieces += len(names)
                if standing in self._name:
                    placed.append(Placed(self._name[standing], names, turn, output_tokens))
            pool.news.placed.clear()
        if not standings and not placed:
            return None
        self._number += 1
        self.sent += 1
        return Batch(self.who, self._number, standings, placed)

    def _say(self, standing: Standing, now_s: float) -> Standings:
        said = standing.said(self._name[standing], now_s)
        if said.idle:
            self._said_s.pop(standing, None)
        else:
            self._said_s[standing] = now_s
        return said

    def take(self, batch: Batch, now_s: float) -> None:
        """Another gateway has said this."""
        if batch.who == self.who or batch.number <= self._numbers.get(batch.who, 0):
            return
        self.heard += 1
        self._numbers[batch.who] = batch.number
        self._numbers.move_to_end(batch.who)
        if len(self._numbers) > MOST_PEERS:
            self._numbers.popitem(last=False)
        self._name_all()
        for said in batch.standings:
            standing = self._named.get(said.endpoint)
            if standing is None:
                continue
            by = self._heard.setdefault(said.endpoint, {})
            before = by.get(batch.who)
            by[batch.who] = _Heard(said, now_s)
            done = 0.0 if before is None else max(0.0, said.done_work - before.said.done_work)
            self._tell(standing, by, done, now_s)
            if said.failure is not None and self._believed(batch.who):
                standing.warned(now_s, said.failure, said.out_s)
        for each in batch.placed:
            standing = self._named.get(each.endpoint)
            if standing is not None:
                standing.placed_elsewhere(each.pieces, each.turn, each.output_tokens)

    def _believed(self, who: str) -> bool:
        said = [by[who].said for by in self._heard.values() if who in by]
        failed = sum(each.failure is not None for each in said)
        return failed <= max(1, OF_ITS_OWN * len(said))

    def forget(self, now_s: float) -> None:
        """What has not been said again; to be called now and then."""
        for name, by in list(self._heard.items()):
            late = [who for who, heard in by.items() if now_s - heard.at_s >= FORGOTTEN_S]
            for who in late:
                del by[who]
            standing = self._named.get(name)
            if late and standing is not None:
                self._tell(standing, by, 0.0, now_s)
            if not by or standing is None:
                del self._heard[name]

    def _tell(self, standing: Standing, by: dict[str, _Heard], done_work: float, now_s: float) -> None:
        standing.heard_of([heard.said for heard in by.values()], done_work, now_s)

    def _name_all(self) -> None:
        """Endpoints come and go."""
        members = sum(pool.news.members for pool in self._pools())
        if members == self._members:
            return
        self._members = members
        there = {standing for pool in self._pools() for standing in pool}
        for standing in there - self._name.keys():
            name = self._name[standing] = name_of(standing.endpoint)
            self._named[name] = standing
        for standing in self._name.keys() - there:
            name = self._name.pop(standing)
            self._said_s.pop(standing, None)
            if self._named.get(name) is standing:
                del self._named[name]
