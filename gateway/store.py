"""The database: tenants, keys and usage, in SQLite or PostgreSQL with the same statements.

Plain statements in explicit transactions. Everything here blocks, so the event loop calls it in a thread. Callers see
the errors below, some of which `gateway.database` raises, and no others:

    StoreError
    ├── StoreAway       the database cannot be reached or is busy; the same statement may work later
    ├── RowsRefused     the database is there and will never take these rows
    ├── SchemaTooNew    written by a newer Tidegate than this one
    ├── BadTenantName
    └── KeyNotFound     no key, or more than one, answers to what was given
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING

from msgspec import Struct, structs
from sqlalchemy import select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from gateway.bookkeeping import Books
from gateway.database import StoreAway, StoreError, bring_up_to_date, engine_for, reason
from gateway.policy import TENANT_NAME, Policy
from gateway.tables import KEYS, META, SHARES, TENANTS, USAGE
from gateway.usage_report import totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Self

    from sqlalchemy import Connection, Engine, Row, Table
    from sqlalchemy.dialects import postgresql

    from gateway.ledger import UsageRow
    from gateway.usage_totals import Question, Total

MASTER = "master"
"""The tenant that calls with the configured master key are metered under; nobody else may have that name."""

_LEAST_ID_PREFIX = len("key_") + 4
_ROWS_AT_ONCE = 200
"""In one INSERT: 26 parameters each, of which SQLite takes 32,766."""


class RowsRefused(StoreError):
    """A value that the database cannot hold is among the rows; none of them were kept."""


class BadTenantName(StoreError):
    """Not a name that a tenant may have."""


class KeyNotFound(StoreError):
    """No key, or more than one, answers to what was given."""


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
    """Its own; its tenant may have one besides."""


class CreatedKey(Struct, frozen=True):
    """A new key. This is the only time its secret is seen."""

    secret: str
    record: KeyRecord


class ActiveKeys(Struct, frozen=True):
    """Every key that is not revoked, with its digest, as of one revision."""

    revision: int
    keys: tuple[tuple[bytes, KeyRecord], ...]


def digest_of(secret: bytes, key_secret: bytes) -> bytes:
    """What is stored of a key. A fast hash is enough for 256 random bits; keyed, a stolen table cannot be tried out."""
    return blake2b(secret, digest_size=32, key=key_secret).digest()


class Store:
    """One database, its schema up to date. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # SQLite gives the write lock to whoever asks at BEGIN and makes others wait; asking later fails at once instead.
        self._writer = engine.execution_options(sqlite_begin="IMMEDIATE")
        self._record_sql, self._positional = _record_statement(engine, USAGE)
        self._record_shares_sql, _ = _record_statement(engine, SHARES)
        self._record_many_sql = _for_many(self._record_sql)
        self._books = Books(engine.dialect)

    @classmethod
    @contextmanager
    def open(cls, url: str) -> Iterator[Self]:
        engine = engine_for(url)
        try:
            bring_up_to_date(engine)
            yield cls(engine)
        finally:
            engine.dispose()

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection for what other modules keep here. Raises StoreAway."""
        return _reading(self._engine)

    def writing(self) -> AbstractContextManager[Connection]:
        """The same, in a transaction that writes."""
        return _writing(self._writer)

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT in the words of this database, which has ON CONFLICT."""
        return _insert(self._engine, table)

    # Keys

    def key_secret(self) -> bytes:
        with _reading(self._engine) as connection:
            secret: bytes = connection.execute(select(META.c.key_secret)).scalar_one()
            return secret

    def create_key(self, tenant: str, name: str | None = None, policy: Policy | None = None) -> CreatedKey:
        """A new key for `tenant`, which is created with its first key."""
        if tenant == MASTER or not TENANT_NAME.fullmatch(tenant):
            raise BadTenantName(
                f"{tenant!r} cannot be a tenant's name: 1 to 64 of A-Z a-z 0-9 . _ @ - starting with a letter or digit,"
                f" and not {MASTER!r}"
            )
        secret = f"tg-{secrets.token_urlsafe(32)}"
        now_ms = time.time_ns() // 1_000_000
        record = KeyRecord(
            id=f"key_{secrets.token_hex(8)}",
            tenant=tenant,
            name=name,
            prefix=secret[:7],
            last4=secret[-4:],
            created_ms=now_ms,
            revoked_ms=None,
            policy=policy,
        )
        with _writing(self._writer) as connection:
            key_secret = _next_keys_revision(connection)
            connection.execute(
                _insert(self._engine, TENANTS).on_conflict_do_nothing(),
                {"name": tenant, "created_ms": now_ms},
            )
            digest = digest_of(secret.encode(), key_secret)
            row = {**structs.asdict(record), "digest": digest, "policy": policy and policy.text()}
            connection.execute(KEYS.insert(), row)
        return CreatedKey(secret=secret, record=record)

    def list_keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Keys by tenant and age, revoked ones too."""
        query = select(KEYS).order_by(KEYS.c.tenant, KEYS.c.created_ms, KEYS.c.id)
        if tenant is not None:
            query = query.where(KEYS.c.tenant == tenant)
        with _reading(self._engine) as connection:
            return [_key_record(row) for row in connection.execute(query)]

    def revoke_key(self, id_or_prefix: str, tenant: str | None = None) -> KeyRecord:
        """Revoke the key with this id, or whose id alone starts so. Once revoked it stays so from the first time."""
        if len(id_or_prefix) < _LEAST_ID_PREFIX:
            raise KeyNotFound(
                f"{id_or_prefix!r} is too little of a key's id: at least {_LEAST_ID_PREFIX} characters"
            )
        query = select(KEYS).where(KEYS.c.id.startswith(id_or_prefix, autoescape=True))
        if tenant is not None:
            query = query.where(KEYS.c.tenant == tenant)
        with _writing(self._writer) as connection:
            _next_keys_revision(connection)
            keys = [_key_record(row) for row in connection.execute(query)]
            if len(keys) != 1:
                among = "" if tenant is None else f" of tenant {tenant!r}"
                raise KeyNotFound(
                    f"{len(keys) or 'no'} keys{among} have an id starting with {id_or_prefix!r}"
                )
            key = keys[0]
            if key.revoked_ms is None:
                key = structs.replace(key, revoked_ms=time.time_ns() // 1_000_000)
                connection.execute(update(KEYS).where(KEYS.c.id == key.id).values(revoked_ms=key.revoked_ms))
            return key

    def active_keys(self, since_revision: int | None = None) -> ActiveKeys | None:
        """The keys that admit calls; None if nothing has changed since `since_revision`."""
        with _reading(self._engine) as connection:
            revision = connection.execute(select(META.c.keys_revision)).scalar_one()
            if revision == since_revision:
                return None
            rows = connection.execute(select(KEYS).where(KEYS.c.revoked_ms.is_(None)))
            # The revision was read first: a change between the two reads is seen now and read again next time.
            return ActiveKeys(revision, tuple((row.digest, _key_record(row)) for row in rows))

    # Usage

    def record(self, rows: Sequence[UsageRow]) -> int:
        """Keep `rows` and what follows from them in one transaction, and say how many were new; one that is there already
        counts once.
        """
        try:
            with self._writer.begin() as connection:
                self._books.lock(connection)
                by_id = {row.call_id: row for row in rows}
                known = self._books.known(connection, list(by_id)) if by_id else by_id.keys()
                fresh = [row for call_id, row in by_id.items() if call_id not in known]
                if fresh:
                    self._record_rows(connection, fresh)
                    self._record_shares(connection, fresh)
                    self._books.follow(connection, [row.call_id for row in fresh])
                return len(fresh)
        except (DataError, IntegrityError, OverflowError, ValueError) as failure:
            raise RowsRefused(reason(failure)) from failure
        except SQLAlchemyError as failure:
            if (
                reason(failure) == "integer overflow"
            ):  # a sum that SQLite cannot hold, which is no DataError there
                raise RowsRefused(reason(failure)) from failure
            raise StoreAway(reason(failure)) from failure

    def _record_rows(self, connection: Connection, rows: Sequence[UsageRow]) -> None:
        if not self._positional:
            connection.exec_driver_sql(self._record_sql, [structs.asdict(row) for row in rows])
            return
        whole = len(rows) - len(rows) % _ROWS_AT_ONCE
        for start in range(0, whole, _ROWS_AT_ONCE):
            some = map(_columns, rows[start : start + _ROWS_AT_ONCE])
            connection.exec_driver_sql(self._record_many_sql, tuple(chain.from_iterable(some)))
        if whole < len(rows):
            connection.exec_driver_sql(self._record_sql, [_columns(row) for row in rows[whole:]])

    def _record_shares(self, connection: Connection, rows: Sequence[UsageRow]) -> None:
        found = [
            (row.call_id, number, *structs.astuple(share))
            for row in rows
            if row.shares
            for number, share in enumerate(row.shares)
        ]
        if found and not self._positional:
            names = SHARES.columns.keys()
            by_name = [dict(zip(names, each, strict=True)) for each in found]
            connection.exec_driver_sql(self._record_shares_sql, by_name)
        elif found:
            connection.exec_driver_sql(self._record_shares_sql, found)

    def usage(self, question: Question) -> list[Total]:
        """What was used, as asked for."""
        with _reading(self._engine) as connection:
            return totals(connection, question)


def _columns(row: UsageRow) -> tuple[Any, ...]:
    """All but its shares, which have a table of their own."""
    return structs.astuple(row)[:-1]


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.connect() as connection:
            yield connection
    except SQLAlchemyError as failure:
        raise StoreAway(reason(failure)) from failure


@contextmanager
def _writing(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as failure:
        raise StoreAway(reason(failure)) from failure


def _next_keys_revision(connection: Connection) -> bytes:
    """Count a change of the keys. It locks the row, so changes follow each other. Returns the secret of their digests."""
    connection.execute(update(META).values(keys_revision=META.c.keys_revision + 1))
    secret: bytes = connection.execute(select(META.c.key_secret)).scalar_one()
    return secret


def _key_record(row: Row[Any]) -> KeyRecord:
    fields = {field: getattr(row, field) for field in KeyRecord.__struct_fields__}
    if fields["policy"] is not None:
        fields["policy"] = Policy.read(fields["policy"])
    return KeyRecord(**fields)


def _insert(engine: Engine, table: Table) -> sqlite.Insert | postgresql.Insert:
    if engine.dialect.name != "postgresql":
        return sqlite.insert(table)
    # Imported here: it takes a twentieth of a start.
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415  as above

    return postgresql.insert(table)


def _record_statement(engine: Engine, table: Table) -> tuple[str, bool]:
    """The INSERT of rows of `table` as the driver takes it, and whether its parameters go by position.

    Compiled once and given rows as they are: a batch then costs little of the interpreter's time, which the event
    loop is waiting for meanwhile.
    """
    compiled = _insert(engine, table).compile(dialect=engine.dialect)
    return str(compiled), bool(compiled.positional)


def _for_many(sql: str) -> str:
    """The same INSERT for _ROWS_AT_ONCE rows by position: SQLite then takes and returns the interpreter once for all of
    them, for which the event loop would have to wait each time.
    """
    return re.sub(r"\(\?(?:, \?)*\)", lambda row: ", ".join([row[0]] * _ROWS_AT_ONCE), sql)
