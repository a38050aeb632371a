"""When a call itself is to blame that workers go down under it, and is not tried any more.

Some request that nobody has thought of (a grammar, a picture, a parameter) makes an engine crash. Failover would carry it
from worker to worker until none is left. So each crash under a call is kept with how far its answer had come: two workers
that go down at the same point of it are no coincidence, and it is stopped after them.

Unless they are. Where workers come and go anyway, a call may well lose two of them. What tells the two apart is

- whether the answer had got any further in between: then the second went down at another point of it;
- whether workers go down under which the call has not been: then it takes a third. Where half a fleet goes at once, a call is
  carried from one that dies to the next; so it is judged a moment later, when what goes with them has been seen to go.

A call that has been stopped is known again for a while, should its client repeat it. Clock and names are arguments.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

ENOUGH = 2
"""Workers that crashed at the same point of an answer."""

ENOUGH_IN_CHURN = 3
"""The same where other workers have crashed lately as well."""

CHURN_S = 60.0
"""How lately."""

SETTLES_S = 1.0
"""After the last crash, until it is known what else has gone with it."""

SAME_POINT_TOKENS = 16
"""An engine does not die at the very token: it batches, and what it has written last is lost with it."""

KNOWN_S = 120.0
"""For so long a call that was stopped is known again: clients that repeat at all do so sooner, and if nobody was wrong it
was not for long."""

MOST_KEPT = 1000
"""Calls with a crash, crashes, and calls known again."""


class Poison:
    """What is known of crashes, of all calls together."""

    __slots__ = ("_crashes", "_known", "_trails")

    def __init__(self) -> None:
        self._trails: dict[str, list[tuple[Hashable, int]]] = {}
        """By call, the oldest first: who crashed, and after how many tokens of the answer."""
        self._crashes: deque[tuple[float, Hashable]] = deque(maxlen=MOST_KEPT)
        self._known: dict[bytes, float] = {}
        """Until when each is known again."""

    def crashed(self, call_id: str, worker: Hashable, tokens: int, now_s: float) -> None:
        """`worker` has gone down under the call, whose answer had come to so many tokens."""
        self._trails.setdefault(call_id, []).append((worker, tokens))
        self._crashes.append((now_s, worker))
        if len(self._trails) > MOST_KEPT:
            del self._trails[next(iter(self._trails))]

    def suspects(self, call_id: str) -> bool:
        """Whether the call is to be judged, in SETTLES_S."""
        return len(self._victims(call_id)) >= ENOUGH

    def guilty(self, call_id: str, now_s: float) -> frozenset[Hashable]:
        """The workers that the call has brought down, and is to be stopped for; empty where it may be chance."""
        victims = self._victims(call_id)
        under_it = {worker for worker, _ in self._trails.get(call_id, ())}
        churn = any(at_s > now_s - CHURN_S and worker not in under_it for at_s, worker in self._crashes)
        if len(victims) < (ENOUGH_IN_CHURN if churn else ENOUGH):
            return frozenset()
        # These were no churn, which would hide the next such call.
        kept = [crash for crash in self._crashes if crash[1] not in victims]
        self._crashes = deque(kept, maxlen=MOST_KEPT)
        return victims

    def _victims(self, call_id: str) -> frozenset[Hashable]:
        """Those that crashed where the last one did."""
        trail = self._trails.get(call_id, [])
        return frozenset(each for each, at in trail if abs(at - trail[-1][1]) <= SAME_POINT_TOKENS)

    @property
    def any_known(self) -> bool:
        """Whether it is worth asking at all."""
        return bool(self._known)

    def remember(self, fingerprint: bytes, now_s: float) -> None:
        """A call with this fingerprint has been stopped."""
        self._known.pop(fingerprint, None)
        self._known[fingerprint] = now_s + KNOWN_S
        if len(self._known) > MOST_KEPT:
            del self._known[next(iter(self._known))]

    def knows(self, fingerprint: bytes, now_s: float) -> bool:
        """Whether such a call was stopped a moment ago."""
        while self._known and next(iter(self._known.values())) <= now_s:
            del self._known[next(iter(self._known))]
        return fingerprint in self._known

    def acquit(self, fingerprint: bytes) -> None:
        """Such a call has been answered."""
        self._known.pop(fingerprint, None)
