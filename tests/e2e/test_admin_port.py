"""Administration on an address of its own: what is there, and what is where calls are."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trustme
from failing import hosted
from gateway_process import LIMIT_S, answers, gateway_process, get, started, until
from pool import PRICE
from typer.testing import CliRunner

from gateway.cli import app

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway_process import Gateway

MODELS = {"llama": {"price": PRICE, "endpoints": [hosted(9, "nobody")]}}
MASTER = "master-key-of-the-tests"
ADMIN = {"listen": {"port": 0}}
KEYS = {"mode": "keys", "master_key": MASTER}
BY_KEY = {"authorization": f"Bearer {MASTER}"}
FOR_ADMINS = (
    "/admin/fleet",
    "/admin/nodes",
    "/admin/docs",
    "/admin/openapi.json",
    "/metrics",
    "/console/events",
)
FOR_CALLERS = ("/v1/models", "/v1/usage", "/console/own/keys")
EVERYWHERE = ("/health/live", "/health/ready", "/console")


def admin_url(gateway: Gateway) -> str:
    return re.search(r"for administrators on ([^\s\"]+)", gateway.log.read_text())[1]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    with gateway_process(home, MODELS, auth=KEYS, admin=ADMIN) as running:
        yield running


@pytest.fixture
def calls(gateway: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=LIMIT_S) as client:
        yield client


@pytest.fixture
def admin(gateway: Gateway) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=admin_url(gateway), timeout=LIMIT_S) as client:
        yield client


def code_of(reply: httpx2.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def status(client: httpx2.Client, path: str) -> int:
    """Without its body, which may have no end."""
    with client.stream("GET", path, headers=BY_KEY) as reply:
        return reply.status_code


def test_what_administrators_use_is_on_their_address_alone(calls: httpx2.Client, admin: httpx2.Client):
    for path in FOR_ADMINS:
        assert status(admin, path) == 200, path
    for path in FOR_ADMINS[:-1]:
        refused = calls.get(path, headers=BY_KEY)
        assert code_of(refused) == (404, "unknown_url"), path
        assert "administration has an address of its own" in refused.json()["error"]["message"]
    # Below /console, whatever is not known is the page.
    assert calls.get("/console/events", headers=BY_KEY).headers["content-type"].startswith("text/html")
    for path in ("/admin/explain", "/admin/nodes/a/drain"):
        assert code_of(calls.post(path, headers=BY_KEY, json={})) == (404, "unknown_url"), path


def test_what_callers_use_is_where_calls_are_alone(calls: httpx2.Client, admin: httpx2.Client):
    assert code_of(calls.post("/v1/chat/completions", headers=BY_KEY, json={})) == (
        400,
        "missing_required_parameter",
    )
    for path in ("/v1/chat/completions", "/v1/chat/completions?a=b", "/v1/completions", "/v1/embeddings"):
        assert code_of(admin.post(path, headers=BY_KEY, json={})) == (404, "unknown_url"), path
    for path in FOR_CALLERS[:-1]:
        assert status(calls, path) == 200, path
        assert code_of(admin.get(path, headers=BY_KEY)) == (404, "unknown_url"), path


def test_probes_and_the_console_are_on_both(calls: httpx2.Client, admin: httpx2.Client):
    for path in EVERYWHERE:
        assert (calls.get(path).status_code, admin.get(path).status_code) == (200, 200), path


def log_in(client: httpx2.Client, key: str) -> httpx2.Response:
    return client.post("/console/login", json={"key": key})


def test_administrators_log_in_on_their_address_and_tenants_where_calls_are(
    gateway: Gateway, calls: httpx2.Client, admin: httpx2.Client
):
    tenants, reads = gateway.new_key("harbour"), gateway.command("admin-keys", "create", "--role", "read")[0]
    known = {"authorization": f"Bearer {reads['key']}"}
    until(lambda: answers(f"{admin_url(gateway)}/admin/left", known), gateway.process, gateway.log)
    assert log_in(admin, reads["key"]).json()["role"] == "read"
    assert code_of(log_in(admin, tenants)) == (403, "admin_key_required")
    assert log_in(admin, MASTER).json()["role"] == "admin"

    for key in (MASTER, reads["key"]):
        assert code_of(log_in(calls, key)) == (401, "invalid_api_key")
    assert log_in(calls, tenants).json()["tenant"] == "harbour"
    assert [key["tenant"] for key in calls.get("/console/own/keys").json()["data"]] == ["harbour"]
    assert calls.get("/v1/usage").status_code == 200


def test_an_administrators_session_is_none_where_calls_are(calls: httpx2.Client, admin: httpx2.Client):
    """Browsers send cookies to all ports of a host."""
    log_in(admin, MASTER)
    cookie = {"cookie": f"tidegate-session={admin.cookies['tidegate-session']}"}
    assert admin.get("/console/session").json()["role"] == "admin"
    assert calls.get("/console/session", headers=cookie).json()["role"] is None


def test_commands_are_told_where_to_ask(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    (port,) = re.findall(r":(\d+)$", admin_url(gateway))
    file = gateway.config.read_text().replace("listen:\n    port: 0", f"listen:\n    port: {port}", 1)
    (tmp_path / "tidegate.yaml").write_text(file)
    done = CliRunner().invoke(app, ["nodes", "list", "--json", "--key", MASTER])
    assert (done.exit_code, [row["name"] for row in json.loads(done.stdout)]) == (0, []), done.output
    done = CliRunner().invoke(app, ["top", "--once", "--json", "--key", MASTER])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["nodes", "list", "--url", gateway.url, "--key", MASTER])
    assert done.exit_code == 1
    assert "administration has an address of its own" in done.stderr


def test_without_keys_administration_is_on_its_address_alone_and_slow_clients_are_closed_on_both(
    tmp_path: Path,
):
    sections: dict[str, Any] = {"auth": {"mode": "none"}, "timeouts": {"request_head_s": 1}}
    with (
        gateway_process(tmp_path, MODELS, admin=ADMIN, **sections) as gateway,
        httpx2.Client(base_url=gateway.url, timeout=LIMIT_S) as calls,
        httpx2.Client(base_url=admin_url(gateway), timeout=LIMIT_S) as admin,
    ):
        assert admin.get("/admin/fleet").status_code == 200
        assert admin.get("/console/session").json()["role"] == "admin"
        for path in ("/admin/fleet", "/console", "/console/session"):
            assert code_of(calls.get(path)) == (404, "unknown_url"), path
        for url in (gateway.url, admin_url(gateway)):
            at = httpx2.URL(url)
            with socket.create_connection((at.host, at.port), timeout=LIMIT_S) as slow:
                slow.sendall(b"GET /health/live HTTP/1.1\r\nhost: a\r\n")
                assert slow.recv(100) == b""


def test_as_many_may_be_connected_to_each(tmp_path: Path):
    limits = {"client_connections": 2}
    with gateway_process(tmp_path, MODELS, auth=KEYS, admin=ADMIN, limits=limits) as gateway:
        at = httpx2.URL(gateway.url)
        held = [socket.create_connection((at.host, at.port), timeout=LIMIT_S) for _ in range(3)]
        assert b" 503 " in held[2].recv(100)
        with httpx2.Client(base_url=admin_url(gateway), timeout=LIMIT_S) as admin:
            assert admin.get("/metrics").status_code == 200
        for each in held:
            each.close()


def test_both_show_the_servers_certificate_unless_administration_has_its_own(tmp_path: Path):
    authority = trustme.CA()
    files: dict[str, Any] = {}
    for name in ("api.example", "admin.example"):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        files[name] = {"cert_file": f"{tmp_path}/{name}.crt", "key_file": f"{tmp_path}/{name}.key"}
    for own, shown in ((None, "api.example"), (files["admin.example"], "admin.example")):
        home = tmp_path / shown
        home.mkdir()
        assert asyncio.run(_names_shown(home, authority, files["api.example"], own)) == ["api.example", shown]


async def _names_shown(home: Path, authority: trustme.CA, tls: Any, own: Any) -> list[str]:
    """What the certificates of both addresses are for."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.check_hostname = False
    sections = {"auth": KEYS, "server": {"tls": tls}, "admin": {**ADMIN, "tls": own}}
    found = []
    log = home / "gateway.log"
    with started(home, MODELS, **sections) as process:
        await asyncio.to_thread(until, lambda: "serving on" in log.read_text(), process, log)
        for pattern in (r"serving on https://([^:]+):(\d+)", r"administrators on https://([^:]+):(\d+)"):
            host, port = re.search(pattern, log.read_text()).groups()
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            ((_, name),) = writer.get_extra_info("peercert")["subjectAltName"]
            found.append(name)
            writer.write(b"GET /health/live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert b'{"status":"ok"}' in await reader.read()
            writer.close()
    return found


def logged(gateway: Gateway, words: str, times: int) -> None:
    until(lambda: gateway.log.read_text().count(words) == times, gateway.process, gateway.log)


def test_several_processes_have_both_and_lose_neither_with_one_of_them(tmp_path: Path):
    sections: dict[str, Any] = {"auth": {"mode": "none"}, "server": {"workers": 2}, "admin": ADMIN}
    with gateway_process(tmp_path, MODELS, **sections) as gateway:
        at = admin_url(gateway)
        assert "by 2 processes" in gateway.log.read_text()
        dead = [int(pid) for pid in re.findall(r"is ready \(pid (\d+)\)", gateway.log.read_text())]
        for died in (1, 2):
            os.kill(dead.pop(0), signal.SIGKILL)
            logged(gateway, "has ended", died)
            # While it is gone, and when there is another.
            for _ in range(20):
                assert (get(f"{at}/health/live")[0], get(f"{gateway.url}/health/live")[0]) == (200, 200)
            logged(gateway, "is ready (pid", 2 + died)
        assert "tidegate_" in get(f"{at}/metrics")[1]
        assert get(f"{gateway.url}/metrics")[0] == 404
        assert gateway.ended(signal.SIGTERM) == 0
    assert not answers(f"{at}/health/live")


def test_a_second_address_that_is_taken_is_said_in_a_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = {"listen": {"port": other.getsockname()[1]}}
        with started(tmp_path, MODELS, auth=KEYS, admin=listen) as process:
            assert process.wait(LIMIT_S) == 1
    assert (tmp_path / "gateway.log").read_text().startswith("cannot listen on 127.0.0.1:")
