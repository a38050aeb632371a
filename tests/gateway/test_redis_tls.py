"""TLS with Redis, against a real one with a certificate of a throw-away CA, which asks for ours as well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trustme
import yaml
from config_files import MINIMAL
from limit_stores import LIMIT, ONE, OTHER, budget, granted
from redis import Redis
from test_redis_failover import said_until_heard
from typer.testing import CliRunner

from gateway.cli import app
from gateway.gossip import RedisLink
from gateway.limit_store import LimitStoreAway
from gateway.redis_store import RedisStore
from loadtest import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from config_files import Problems


class Secured(redis_server.Server):
    """By TLS alone, at `localhost`."""

    def __init__(self, path: str, folder: Path) -> None:
        authority = trustme.CA()
        self.authority, self.cert, self.key = folder / "ca.pem", folder / "tls.crt", folder / "tls.key"
        authority.cert_pem.write_to_path(str(self.authority))
        issued = authority.issue_cert("localhost")
        self.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(self.key))
        super().__init__(path)
        words = f"--port 0 --tls-port {self.port} --tls-cert-file {self.cert} --tls-key-file {self.key}"
        self._options = (*words.split(), "--tls-ca-cert-file", str(self.authority))
        self.ours = f"ssl_certfile={self.cert}&ssl_keyfile={self.key}"
        self.url = self.at(f"{self.ours}&ssl_ca_certs={self.authority}")

    def at(self, options: str, host: str = "localhost") -> str:
        return f"rediss://{host}:{self.port}/0?{options}"

    def client(self) -> Redis:
        return Redis.from_url(self.url, decode_responses=True)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    program = redis_server.program()
    if program is None:
        pytest.skip("Redis is not installed: there is no redis-server on PATH")
    server = Secured(program, tmp_path_factory.mktemp("tls"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def another_authority(tmp_path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    return tmp_path / "other.pem"


async def test_limits_and_gossip_go_by_tls_with_a_ca_of_ones_own(secured: Secured):
    store, link = RedisStore(secured.url, settling_s=0), RedisLink(secured.url)
    heard: list[bytes] = []
    async with link.receiving(heard.append):
        assert (await granted(store, ONE, budget(need=9))).lease == 9
        assert (await granted(store, OTHER, budget(need=LIMIT - 8))).lease == 0
        await said_until_heard(link, heard)
    await store.close()


@pytest.fixture(params=["another CA", "the system's CAs", "another name", "no certificate of ours"])
def refused(
    request: pytest.FixtureRequest, secured: Secured, another_authority: Path
) -> tuple[str, str, str]:
    """A URL, what is wrong with it, and what is advised."""
    right, unknown = f"ssl_ca_certs={secured.authority}", "certificate verify failed: "
    return {
        "another CA": (secured.at(f"ssl_ca_certs={another_authority}"), unknown, "?ssl_ca_certs=FILE"),
        "the system's CAs": (secured.at(secured.ours), unknown, "?ssl_ca_certs=FILE"),
        "another name": (secured.at(right, "127.0.0.1"), "IP address mismatch", "name it as its certificate does"),
        "no certificate of ours": (secured.at(right), "", "ssl_certfile"),
    }[request.param]  # fmt: skip


async def test_who_cannot_be_trusted_is_away_and_it_is_said_why(refused: tuple[str, str, str]):
    url, problem, _ = refused
    store = RedisStore(url)
    with pytest.raises(LimitStoreAway) as failure:
        await store.exchange(ONE, 0, [])
    assert problem in str(failure.value)
    await store.close()


def doctor(folder: Path, url: str) -> dict[str, str]:
    """What it finds first of Redis."""
    (folder / "tidegate.yaml").write_text(MINIMAL + yaml.safe_dump({"shared_state": url}))
    words = ["doctor", "--config", f"{folder}/tidegate.yaml", "--format", "json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    return next(each for each in json.loads(done.stdout)["findings"] if each["about"] == "shared_state")


def test_doctor_says_what_to_do_about_it(tmp_path: Path, refused: tuple[str, str, str]):
    url, problem, advice = refused
    found = doctor(tmp_path, url)
    assert found["level"] == "error"
    assert problem in found["found"]
    assert advice in found["advice"]


def test_doctor_asks_it_by_tls(tmp_path: Path, secured: Secured):
    assert doctor(tmp_path, secured.url)["level"] == "ok"
    in_the_clear = doctor(tmp_path, f"redis://localhost:{secured.port}/0")
    assert (in_the_clear["level"], "rediss://" in in_the_clear["advice"]) == ("error", True)


def test_doctor_finds_one_that_does_not_speak_tls(tmp_path: Path, redis: redis_server.Server):
    found = doctor(tmp_path, f"rediss://localhost:{redis.port}/0")
    assert (found["level"], "else say redis://" in found["advice"]) == ("error", True)


def test_files_that_cannot_be_loaded_are_found_before_it_starts(
    problems: Problems, secured: Secured, tmp_path: Path
):
    gone, text = tmp_path / "gone.pem", tmp_path / "text.pem"
    text.write_text("certainly no certificate")
    for options, said in {
        f"ssl_ca_certs={gone}": "ssl_ca_certs cannot be read: No such file or directory",
        f"ssl_ca_certs={text}": "ssl_ca_certs should hold a certificate in PEM",
        f"ssl_certfile={gone}": "ssl_certfile or ssl_keyfile cannot be read: No such file or directory",
        f"ssl_certfile={secured.cert}": "ssl_certfile and ssl_keyfile should hold a certificate and its key in PEM",
        f"ssl_certfile={secured.cert}&ssl_keyfile={text}": "ssl_certfile and ssl_keyfile should hold",
        f"ssl_keyfile={secured.key}": "ssl_keyfile is the key of ssl_certfile, which is missing",
    }.items():
        assert problems(MINIMAL + f"shared_state: {secured.at(options)}\n")["shared_state"].startswith(said)
