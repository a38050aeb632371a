from __future__ import annotations

import asyncio
import logging
import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from gateway.auth import Key, Keyring, follow
from gateway.policy import Policies, Policy
from gateway.store import Store
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@asynccontextmanager
async def following(keyring: Keyring, store: Store, every_s: float = 0.05):
    task = asyncio.create_task(follow(store, keyring, every_s=every_s))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  what is waited for happens in another process
            await asyncio.sleep(0.01)


def test_a_key_is_found_by_its_secret_and_says_whose_it_is(store: Store):
    created = Subjects(store).create_key("acme", "ci")
    other = Subjects(store).create_key("zeta")
    keyring = Keyring.read(store)
    assert keyring.find(created.secret.encode()) == Key(created.record.id, "acme", "ci")
    assert keyring.find(other.secret.encode()) == Key(other.record.id, "zeta")


def test_what_is_no_key_is_not_found(store: Store):
    secret = Subjects(store).create_key("acme").secret.encode()
    keyring = Keyring.read(store, master_key="m" * 20)
    for wrong in (b"", secret[:-1], secret + b"x", secret.upper(), b"tg-", b"\xff" * 100_000, b"m" * 19):
        assert keyring.find(wrong) is None


def test_a_revoked_key_is_not_read(store: Store):
    created = Subjects(store).create_key("acme")
    Subjects(store).revoke_key(created.record.id)
    assert Keyring.read(store).find(created.secret.encode()) is None


def test_the_master_key_admits_as_a_tenant_of_its_own_and_is_not_stored(store: Store, tmp_path: Path):
    keyring = Keyring.read(store, master_key="the-master-key-of-this-test")
    assert keyring.find(b"the-master-key-of-this-test") == Key("master", "master")
    Subjects(store).create_key("acme")
    assert keyring.refresh(store)
    assert keyring.find(b"the-master-key-of-this-test") == Key("master", "master")
    assert all(b"the-master-key" not in file.read_bytes() for file in tmp_path.iterdir())


def test_a_key_comes_with_what_bounds_it_of_its_own_and_its_tenant(store: Store):
    flex = Policy(tiers=frozenset({"flex"}))
    policies = Policies({"acme": flex, "master": flex}, lambda name: (name,))
    trusting, free = Policy(least_trust="provider"), Subjects(store).create_key("zeta")
    bound, bounded = Subjects(store).create_key("acme"), Subjects(store).create_key("acme", policy=trusting)
    keyring = Keyring.read(store, "the-master-key-of-this-test", policies)
    found = [keyring.find(created.secret.encode()).policy for created in (free, bound, bounded)]
    assert found == [None, flex, flex.narrowed(trusting)]
    assert keyring.find(b"the-master-key-of-this-test").policy == flex
    late = Subjects(store).create_key("zeta", policy=trusting)
    keyring.refresh(store)
    assert keyring.find(late.secret.encode()).policy == trusting


@pytest.mark.parametrize("master_key", [None, ""])
def test_without_a_master_key_an_empty_one_admits_nobody(store: Store, master_key: str | None):
    keyring = Keyring.read(store, master_key)
    assert keyring.find(b"") is None
    assert len(keyring) == 0


def test_the_same_key_has_another_digest_in_another_database(tmp_path: Path):
    keyrings = []
    for name in ("a", "b"):
        with Store.open(f"sqlite:///{tmp_path}/{name}.db") as store:
            keyrings.append((store.key_secret(), Subjects(store).create_key("acme").secret))
    assert keyrings[0] != keyrings[1]


async def test_keys_made_and_revoked_by_another_process_count_within_two_seconds(store: Store, url: str):
    keyring = Keyring.read(store)
    program = (
        "import sys; from gateway.store import Store; from gateway.subjects import Subjects\n"
        f"with Store.open({url!r}) as store:\n"
        "    created = Subjects(store).create_key('acme')\n"
        "    print(created.record.id, created.secret, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    Subjects(store).revoke_key(created.record.id)\n"
        "    print('revoked', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    async with following(keyring, store, every_s=1.0):
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        key_id, secret = (await other.stdout.readline()).split()
        began = time.monotonic()
        await until(lambda: keyring.find(secret) is not None)
        assert time.monotonic() - began < 2
        assert keyring.find(secret) == Key(key_id.decode(), "acme")
        other.stdin.write(b"\n")
        assert await other.stdout.readline() == b"revoked\n"
        began = time.monotonic()
        await until(lambda: keyring.find(secret) is None)
        assert time.monotonic() - began < 2
        other.stdin.write(b"\n")
        assert await other.wait() == 0


async def test_while_the_database_is_away_the_last_known_keys_go_on_and_it_is_said_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "gateway.auth")
    secret = Subjects(store).create_key("acme").secret.encode()
    keyring = Keyring.read(store)
    with sqlite3.connect(tmp_path / "tidegate.db", isolation_level=None) as connection:
        connection.execute("ALTER TABLE meta RENAME TO gone")
        async with following(keyring, store, every_s=0.01):
            await until(lambda: len(caplog.records) > 0)
            await asyncio.sleep(0.1)
            assert keyring.find(secret) is not None
            connection.execute("ALTER TABLE gone RENAME TO meta")
            await until(lambda: len(caplog.records) > 1)
    connection.close()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "no such table: meta" in caplog.text
