"""How property tests run, all of them; and the databases that tests of every folder may ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import postgresql
import pytest
import redis_server
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A machine that is busy with other things says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.Server]:
    """A real one, started by the first test that asks for it."""
    programs = postgresql.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: there is no initdb in /usr/lib/postgresql or on PATH")
    with postgresql.running(programs) as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: postgresql.Server) -> Iterator[str]:
    """Of an empty database in PostgreSQL."""
    url = postgresql_server.new_database()
    yield url
    postgresql_server.drop(url)


@pytest.fixture(scope="session")
def one_redis() -> Iterator[redis_server.Server]:
    program = redis_server.program()
    if program is None:
        pytest.skip("Redis is not installed: there is no redis-server on PATH")
    with redis_server.running(program) as server:
        yield server


@pytest.fixture
def redis(one_redis: redis_server.Server) -> redis_server.Server:
    """A real one, started by the first test that asks for it, and empty."""
    with one_redis.client() as client:
        client.flushall()
    return one_redis


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Of a database in a file that is not there yet."""
    return f"sqlite:///{tmp_path}/tidegate.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def either_url(request: pytest.FixtureRequest) -> str:
    """Of a new database; a test that asks for it runs once on each kind."""
    return request.getfixturevalue(f"{request.param}_url")
