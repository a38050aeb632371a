"""What the database keeps of nodes: those registered now, which of all leave and when, and when each has been there.

Heartbeats are written only where processes share the registry, in batches; by them each knows what the others have heard. After a restart of the gateway, a node that was registered has one lease's time to be heard of
again: it could not be heard meanwhile, and where it is gone its probe says so at once. A node with a key of its own is not
written down, as no key is; it registers again when its heartbeat is answered with 404. All of this blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct, structs
from sqlalchemy import bindparam, delete, select, update

from gateway.tables import NODE_DEPARTURES, NODE_SESSIONS, NODES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from gateway.store import Store


class SavedNode(Struct, frozen=True):
    name: str
    section: str
    """As JSON."""
    registered_ms: int
    """By this one stay is told from another."""
    heard_ms: int = 0


class SavedDeparture(Struct, frozen=True):
    """That a node leaves, be it one that has registered or another."""

    name: str
    leaves_ms: int
    draining: bool
    """Whether it gets nothing new until then."""
    own: bool
    """Whether it has said so itself. An operator's word holds until it is taken back."""


class Session(Struct, frozen=True):
    """One stay of a node."""

    started_ms: int
    ended_ms: int | None
    ending: str | None
    """left, drained, preempted, lease_lost, or gateway_stopped."""


class NodeStore:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.may_be_shared = store.kind == "postgresql"
        """Whether gateways on other machines may have the same database."""

    def restore(self, now_ms: int) -> list[SavedNode]:
        """Those registered when the gateway was last up. Stays that nobody can go on with end."""
        with self._store.writing() as connection:
            saved = [SavedNode(*row) for row in connection.execute(select(NODES).order_by(NODES.c.name))]
            known = select(NODES.c.name)
            stale = NODE_SESSIONS.c.ended_ms.is_(None) & NODE_SESSIONS.c.name.not_in(known)
            ended = update(NODE_SESSIONS).where(stale).values(ended_ms=now_ms, ending="gateway_stopped")
            connection.execute(ended)
            return saved

    def nodes(self) -> list[SavedNode]:
        """Those registered now."""
        with self._store.reading() as connection:
            return [SavedNode(*row) for row in connection.execute(select(NODES))]

    def heard(self, heard_ms: Mapping[str, int]) -> None:
        """When these have been heard of."""
        later = (NODES.c.name == bindparam("node")) & (NODES.c.heard_ms < bindparam("ms"))
        rows = [{"node": name, "ms": ms} for name, ms in sorted(heard_ms.items())]
        with self._store.writing() as connection:
            connection.execute(update(NODES).where(later).values(heard_ms=bindparam("ms")), rows)

    def departures(self) -> list[SavedDeparture]:
        with self._store.reading() as connection:
            return [SavedDeparture(*row) for row in connection.execute(select(NODE_DEPARTURES))]

    def leaves(self, departure: SavedDeparture) -> None:
        """It is going to leave."""
        with self._store.writing() as connection:
            _stays(connection, departure.name)
            connection.execute(NODE_DEPARTURES.insert(), structs.asdict(departure))

    def stays(self, name: str) -> None:
        """It is not going to leave after all."""
        with self._store.writing() as connection:
            _stays(connection, name)

    def joined(self, name: str, section: str | None, registered_ms: int, heard_ms: int, *, new: bool) -> None:
        """It has registered with this to be written down, or nothing; `new` where its stay begins."""
        with self._store.writing() as connection:
            connection.execute(delete(NODES).where(NODES.c.name == name))
            if section is not None:
                connection.execute(
                    NODES.insert(), structs.asdict(SavedNode(name, section, registered_ms, heard_ms))
                )
            if new:
                connection.execute(NODE_SESSIONS.insert(), {"name": name, "started_ms": registered_ms})

    def left(
        self, name: str, ending: str, now_ms: int, registered_ms: int, heard_ms: int, *, forget: bool
    ) -> None:
        """Its stay that began then has ended, unless somebody else has heard of it since.

        `forget`: it leaves no more, and gets calls should it register again.
        """
        open_ones = (NODE_SESSIONS.c.name == name) & NODE_SESSIONS.c.ended_ms.is_(None)
        same = (NODES.c.name == name) & (NODES.c.registered_ms == registered_ms)
        with self._store.writing() as connection:
            connection.execute(delete(NODES).where(same & (NODES.c.heard_ms <= heard_ms)))
            if connection.execute(select(NODES.c.name).where(NODES.c.name == name)).first() is not None:
                return
            if forget:
                _stays(connection, name)
            connection.execute(update(NODE_SESSIONS).where(open_ones).values(ended_ms=now_ms, ending=ending))

    def sessions(self, since_ms: int, name: str | None = None) -> dict[str, list[Session]]:
        """The stays that ended since then or have not ended, oldest first, by name."""
        query = select(NODE_SESSIONS).order_by(NODE_SESSIONS.c.started_ms)
        query = query.where(NODE_SESSIONS.c.ended_ms.is_(None) | (NODE_SESSIONS.c.ended_ms >= since_ms))
        if name is not None:
            query = query.where(NODE_SESSIONS.c.name == name)
        found: dict[str, list[Session]] = {}
        with self._store.reading() as connection:
            for row in connection.execute(query):
                found.setdefault(row.name, []).append(Session(row.started_ms, row.ended_ms, row.ending))
        return found


def _stays(connection: Connection, name: str) -> None:
    connection.execute(delete(NODE_DEPARTURES).where(NODE_DEPARTURES.c.name == name))
