"""The database: what all that is kept there stands on, and usage; in SQLite or PostgreSQL with the same statements.

Plain statements in explicit transactions. Everything here blocks, so the event loop calls it in a thread. Callers see
the errors below, some of which `gateway.database` raises, and no others:

    StoreError
    ├── StoreAway       the database cannot be reached or is busy; the same statement may work later
    ├── RowsRefused     the database is there and will never take these rows
    ├── Unfit           nor ask for, or keep, such a value
    └── SchemaTooNew    written by a newer Tidegate than this one
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING

from msgspec import structs
from sqlalchemy import select
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError

from gateway.bookkeeping import Books
from gateway.database import StoreAway, StoreError, Unfit, bring_up_to_date, engine_for, reason
from gateway.tables import META, SHARES, USAGE
from gateway.usage_report import totals

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Self

    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.dialects import postgresql

    from gateway.ledger import UsageRow
    from gateway.usage_totals import Question, Total

MASTER = "master"
"""The tenant that calls with the configured master key are metered under; nobody else may have that name."""

_ROWS_AT_ONCE = 200
"""In one INSERT: 26 parameters each, of which SQLite takes 32,766."""


class RowsRefused(StoreError):
    """A value that the database cannot hold is among the rows; none of them were kept."""


def digest_of(secret: bytes, key_secret: bytes) -> bytes:
    """What is stored of a key. A fast hash is enough for 256 random bits; keyed, a stolen table cannot be tried out."""
    return blake2b(secret, digest_size=32, key=key_secret).digest()


class Store:
    """One database, its schema up to date. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.kind = engine.dialect.name
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

    def key_secret(self) -> bytes:
        with _reading(self._engine) as connection:
            secret: bytes = connection.execute(select(META.c.key_secret)).scalar_one()
            return secret

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
                    self._books.follow(connection, fresh)
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
    except DataError as failure:
        raise Unfit(reason(failure)) from failure
    except SQLAlchemyError as failure:
        raise StoreAway(reason(failure)) from failure


@contextmanager
def _writing(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except DataError as failure:
        raise Unfit(reason(failure)) from failure
    except SQLAlchemyError as failure:
        raise StoreAway(reason(failure)) from failure


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
