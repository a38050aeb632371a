"""Opening a database: SQLite or PostgreSQL, its settings, and its schema brought up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

if TYPE_CHECKING:
    from typing import Any

    from alembic.config import Config
    from sqlalchemy import Connection, Engine

HEAD = "0013"
"""The last migration. Known here so that a database that is up to date costs one query and no Alembic."""

_ADVISORY_LOCK = 0x7469_6465_6761_7465  # "tidegate": what PostgreSQL processes that migrate wait for
_WAIT_S = 10


class StoreError(Exception):
    """The root of what can go wrong with the database."""


class StoreAway(StoreError):
    """The database cannot be reached or is busy."""


class Unfit(StoreError):
    """A value that the database cannot hold, such as a text with a NUL in it in PostgreSQL."""


class SchemaTooNew(StoreError):
    """The schema is none of those this version knows."""


def reason(failure: Exception) -> str:
    """The driver's own words, without the statement: its parameters are nobody's business in a log."""
    return str(getattr(failure, "orig", None) or failure)


def engine_for(url: str) -> Engine:
    """The engine of a database. Raises StoreError where it is of no kind that we know or have a driver for."""
    sqlite_file = url.startswith("sqlite")
    waits = {"timeout" if sqlite_file else "connect_timeout": _WAIT_S}
    try:
        address = make_url(url)
        if address.drivername == "postgresql":
            address = address.set(drivername="postgresql+psycopg")  # the driver that is kept up
        engine = create_engine(address, pool_pre_ping=not sqlite_file, connect_args=waits)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as failure:
        raise StoreError(f"cannot open this kind of database: {failure}") from failure
    if engine.dialect.name not in {"sqlite", "postgresql"}:
        raise StoreError(f"cannot open this kind of database: {engine.dialect.name}")
    if engine.dialect.name == "sqlite":
        if engine.url.database in {None, "", ":memory:"}:
            raise StoreError(
                "a database in memory would be another one in each thread: name a file, as in sqlite:///x.db"
            )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = (
        None  # transactions begin where SQLAlchemy says so, not where sqlite3 guesses
    )
    connection.execute("PRAGMA foreign_keys = ON")
    # `synchronous` stays FULL: a segment of the journal is deleted on the strength of a commit.
    connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}")


def bring_up_to_date(engine: Engine) -> None:
    """Migrate the schema where it is behind. Raises StoreAway, or SchemaTooNew where it is ahead."""
    try:
        with engine.connect() as connection:
            version = schema_version(connection)
        if version != HEAD:
            _migrate(engine, version)
    except SQLAlchemyError as failure:
        where = engine.url.render_as_string(hide_password=True)
        raise StoreAway(f"cannot open the database {where}: {reason(failure)}") from failure


def schema_version(connection: Connection) -> str | None:
    """The last migration that it has had; None where it has no tables of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def _migrate(engine: Engine, version: str | None) -> None:
    # Imported here: half the time of a start, and needed once per release.
    from alembic import command  # noqa: PLC0415  as above
    from alembic.script import ScriptDirectory  # noqa: PLC0415  as above

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise SchemaTooNew(f"the database has schema {version}; this version of Tidegate knows up to {HEAD}")
    with engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, HEAD)


def alembic_config() -> Config:
    """Alembic's settings without an alembic.ini.

    For a new revision: `alembic.command.revision(alembic_config(), "what changes", rev_id="0004")`.
    """
    from alembic.config import Config  # noqa: PLC0415  only migrations need it

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
