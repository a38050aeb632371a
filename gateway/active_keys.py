"""What admits calls, read from the database at once: keys with what they belong to. A keyring is made of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import Struct
from sqlalchemy import select

from gateway.subjects import KeyRecord, Project, Tenant, record_of
from gateway.tables import FORMER_SECRETS, KEYS, META, PROJECTS, TENANTS

if TYPE_CHECKING:
    from gateway.store import Store


class ActiveKey(Struct, frozen=True):
    """A secret that admits calls."""

    digest: bytes
    record: KeyRecord
    ends_ms: int | None
    """When it ends, be it the key or only this secret of it."""


class Active(Struct, frozen=True):
    """All that is needed to admit calls, as of one revision."""

    revision: int
    tenants: dict[str, Tenant]
    projects: dict[tuple[str, str], Project]
    keys: tuple[ActiveKey, ...]


def active_keys(store: Store, since_revision: int | None = None) -> Active | None:
    """What admits calls; None if nothing has changed since `since_revision`. Blocks."""
    now_ms = time.time_ns() // 1_000_000
    with store.reading() as connection:
        revision = connection.execute(select(META.c.keys_revision)).scalar_one()
        if revision == since_revision:
            return None
        # The revision was read first: a change between these reads is seen now and read again next time.
        tenants = [record_of(Tenant, row) for row in connection.execute(select(TENANTS))]
        projects = [record_of(Project, row) for row in connection.execute(select(PROJECTS))]
        rows = connection.execute(select(KEYS).where(KEYS.c.revoked_ms.is_(None))).all()
        former = connection.execute(select(FORMER_SECRETS).where(FORMER_SECRETS.c.ends_ms > now_ms)).all()
    records = {row.id: record_of(KeyRecord, row) for row in rows}
    keys = [ActiveKey(row.digest, records[row.id], row.expires_ms) for row in rows]
    for row in former:
        record = records.get(row.key_id)
        if record is not None:
            expires_ms = row.ends_ms if record.expires_ms is None else record.expires_ms
            keys.append(ActiveKey(row.digest, record, min(row.ends_ms, expires_ms)))
    return Active(
        revision,
        {tenant.name: tenant for tenant in tenants},
        {(project.tenant, project.name): project for project in projects},
        tuple(keys),
    )
