"""Tenants, their projects and their keys in the database: made, changed and read, each change with its audit entry.

A change counts up a revision, by which running gateways see within a second that there is something to read. All of this
blocks. Besides what the database itself may raise (see gateway.store), callers see:

    StoreError
    ├── BadName     not a name that a tenant or a project may have
    ├── NotFound    nothing, or more than one, answers to what was given
    └── Taken       there is one of that name already
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs
from sqlalchemy import delete, select, tuple_, update

from gateway.audit import SYSTEM, Actor, note
from gateway.database import StoreError
from gateway.policy import TENANT_NAME, Policy
from gateway.store import MASTER, digest_of
from gateway.tables import FORMER_SECRETS, KEYS, META, PROJECTS, TENANTS

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Row, Table

    from gateway.store import Store

KEY_PREFIX = "tg-"

_LEAST_ID_PREFIX = len("key_") + 4


class BadName(StoreError):
    """Not a name that a tenant or a project may have."""


class NotFound(StoreError):
    """Nothing, or more than one, answers to what was given."""


class Taken(StoreError):
    """There is one of that name already."""


class Tenant(Struct, frozen=True):
    name: str
    created_ms: int
    suspended_ms: int | None = None
    policy: Policy | None = None
    metadata: dict[str, str] | None = None


class Project(Struct, frozen=True):
    tenant: str
    name: str
    created_ms: int
    suspended_ms: int | None = None
    policy: Policy | None = None
    metadata: dict[str, str] | None = None


class KeyRecord(Struct, frozen=True):
    """What is kept of a key besides its digest."""

    id: str
    tenant: str
    name: str | None
    prefix: str
    last4: str
    created_ms: int
    revoked_ms: int | None
    policy: Policy | None = None
    """Its own; its project and its tenant may have one besides."""
    project: str | None = None
    expires_ms: int | None = None
    metadata: dict[str, str] | None = None


class CreatedKey(Struct, frozen=True):
    """A key with a new secret. This is the only time that it is seen."""

    secret: str
    record: KeyRecord


class Change(Struct, frozen=True):
    """What is to be different; what is not said stays."""

    policy: Policy | UnsetType | None = UNSET
    metadata: dict[str, str] | UnsetType | None = UNSET
    suspended: bool | UnsetType = UNSET
    """Of tenants and projects."""
    name: str | UnsetType | None = UNSET
    """Of keys."""
    expires_ms: int | UnsetType | None = UNSET
    """Of keys."""


_Record = TypeVar("_Record", Tenant, Project, KeyRecord)


class Subjects:
    """Those of one database, as `actor` sees and changes them."""

    def __init__(self, store: Store, actor: Actor = SYSTEM) -> None:
        self._store = store
        self._actor = actor

    # Tenants and projects

    def list_tenants(self, after: str = "", most: int | None = None) -> list[Tenant]:
        """By name, from behind `after` on."""
        query = select(TENANTS).where(TENANTS.c.name > after).order_by(TENANTS.c.name).limit(most)
        with self._store.reading() as connection:
            return [record_of(Tenant, row) for row in connection.execute(query)]

    def tenant(self, name: str) -> Tenant:
        with self._store.reading() as connection:
            return _tenant(connection, name)

    def create_tenant(
        self, name: str, policy: Policy | None = None, metadata: dict[str, str] | None = None
    ) -> Tenant:
        with self._store.writing() as connection:
            next_revision(connection)
            if connection.execute(select(TENANTS.c.name).where(TENANTS.c.name == name)).first():
                raise Taken(f"there is a tenant {name!r} already")
            return self._create_tenant(connection, name, policy, metadata)

    def change_tenant(self, name: str, change: Change) -> Tenant:
        with self._store.writing() as connection:
            next_revision(connection)
            tenant = _tenant(connection, name)
            here = TENANTS.c.name == name
            return self._change(connection, TENANTS, here, tenant, f"tenant:{name}", change)

    def list_projects(self, tenant: str, after: str = "", most: int | None = None) -> list[Project]:
        """By name, from behind `after` on."""
        query = select(PROJECTS).where(PROJECTS.c.tenant == tenant, PROJECTS.c.name > after)
        with self._store.reading() as connection:
            _tenant(connection, tenant)
            rows = connection.execute(query.order_by(PROJECTS.c.name).limit(most))
            return [record_of(Project, row) for row in rows]

    def project(self, tenant: str, name: str) -> Project:
        with self._store.reading() as connection:
            return _project(connection, tenant, name)

    def create_project(
        self, tenant: str, name: str, policy: Policy | None = None, metadata: dict[str, str] | None = None
    ) -> Project:
        """Within a tenant, which is created with its first project."""
        _expect_name("project", name)
        project = Project(tenant, name, _now_ms(), None, policy, metadata or None)
        with self._store.writing() as connection:
            next_revision(connection)
            self._see_to_tenant(connection, tenant)
            if connection.execute(select(PROJECTS.c.name).where(_of_project(tenant, name))).first():
                raise Taken(f"tenant {tenant!r} has a project {name!r} already")
            connection.execute(PROJECTS.insert(), _columns(project))
            subject = f"project:{tenant}/{name}"
            note(connection, self._actor, "project.create", subject, tenant=tenant, after=project)
        return project

    def change_project(self, tenant: str, name: str, change: Change) -> Project:
        with self._store.writing() as connection:
            next_revision(connection)
            project = _project(connection, tenant, name)
            here = _of_project(tenant, name)
            subject = f"project:{tenant}/{name}"
            return self._change(connection, PROJECTS, here, project, subject, change)

    # Keys

    def list_keys(
        self,
        tenant: str | None = None,
        project: str | None = None,
        after: str | None = None,
        most: int | None = None,
    ) -> list[KeyRecord]:
        """By tenant and age, revoked ones too; from behind the key whose id is `after` on."""
        place = tuple_(KEYS.c.tenant, KEYS.c.created_ms, KEYS.c.id)
        query = select(KEYS).order_by(KEYS.c.tenant, KEYS.c.created_ms, KEYS.c.id).limit(most)
        if tenant is not None:
            query = query.where(KEYS.c.tenant == tenant)
        if project is not None:
            query = query.where(KEYS.c.project == project)
        with self._store.reading() as connection:
            if after is not None:
                last = _key(connection, after)
                query = query.where(place > (last.tenant, last.created_ms, last.id))
            return [record_of(KeyRecord, row) for row in connection.execute(query)]

    def key(self, id_or_prefix: str) -> KeyRecord:
        """The one with this id, or whose id alone starts so."""
        with self._store.reading() as connection:
            return _key(connection, id_or_prefix)

    def create_key(
        self,
        tenant: str,
        name: str | None = None,
        policy: Policy | None = None,
        *,
        project: str | None = None,
        expires_ms: int | None = None,
        metadata: dict[str, str] | None = None,
    ) -> CreatedKey:
        """A new key for `tenant`, which is created with its first key."""
        secret = _new_secret()
        record = KeyRecord(
            id=f"key_{secrets.token_hex(8)}",
            tenant=tenant,
            name=name,
            prefix=secret[:7],
            last4=secret[-4:],
            created_ms=_now_ms(),
            revoked_ms=None,
            policy=policy,
            project=project,
            expires_ms=expires_ms,
            metadata=metadata or None,
        )
        with self._store.writing() as connection:
            key_secret = next_revision(connection)
            self._see_to_tenant(connection, tenant)
            if project is not None:
                _project(connection, tenant, project)
            digest = digest_of(secret.encode(), key_secret)
            connection.execute(KEYS.insert(), {**_columns(record), "digest": digest})
            self._note_key(connection, "key.create", after=record)
        return CreatedKey(secret, record)

    def change_key(self, id_or_prefix: str, change: Change) -> KeyRecord:
        with self._store.writing() as connection:
            next_revision(connection)
            key = _key(connection, id_or_prefix)
            return self._change(connection, KEYS, KEYS.c.id == key.id, key, f"key:{key.id}", change)

    def rotate_key(self, id_or_prefix: str, overlap_ms: int) -> CreatedKey:
        """A new secret for a key. The one before admits calls for `overlap_ms` more."""
        secret, now_ms = _new_secret(), _now_ms()
        with self._store.writing() as connection:
            digest = digest_of(secret.encode(), next_revision(connection))
            before = _key(connection, id_or_prefix)
            if before.revoked_ms is not None:
                raise NotFound(f"{before.id} has been revoked")
            after = structs.replace(before, prefix=secret[:7], last4=secret[-4:])
            here = KEYS.c.id == before.id
            old_digest = connection.execute(select(KEYS.c.digest).where(here)).scalar_one()
            connection.execute(delete(FORMER_SECRETS).where(FORMER_SECRETS.c.ends_ms <= now_ms))
            if overlap_ms > 0:
                former = {"digest": old_digest, "key_id": before.id, "ends_ms": now_ms + overlap_ms}
                connection.execute(FORMER_SECRETS.insert(), former)
            connection.execute(
                update(KEYS).where(here).values(digest=digest, prefix=after.prefix, last4=after.last4)
            )
            self._note_key(connection, "key.rotate", before=before, after=after)
        return CreatedKey(secret, after)

    def revoke_key(self, id_or_prefix: str, tenant: str | None = None) -> KeyRecord:
        """Revoke the key with this id, or whose id alone starts so. Once revoked it stays so from the first time."""
        with self._store.writing() as connection:
            next_revision(connection)
            key = _key(connection, id_or_prefix, tenant)
            if key.revoked_ms is not None:
                return key
            revoked = structs.replace(key, revoked_ms=_now_ms())
            here = KEYS.c.id == key.id
            connection.execute(update(KEYS).where(here).values(revoked_ms=revoked.revoked_ms))
            connection.execute(delete(FORMER_SECRETS).where(FORMER_SECRETS.c.key_id == key.id))
            self._note_key(connection, "key.revoke", before=key, after=revoked)
            return revoked

    # Each within the transaction of its caller

    def _see_to_tenant(self, connection: Connection, name: str) -> None:
        if connection.execute(select(TENANTS.c.name).where(TENANTS.c.name == name)).first() is None:
            self._create_tenant(connection, name, None, None)

    def _create_tenant(
        self, connection: Connection, name: str, policy: Policy | None, metadata: dict[str, str] | None
    ) -> Tenant:
        _expect_name("tenant", name)
        tenant = Tenant(name, _now_ms(), None, policy, metadata or None)
        connection.execute(TENANTS.insert(), _columns(tenant))
        note(connection, self._actor, "tenant.create", f"tenant:{name}", tenant=name, after=tenant)
        return tenant

    def _change(
        self,
        connection: Connection,
        table: Table,
        here: ColumnElement[bool],
        record: _Record,
        subject: str,
        change: Change,
    ) -> _Record:
        said: dict[str, Any] = {
            field: value for field, value in structs.asdict(change).items() if value is not UNSET
        }
        suspended = said.pop("suspended", None)
        if suspended is not None and suspended != (getattr(record, "suspended_ms", None) is not None):
            said["suspended_ms"] = _now_ms() if suspended else None
        if "metadata" in said:
            said["metadata"] = said["metadata"] or None
        changed = structs.replace(record, **said)
        if changed != record:
            columns = _columns(changed)
            connection.execute(update(table).where(here).values({name: columns[name] for name in said}))
            tenant = record.name if isinstance(record, Tenant) else record.tenant
            action = f"{subject.partition(':')[0]}.change"
            note(connection, self._actor, action, subject, tenant=tenant, before=record, after=changed)
        return changed

    def _note_key(
        self, connection: Connection, action: str, *, after: KeyRecord, before: KeyRecord | None = None
    ) -> None:
        tenant, subject = after.tenant, f"key:{after.id}"
        note(connection, self._actor, action, subject, tenant=tenant, before=before, after=after)


def next_revision(connection: Connection) -> bytes:
    """Count a change. It locks the row, so changes follow each other. Returns the secret of the keys' digests."""
    connection.execute(update(META).values(keys_revision=META.c.keys_revision + 1))
    secret: bytes = connection.execute(select(META.c.key_secret)).scalar_one()
    return secret


def _tenant(connection: Connection, name: str) -> Tenant:
    row = connection.execute(select(TENANTS).where(TENANTS.c.name == name)).first()
    if row is None:
        raise NotFound(f"there is no tenant {name!r}")
    return record_of(Tenant, row)


def _project(connection: Connection, tenant: str, name: str) -> Project:
    row = connection.execute(select(PROJECTS).where(_of_project(tenant, name))).first()
    if row is None:
        raise NotFound(f"tenant {tenant!r} has no project {name!r}")
    return record_of(Project, row)


def _of_project(tenant: str, name: str) -> ColumnElement[bool]:
    return (PROJECTS.c.tenant == tenant) & (PROJECTS.c.name == name)


def _key(connection: Connection, id_or_prefix: str, tenant: str | None = None) -> KeyRecord:
    if len(id_or_prefix) < _LEAST_ID_PREFIX:
        raise NotFound(
            f"{id_or_prefix!r} is too little of a key's id: at least {_LEAST_ID_PREFIX} characters"
        )
    query = select(KEYS).where(KEYS.c.id.startswith(id_or_prefix, autoescape=True)).limit(100)
    if tenant is not None:
        query = query.where(KEYS.c.tenant == tenant)
    found = connection.execute(query).all()
    if len(found) != 1:
        among = "" if tenant is None else f" of tenant {tenant!r}"
        raise NotFound(f"{len(found) or 'no'} keys{among} have an id starting with {id_or_prefix!r}")
    return record_of(KeyRecord, found[0])


def _expect_name(kind: Literal["tenant", "project"], name: str) -> None:
    if name == MASTER or not TENANT_NAME.fullmatch(name):
        raise BadName(
            f"{name!r} cannot be a {kind}'s name: 1 to 64 of A-Z a-z 0-9 . _ @ - starting with a letter or digit,"
            f" and not {MASTER!r}"
        )


def record_of(kind: type[_Record], row: Row[Any]) -> _Record:
    fields = {field: getattr(row, field) for field in kind.__struct_fields__}
    if fields["policy"] is not None:
        fields["policy"] = Policy.read(fields["policy"])
    if fields["metadata"] is not None:
        fields["metadata"] = msgspec.json.decode(fields["metadata"])
    return kind(**fields)


def _columns(record: Tenant | Project | KeyRecord) -> dict[str, Any]:
    columns = structs.asdict(record)
    columns["policy"] = None if record.policy is None else record.policy.text()
    columns["metadata"] = None if record.metadata is None else msgspec.json.encode(record.metadata).decode()
    return columns


def _new_secret() -> str:
    return f"{KEY_PREFIX}{secrets.token_urlsafe(32)}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
