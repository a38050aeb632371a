"""The keys of administrators: apart from those that calls are made with, so that neither is good for the other.

`auth.master_key` may do everything as well, and is in no database. All of this but `AdminKeyring.find` blocks.
"""

from __future__ import annotations

import math
import secrets
import time
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs
from sqlalchemy import select, update

from gateway.audit import SYSTEM, Actor, note
from gateway.store import digest_of
from gateway.subjects import NotFound, next_revision
from gateway.tables import ADMIN_KEYS, META

if TYPE_CHECKING:
    from typing import Self

    from sqlalchemy import Row

    from gateway.store import Store

Role = Literal["admin", "read"]
"""`read` sees everything and changes nothing."""

PREFIX = b"tga-"
"""What the secrets begin with, so that they are known from those of calls."""
_LEAST_ID_PREFIX = len("adm_") + 4


class AdminKey(Struct, frozen=True):
    """What is kept of one besides its digest."""

    id: str
    name: str | None
    role: Role
    prefix: str
    last4: str
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None


class CreatedAdminKey(Struct, frozen=True):
    """A new one. This is the only time that its secret is seen."""

    secret: str
    record: AdminKey


class AdminKeys:
    """Those of one database, as `actor` sees and changes them."""

    def __init__(self, store: Store, actor: Actor = SYSTEM) -> None:
        self._store = store
        self._actor = actor

    def all(self) -> list[AdminKey]:
        """By age, revoked ones too."""
        query = select(ADMIN_KEYS).order_by(ADMIN_KEYS.c.created_ms, ADMIN_KEYS.c.id)
        with self._store.reading() as connection:
            return [_record(row) for row in connection.execute(query)]

    def create(self, name: str | None, role: Role, expires_ms: int | None = None) -> CreatedAdminKey:
        secret = f"{PREFIX.decode()}{secrets.token_urlsafe(32)}"
        record = AdminKey(
            id=f"adm_{secrets.token_hex(8)}",
            name=name,
            role=role,
            prefix=secret[:8],
            last4=secret[-4:],
            created_ms=time.time_ns() // 1_000_000,
            expires_ms=expires_ms,
        )
        with self._store.writing() as connection:
            digest = digest_of(secret.encode(), next_revision(connection))
            connection.execute(ADMIN_KEYS.insert(), {**structs.asdict(record), "digest": digest})
            note(connection, self._actor, "admin-key.create", f"admin-key:{record.id}", after=record)
        return CreatedAdminKey(secret, record)

    def revoke(self, id_or_prefix: str) -> AdminKey:
        """Revoke the one with this id, or whose id alone starts so."""
        if len(id_or_prefix) < _LEAST_ID_PREFIX:
            raise NotFound(f"{id_or_prefix!r} is too little of an id: at least {_LEAST_ID_PREFIX} characters")
        query = select(ADMIN_KEYS).where(ADMIN_KEYS.c.id.startswith(id_or_prefix, autoescape=True))
        with self._store.writing() as connection:
            next_revision(connection)
            found = connection.execute(query).all()
            if len(found) != 1:
                raise NotFound(f"{len(found) or 'no'} admin keys have an id starting with {id_or_prefix!r}")
            before = _record(found[0])
            if before.revoked_ms is not None:
                return before
            after = structs.replace(before, revoked_ms=time.time_ns() // 1_000_000)
            here = ADMIN_KEYS.c.id == before.id
            connection.execute(update(ADMIN_KEYS).where(here).values(revoked_ms=after.revoked_ms))
            note(
                connection,
                self._actor,
                "admin-key.revoke",
                f"admin-key:{before.id}",
                before=before,
                after=after,
            )
            return after


class AdminKeyring:
    """All that admit administrators, in memory."""

    def __init__(self, key_secret: bytes) -> None:
        self._key_secret = key_secret
        self._revision: int | None = None
        self._by_digest: dict[bytes, AdminKey] = {}

    @classmethod
    def read(cls, store: Store) -> Self:
        """Those of a database as it is now."""
        keyring = cls(store.key_secret())
        keyring.refresh(store)
        return keyring

    def find(self, secret: bytes) -> AdminKey | None:
        """Whose key this is, or None; in a time that says nothing of how much of it is right."""
        return self.of_digest(digest_of(secret, self._key_secret))

    def of_digest(self, digest: bytes) -> AdminKey | None:
        """The same by the digest of the secret."""
        for known, record in self._by_digest.items():
            if compare_digest(known, digest):
                ends_ms = math.inf if record.expires_ms is None else record.expires_ms
                return record if time.time() * 1000 < ends_ms else None
        return None

    def refresh(self, store: Store) -> bool:
        """Take over what has changed in the database, and say whether anything had."""
        with store.reading() as connection:
            revision = connection.execute(select(META.c.keys_revision)).scalar_one()
            if revision == self._revision:
                return False
            rows = connection.execute(select(ADMIN_KEYS).where(ADMIN_KEYS.c.revoked_ms.is_(None))).all()
        self._by_digest = {row.digest: _record(row) for row in rows}
        self._revision = revision
        return True


def _record(row: Row[Any]) -> AdminKey:
    return AdminKey(*(getattr(row, field) for field in AdminKey.__struct_fields__))
