"""The audit log: who has changed what, when and from where, with what it was before and after.

An entry is written in the transaction of its change, so that there is neither without the other. What may be read of a
record is in it, and its secrets are in none. The database itself refuses to change or delete an entry.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from msgspec import Struct, to_builtins
from sqlalchemy import select

from gateway.tables import AUDIT

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from gateway.store import Store


class Actor(Struct, frozen=True):
    """Who makes a change."""

    name: str
    """`master`, the id of an administrator's key, or who ran a command."""
    source: str = ""
    """The network address that it came from, or the machine where the command ran."""


SYSTEM = Actor("tidegate")
"""What nobody asked for."""


class Entry(Struct, frozen=True):
    id: int
    time_ms: int
    actor: str
    source: str
    action: str
    """Such as `key.rotate`."""
    subject: str
    """Such as `key:key_0123`; a project is `project:TENANT/NAME`."""
    tenant: str | None
    before: dict[str, Any] | None
    """What has changed, as it was; of what is new, nothing."""
    after: dict[str, Any] | None


def note(
    connection: Connection, actor: Actor, action: str, subject: str, **change: Struct | str | None
) -> None:
    """Write an entry in the transaction of its change. `change` is `tenant`, and the record `before` and `after`."""
    before, after = _fields(change.get("before")), _fields(change.get("after"))
    if before is not None and after is not None:
        differing = [name for name in before if before[name] != after[name]]
        before = {name: before[name] for name in differing}
        after = {name: after[name] for name in differing}
    row = {
        "time_ms": time.time_ns() // 1_000_000,
        "actor": actor.name,
        "source": actor.source,
        "action": action,
        "subject": subject,
        "tenant": change.get("tenant"),
        "before": None if before is None else json.dumps(before, ensure_ascii=False),
        "after": None if after is None else json.dumps(after, ensure_ascii=False),
    }
    connection.execute(AUDIT.insert(), row)


def _fields(record: Struct | str | None) -> dict[str, Any] | None:
    fields: dict[str, Any] | None = to_builtins(record, order="deterministic") if record is not None else None
    return fields


def entries(
    store: Store, *, most: int, before_id: int | None = None, tenant: str | None, subject: str | None
) -> list[Entry]:
    """The newest first, from before `before_id` on; only those of a tenant or a subject where that is said. Blocks."""
    query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(most)
    if before_id is not None:
        query = query.where(AUDIT.c.id < before_id)
    if tenant is not None:
        query = query.where(AUDIT.c.tenant == tenant)
    if subject is not None:
        query = query.where(AUDIT.c.subject == subject)
    with store.reading() as connection:
        return [_entry(dict(row._mapping)) for row in connection.execute(query)]  # noqa: SLF001  SQLAlchemy's public name for it


def _entry(row: dict[str, Any]) -> Entry:
    for side in ("before", "after"):
        row[side] = None if row[side] is None else json.loads(row[side])
    return Entry(**row)
