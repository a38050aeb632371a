"""Who has registered a node, drained it, given notice for it or taken it out: an entry of the audit log for each.

Unlike other changes these are in force before they are written down, and though the database should be away: a node that is
about to vanish cannot wait for it. What could not be written is in the gateway's log.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from gateway.audit import note
from gateway.database import StoreAway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.audit import Actor
    from gateway.nodes import Nodes
    from gateway.store import Store

log = logging.getLogger(__name__)


class NodeState(Struct, frozen=True):
    """What administrators change of a node."""

    registered: dict[str, Any] | None
    """As what, without its key; None where it has not."""
    leaving: str | None
    """`drained` or `preempted`, where it is going to leave."""
    leaves: str | None
    """By when."""


class NodeAudit:
    def __init__(self, store: Store, nodes: Nodes) -> None:
        self._store = store
        self._nodes = nodes

    @asynccontextmanager
    async def noted(self, actor: Actor, action: str, name: str) -> AsyncIterator[None]:
        """What the block changes of a node, `actor` has done. Where it raises, or changes nothing, there is no entry."""
        before = self._state(name)
        yield
        after = self._state(name)
        if after == before:
            return
        try:
            await asyncio.to_thread(self._write, actor, action, name, before, after)
        except StoreAway as failure:
            shown = msgspec.json.encode([before, after]).decode()
            log.warning("not in the audit log (%s): %s of %s by %s: %s", failure, action, name, actor, shown)

    def _state(self, name: str) -> NodeState:
        node, leaving = self._nodes.find(name), self._nodes.leaving(name)
        section = None
        if node is not None:
            section = node.section.model_dump(mode="json", exclude_none=True, exclude={"api_key"})
        if leaving is None:
            return NodeState(section, None, None)
        moment = datetime.fromtimestamp(leaving.leaves_ms / 1000, UTC).isoformat(timespec="milliseconds")
        return NodeState(section, leaving.ending, moment.replace("+00:00", "Z"))

    def _write(self, actor: Actor, action: str, name: str, before: NodeState, after: NodeState) -> None:
        with self._store.writing() as connection:
            note(connection, actor, action, f"node:{name}", before=before, after=after)
