"""Whether a store of limits that has begun anew may be asked for more of budgets: it cannot know what the dead had.

The living say what they have while it gives nothing. A process that has died before it could say so has left its journal:
as long as that is in our folder, whoever is reading it, the ledger lacks what was spent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.limit_store import LimitStore

log = logging.getLogger(__name__)

AGAIN_MS = 100
_LONGEST_S = 60.0
"""What is stuck in the folder, or is of a gateway with another store, is not to keep budgets closed."""


class Doubt:
    def __init__(self, store: LimitStore, process: str, owners: Callable[[], Collection[str]]) -> None:
        """`owners`: processes of which there is something in the journal's folder, living or not. It blocks."""
        self._store = store
        self._process = process
        self._owners = owners
        self._end_s: float | None = None

    @property
    def stands(self) -> bool:
        return self._end_s is not None

    def begin(self) -> None:
        """The store has begun anew, or is new to us."""
        if self._store.shared:
            self._end_s = time.monotonic() + _LONGEST_S

    async def settled(self) -> bool:
        """Whether there was one, and is none any more. Raises LimitStoreAway."""
        if self._end_s is None:
            return False
        settling_ms, known = await self._store.heard()
        owners = await asyncio.to_thread(self._owners)
        strangers = set(owners) - known - {self._process}
        if settling_ms or (strangers and time.monotonic() < self._end_s):
            return False
        if strangers:
            names = ", ".join(sorted(strangers))
            log.error(
                "limits go on without the journals of %s, which nobody has read: budgets may lack them", names
            )
        self._end_s = None
        return True
