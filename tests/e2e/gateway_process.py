"""The gateway as its operators run it: a process with a configuration file, commands beside it, signals, an exit code.

    with gateway_process(tmp_path, models) as gateway:
        key = gateway.new_key("acme")

Started again in the same folder it is a restart: over the same database and journal. Where the test's own event loop
serves the workers, `gateway_beside` starts and stops it without holding up that loop.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import yaml
from msgspec import convert
from typer.testing import CliRunner

from gateway.cli import app
from gateway.ledger import UsageRow
from gateway.store import Store
from gateway.subjects import Subjects

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

PROJECT = Path(__file__).parents[2]
LIMIT_S = 60
"""For whatever is waited for: so long only where it never comes."""


class Gateway(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str
    """Without a path."""
    home: Path
    """Where its configuration, database, journal and log are."""

    @property
    def config(self) -> Path:
        return self.home / "tidegate.yaml"

    @property
    def log(self) -> Path:
        return self.home / "gateway.log"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for raw sockets."""
        parts = urlsplit(self.url)
        return parts.hostname, parts.port

    def command(self, *arguments: str) -> Any:
        """What an administration command prints as JSON."""
        return command(self.home, *arguments)

    def new_key(self, tenant: str) -> str:
        """A key that the gateway has seen; that takes it a second or two."""
        key = self.command("keys", "create", "--tenant", tenant)[0]["key"]
        until(lambda: self.admits(key), self.process, self.log)
        return key

    def admits(self, key: str) -> bool:
        return answers(f"{self.url}/v1/models", {"authorization": f"Bearer {key}"})

    def metrics(self) -> str:
        return get(f"{self.url}/metrics")[1]

    def kill(self) -> None:
        """At once and without a word."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def ended(self, *signals: signal.Signals) -> int:
        """Its exit code, once these signals have ended it."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


@contextmanager
def gateway_process(home: Path, models: Mapping[str, Any], **sections: Any) -> Iterator[Gateway]:
    """A gateway that is ready for calls; killed, where it still runs, when the block is left.

    `sections` are those of the configuration: `timeouts={"drain_s": 1}`.
    """
    with started(home, models, **sections) as process:
        log = home / "gateway.log"
        until(lambda: b"serving on" in log.read_bytes(), process, log)
        running = Gateway(process, re.search(r"serving on ([^\s\"]+)", log.read_text())[1], home)
        until(lambda: answers(f"{running.url}/health/ready"), process, log)
        yield running


@contextmanager
def started(home: Path, models: Mapping[str, Any], **sections: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The same from its very start, before it is ready for anything."""
    words = ["serve", "--config", str(write_config(home, models, **sections))]
    with (home / "gateway.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *words], stdout=output, stderr=subprocess.STDOUT, cwd=PROJECT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def gateway_beside(home: Path, models: Mapping[str, Any], **sections: Any) -> AsyncIterator[Gateway]:
    """The same, started and stopped in a thread."""
    block = gateway_process(home, models, **sections)
    running = await asyncio.to_thread(block.__enter__)
    try:
        yield running
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


def write_config(home: Path, models: Mapping[str, Any], **sections: Any) -> Path:
    settings = {
        "listen": {"port": 0},
        "database": database_url(home),
        "journal": {"folder": f"{home}/journal"},
        # So that a worker which is gone is soon known to be, and one on a slow machine is not taken for it.
        "health": {"interval_s": 1, "timeout_s": 20},
        "models": dict(models),
        **sections,
    }
    path = home / "tidegate.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def command(home: Path, *arguments: str) -> Any:
    """What an administration command prints as JSON. It is run in this process: starting another takes a second. It is
    run in a thread, since a command has an event loop of its own, and the test may have one.
    """
    words = [*arguments, "--config", str(home / "tidegate.yaml"), "--format", "json"]
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(CliRunner().invoke, app, words, catch_exceptions=False).result()
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def database_url(home: Path) -> str:
    return f"sqlite:///{home}/tidegate.db"


def key_before_start(home: Path, tenant: str) -> str:
    """A key in the database of a gateway that is still to be started there."""
    with Store.open(database_url(home)) as store:
        return Subjects(store).create_key(tenant).secret


def rows_in(home: Path) -> list[UsageRow]:
    """All usage rows in the database, in the order of their calls."""
    connection = sqlite3.connect(home / "tidegate.db")
    connection.row_factory = sqlite3.Row
    found = connection.execute("SELECT * FROM usage ORDER BY time_ms, call_id").fetchall()
    connection.close()
    return [convert(dict(row), UsageRow, strict=False) for row in found]


def until(
    true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, within_s: float = LIMIT_S
) -> None:
    """Wait for something that another process does and tells nobody."""
    ends_s = time.monotonic() + within_s
    while not true():
        assert process.poll() is None, f"ended with {process.returncode}:\n{log.read_text()[-4000:]}"
        assert time.monotonic() < ends_s, f"not within {within_s} s:\n{log.read_text()[-4000:]}"
        time.sleep(0.02)


def answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    try:
        return get(url, headers)[0] == 200
    except (OSError, HTTPException):
        return False


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Status and body. The standard library's client: it costs next to nothing, and tests ask again and again."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("GET", parts.path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()
