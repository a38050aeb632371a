"""How processes share the tests, how property tests run, and the databases that tests of every folder may ask for."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import redis_fleet
from hypothesis import HealthCheck, settings

from loadtest import postgresql, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A machine that is busy with other things says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long is first: of several processes none then works on alone at the end."""
    items.sort(key=lambda item: ("vllm" not in item.keywords, item.path.parent.name != "e2e"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """One seed of hashes for all processes: each collects the same tests in the same order, parameters from sets as well."""
    os.environ.setdefault("PYTHONHASHSEED", str(random.SystemRandom().randrange(2**32)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Processes (`-n 2`) share the tests file by file, in the order above."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - only where there are several

    class FileByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            """The file; all those on real vLLM servers are as one, since they share the servers."""
            file = nodeid.partition("::")[0]
            return "vllm" if "/test_vllm" in file else file

    config.option.loadscopereorder = False
    return FileByFile(config, log)


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
    with redis_server.running(_redis()) as server:
        yield server


@pytest.fixture
def redis(one_redis: redis_server.Server) -> redis_server.Server:
    """A real one, started by the first test that asks for it, and empty."""
    with one_redis.client() as client:
        client.flushall()
    return one_redis


@pytest.fixture(scope="session")
def watched_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_fleet.Watched]:
    with ExitStack() as stack:
        yield redis_fleet.Watched(_redis(), tmp_path_factory.mktemp("sentinels"), stack)


@pytest.fixture
def sentinels(watched_redis: redis_fleet.Watched) -> redis_fleet.Watched:
    """A primary that Sentinels name, and empty. Whoever kills it has one of his own."""
    with watched_redis.client() as client:
        client.flushall()
    return watched_redis


@pytest.fixture(scope="session")
def one_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_fleet.Cluster]:
    with ExitStack() as stack:
        yield redis_fleet.Cluster(_redis(), tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture
def redis_cluster(one_cluster: redis_fleet.Cluster) -> redis_fleet.Cluster:
    """The same of a cluster."""
    with one_cluster.client() as client:
        client.flushall()
    return one_cluster


def _redis() -> str:
    program = redis_server.program()
    if program is None:
        pytest.skip("Redis is not installed: there is no redis-server on PATH")
    return program


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Of a database in a file that is not there yet."""
    return f"sqlite:///{tmp_path}/tidegate.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def either_url(request: pytest.FixtureRequest) -> str:
    """Of a new database; a test that asks for it runs once on each kind."""
    return request.getfixturevalue(f"{request.param}_url")
