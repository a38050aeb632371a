"""When an endpoint's load is to be looked at again though nothing has happened there.

With time alone prompts get on, or late, pauses end, and what was learned fades. The first two are a matter of milliseconds,
the last of half a minute: of a thousand endpoints most are calm at any moment, and to look at all of them for every call
would cost ten times what the call does.
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from routing.pool import Standing
    from routing.types import Load

LOAD_HOLDS_S = 0.005
"""For so long the passing of time alone changes no decision."""

CALM_HOLDS_S = 0.2
"""The same where nothing but what was learned changes by itself."""

AT_ONCE = 64
"""So few are all looked at each time. Where more than so many are not calm, each is looked at less often: it is not to cost more
than a twentieth of the time.
"""

SOON_S = 2.0
"""Who may get calls again so soon is not calm."""


class Looks:
    """Which of a pool's endpoints to look at, as time passes."""

    def __init__(self) -> None:
        self._members = 0
        self._round: Iterator[Standing] = iter(())
        """All of them over and over: each is looked at in its turn."""
        self._restless: set[Standing] = set()
        self._looked_s = float("-inf")
        self._due = 0.0
        """Of the round; what is less than one is kept."""

    def among(self, members: Iterable[Standing]) -> None:
        """Those there are from now on."""
        known = tuple(members)
        self._members, self._round = len(known), cycle(known)
        self._restless.intersection_update(known)

    def saw(self, standing: Standing, load: Load) -> None:
        """Its load now."""
        wait_s = load.retry_after_s if load.resort_s is None else load.resort_s
        soon = wait_s is not None and wait_s < SOON_S
        if soon or standing.ramping or standing.speed.reading:
            self._restless.add(standing)
        else:
            self._restless.discard(standing)

    def due(self, now_s: float) -> Iterable[Standing]:
        """Those to be looked at now. So nobody's load is older than it may be."""
        passed_s = now_s - self._looked_s
        if passed_s < LOAD_HOLDS_S * max(1.0, len(self._restless) / AT_ONCE):
            return ()
        self._looked_s = now_s
        if self._members <= AT_ONCE:
            return islice(self._round, self._members)
        self._due = min(self._members, self._due + self._members * passed_s / CALM_HOLDS_S)
        turns = islice(self._round, int(self._due))
        self._due %= 1.0
        return (*self._restless, *turns)
