"""Everything here runs on the event loop that serves; and what many tests need: a configuration, a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from gateway.config import load
from gateway.config_file import ConfigError
from gateway.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from config_files import Read

    from gateway.config import Config


def pytest_asyncio_loop_factories(config, item):  # noqa: ARG001 - the hook names its arguments
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def read(tmp_path: Path):
    """A configuration from its text."""

    def read(text: str, environ: dict[str, str] | None = None, **listen: Any) -> Config:
        path = tmp_path / "tidegate.yaml"
        path.write_text(text)
        return load(path, environ or {}, listen)

    return read


@pytest.fixture
def problems(read: Read):
    """What is wrong with a configuration, by its path."""

    def problems(text: str, environ: dict[str, str] | None = None, **listen: Any) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            read(text, environ, **listen)
        return dict(caught.value.problems)

    return problems


@pytest.fixture
def url(sqlite_url: str) -> str:
    """Of a new database. A file of tests that are to hold on both kinds says so by a fixture `url` of its own, which
    returns `either_url`.
    """
    return sqlite_url


@pytest.fixture
def store(url: str):
    """That database, open."""
    with Store.open(url) as store:
        yield store
