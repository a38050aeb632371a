"""What `tidegate doctor` finds where a gateway keeps its state: the database, and Redis."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import AuthenticationError, RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from backends.checkup import Finding
from gateway.database import HEAD, StoreError, engine_for, reason, schema_version
from gateway.redis_client import client_of
from gateway.redis_url import RedisUrl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from gateway.config import Config

SKEW_S = 2.0
"""Of two clocks. Usage is entered by the gateway's, and days of budgets end by it."""
_REDIS_S = 3.0


def database_findings(config: Config) -> Iterator[Finding]:
    """Blocks."""
    shown = config.database_shown()
    try:
        engine = engine_for(config.database.get_secret_value())
    except StoreError as error:
        yield Finding(
            "database", "error", str(error), "PostgreSQL takes a driver: pip install 'tidegate[postgres]'"
        )
        return
    try:
        missing = engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists()
        yield from _no_file_yet(engine) if missing else _asked(engine, shown)
    except SQLAlchemyError as failure:
        # On one line, and without what is behind it: of several, drivers quote the connection.
        words = reason(failure).strip().partition("\n")[0]
        advice = "see that it runs, that its address is right, and that the user and password are let in"
        yield Finding("database", "error", f"{shown} cannot be used: {words}", advice)
    finally:
        engine.dispose()


def _no_file_yet(engine: Engine) -> Iterator[Finding]:
    file = Path(engine.url.database or "").absolute()
    if os.access(file.parent, os.W_OK):
        yield Finding("database", "ok", f"there is no {file} yet; the gateway makes it")
    else:
        advice = "make the folder, and let the gateway's user write there"
        yield Finding("database", "error", f"there is no {file}, and it cannot be made", advice)


def _asked(engine: Engine, shown: str) -> Iterator[Finding]:
    with engine.execution_options(sqlite_begin="IMMEDIATE").connect() as connection:
        version = schema_version(connection)
        if version == HEAD:
            yield Finding("database", "ok", f"{shown} is there, schema {version}")
        elif version is None:
            yield Finding(
                "database", "ok", f"{shown} is there and has no tables of ours yet; the gateway makes them"
            )
        elif version < HEAD:
            advice = "back it up; `tidegate serve` brings it up to date when it starts, after which no older version can use it"
            yield Finding(
                "database", "warning", f"{shown} has schema {version}, and this version {HEAD}", advice
            )
        else:
            advice = "run the newer version of Tidegate that has written it"
            yield Finding(
                "database", "error", f"{shown} has schema {version}; this version knows up to {HEAD}", advice
            )
        _try_to_write(connection)
        if engine.dialect.name == "postgresql":
            yield from _clock(connection)


def _try_to_write(connection: Connection) -> None:
    """As the gateway's user may; taken back in both databases. Raises SQLAlchemyError."""
    name = f"tidegate_doctor_{secrets.token_hex(4)}"
    connection.execute(text(f"CREATE TABLE {name} (written INTEGER)"))
    connection.execute(text(f"INSERT INTO {name} VALUES (1)"))  # noqa: S608 - a name of ours
    connection.rollback()


def _clock(connection: Connection) -> Iterator[Finding]:
    before_s = time.time()
    theirs_s = float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    yield _skew("database", theirs_s - (before_s + time.time()) / 2)


def _skew(about: str, skew_s: float) -> Finding:
    if abs(skew_s) <= SKEW_S:
        return Finding(about, "ok", "its clock agrees with ours")
    ahead = "ahead of" if skew_s > 0 else "behind"
    advice = "keep both machines in time (NTP): days, budgets and leases go by the clock"
    return Finding(about, "warning", f"its clock is {abs(skew_s):.0f} s {ahead} ours", advice)


async def redis_findings(config: Config) -> list[Finding]:
    url = config.shared_state.get_secret_value()
    if url == "memory://":
        return []
    where = RedisUrl.parse(url)
    shown, redis = where.shown, client_of(where, timeout_s=_REDIS_S)
    try:
        return [finding async for finding in _asked_redis(redis, where)]
    except AuthenticationError:
        advice = "correct user and password in shared_state"
        return [Finding("shared_state", "error", f"Redis at {shown} does not let us in", advice)]
    except (RedisError, OSError, TimeoutError) as failure:
        words = str(failure) or type(failure).__name__
        advice = _redis_advice(failure, by_tls=where.tls is not None)
        return [Finding("shared_state", "error", f"Redis at {shown} cannot be used: {words}", advice)]
    finally:
        await redis.aclose()


def _redis_advice(failure: Exception, *, by_tls: bool) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(failure):
        return (
            "name it as its certificate does, and where that is of a CA of your own, put its file behind the URL: "
            "?ssl_ca_certs=FILE"
        )
    port = "it does not ask for TLS there (else say rediss://)"
    if by_tls:
        # It may just close the connection of a client that shows no certificate.
        port = (
            "it speaks TLS there (else say redis://) and asks for no certificate of ours "
            "(else put ?ssl_certfile=FILE&ssl_keyfile=FILE behind the URL)"
        )
    return f"see that it runs, that its address is right, that {port}, and that it takes writes (no replica)"


async def _asked_redis(redis: Any, where: RedisUrl) -> Any:
    await redis.ping()
    before_s = time.time()
    seconds, micros = await redis.time()
    skew_s = seconds + micros / 1e6 - (before_s + time.time()) / 2
    key = f"{{tidegate}}:doctor:{secrets.token_hex(4)}"
    await redis.set(key, "1", ex=1)
    await redis.eval("return redis.call('DEL', KEYS[1])", 1, key)
    yield Finding("shared_state", "ok", f"Redis at {where.shown} is there, takes writes and scripts")
    yield _skew("shared_state", skew_s)
    memory = await redis.info("memory")
    policy = memory.get("maxmemory_policy", "noeviction")
    if int(memory.get("maxmemory", 0)) and policy != "noeviction":
        yield Finding(
            "shared_state",
            "warning",
            f"when it is full it forgets keys ({policy}), and with them what has been spent",
            "set maxmemory-policy noeviction, or give limits a Redis of their own",
        )
    if where.kind != "single" and not int((await redis.info("replication")).get("connected_slaves", 0)):
        advice = "give it a replica, or limits are away for as long as it is"
        yield Finding("shared_state", "warning", "no replica could take the place of this primary", advice)
