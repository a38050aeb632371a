"""A real PostgreSQL for tests and benches: Debian's, started in a folder of its own, and gone with it.

It listens on a socket in that folder and on no port, so that runs beside each other cannot meet. Unless asked to, it
does not wait for the disk: nothing here outlives the machine.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNPRIVILEGED = "nobody"
"""Who runs it where we are root, which PostgreSQL refuses."""
_START_S = 60
_FORGETFUL = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def programs() -> Path | None:
    """The folder of the newest PostgreSQL here."""
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(debian, key=lambda path: float(path.parts[-3]))
    found = str(newest[-1]) if newest else shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


class Server:
    """A server that can be stopped and started anew, with what it holds. A database of it is a URL."""

    def __init__(self, bin_folder: Path, folder: Path, settings: dict[str, str]) -> None:
        given = [word for setting, value in settings.items() for word in ("-c", f"{setting}={value}")]
        self._command = [str(bin_folder / "postgres"), "-D", str(folder / "data"), *given]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise LookupError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            process = subprocess.Popen(self._command, stderr=log, cwd=self._folder, **_rights())  # noqa: S603 - Debian's program
        self._process, ends_s = process, time.monotonic() + _START_S
        while not self.answers():
            if process.poll() is not None or time.monotonic() > ends_s:
                raise RuntimeError(f"PostgreSQL did not start: {(self._folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Whoever is connected is thrown out; SIGQUIT: at once, what is to be repaired is repaired at the next start."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def new_database(self, like: str | None = None) -> str:
        """The URL of a new database: an empty one, or a copy of the one at the URL `like`, which nobody may be using."""
        name = f"t_{secrets.token_hex(6)}"
        template = "template0" if like is None else conninfo_to_dict(like)["dbname"]
        with self._connected() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._url(name)

    def drop(self, url: str) -> None:
        """Whoever still uses it is thrown out."""
        with self._connected() as connection:
            name = conninfo_to_dict(url)["dbname"]
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def answers(self) -> bool:
        try:
            self._connected().close()
        except psycopg.OperationalError:
            return False
        return True

    def _connected(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._url("postgres"), autocommit=True)

    def _url(self, name: str) -> str:
        return f"postgresql://tidegate@/{name}?host={self._folder}"


@contextmanager
def running(bin_folder: Path, *, durable: bool = False) -> Iterator[Server]:
    """A server while the block lasts; `durable` where a commit is to wait for the disk, as in earnest."""
    with tempfile.TemporaryDirectory(prefix="postgresql-") as name:
        folder, rights = Path(name), _rights()
        if rights:
            os.chown(folder, rights["user"], rights["group"])
        # The C locale: what is seen then does not depend on where it runs.
        words = f"{bin_folder}/initdb -D {folder}/data -U tidegate -A trust -E UTF8 --locale=C --no-sync"
        made = subprocess.run(  # noqa: S603 - Debian's program
            words.split(), capture_output=True, text=True, check=False, cwd=folder, **rights
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed: {made.stderr}")
        settings = {"listen_addresses": "", "unix_socket_directories": str(folder)}
        settings |= {} if durable else _FORGETFUL
        server = Server(bin_folder, folder, settings)
        try:
            server.start()
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # there is nothing to keep


def _rights() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(_UNPRIVILEGED)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
