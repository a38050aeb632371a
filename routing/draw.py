"""Which endpoints to look at for a call, where there are very many.

Evenly over the range of prices with both ends always among them: endpoints of one price differ by chance; what must not be
lost to chance is the one cheap, the one hosted, and those that have the prompt in their cache. In simulation a dozen drawn
lost nothing against all.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nlargest
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from routing.types import Endpoint, Load

LOOK_AT = 64
"""Endpoints estimated for one call, where more could serve it."""

BEST_HOLDERS = 4
"""Of those that hold most of the prompt's prefix, so many are always looked at."""

_T = TypeVar("_T")


class Draw:
    """Those to draw from: the ones that get calls now, of the endpoints given."""

    def __init__(self, members: Sequence[tuple[Endpoint, Load]]) -> None:
        able = [place for place, (_, load) in enumerate(members) if load.unavailable is None]
        able.sort(key=lambda place: members[place][0].cost.input_pico_usd)
        self._by_price = able
        self._ranks = {members[place][0].name: rank for rank, place in enumerate(able)}

    def __len__(self) -> int:
        return len(self._by_price)

    def some(self, roll: float, cached_tokens: Mapping[str, int]) -> list[int]:
        """The places of those drawn, the cheapest first; `roll`, uniform in [0, 1), says which."""
        by_price = self._by_price
        last = len(by_price) - 1
        if last < LOOK_AT:
            return by_price
        step = len(by_price) / LOOK_AT
        # `min`, because a roll next to 1 rounds up.
        drawn = {0, last, *[min(last, int((rank + roll) * step)) for rank in range(LOOK_AT)]}
        for holder in nlargest(BEST_HOLDERS, cached_tokens, key=cached_tokens.__getitem__):
            if holder in self._ranks:
                drawn.add(self._ranks[holder])
        return [by_price[rank] for rank in sorted(drawn)]


class Later(Sequence[_T]):
    """What is said of those that nobody asks about as a rule, made when somebody does."""

    __slots__ = ("_count", "_made", "_make")

    def __init__(self, count: int, make: Callable[[], Sequence[_T]]) -> None:
        self._count = count
        self._make = make
        self._made: Sequence[_T] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> _T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[_T]: ...
    def __getitem__(self, place: int | slice) -> _T | Sequence[_T]:
        if self._made is None:
            self._made = self._make()
        return self._made[place]
