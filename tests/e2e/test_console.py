"""The console over HTTP, without a browser: sessions, what each of them may, its files, and its events."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest_asyncio
from pool import HELLO, INSTANT, LIMIT_S, NO_TLS, PRICE, Gateway, endpoint, gateway, until

from gateway.admin_keys import AdminKeys
from gateway.console.session import COOKIE
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MASTER = "sk-master-0123456789"


@pytest_asyncio.fixture
async def gw(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with SimWorker(INSTANT) as worker:
        async with gateway(tmp_path, worker, auth={"master_key": MASTER}) as running:
            yield running


class Browser:
    """What a browser does with a console's page: it keeps the cookie, and sends the token with changes."""

    def __init__(self, gw: Gateway, *, stays: bool = False) -> None:
        """One that `stays` is not closed with the gateway."""
        self.http = httpx2.AsyncClient(base_url=gw.url, timeout=LIMIT_S, verify=NO_TLS)
        self.session: dict[str, Any] = {}
        if not stays:
            gw._stack.push_async_callback(self.http.aclose)

    async def log_in(self, key: str) -> httpx2.Response:
        reply = await self.http.post("/console/login", json={"key": key})
        if reply.status_code == 200:
            self.session = reply.json()
        return reply

    async def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {} if method == "GET" else {"x-console-token": self.session["token"]}
        return await self.http.request(method, path, headers=headers, **more)


def admin_key(gw: Gateway, role: Any = "admin") -> tuple[str, str]:
    """Secret and id."""
    made = AdminKeys(gw.store).create("ada", role)
    return made.secret, made.record.id


async def logged_in(gw: Gateway, key: str) -> Browser:
    """Once the gateway has seen the key."""
    browser = Browser(gw)

    async def admitted() -> bool:
        # As administration has it: logins that fail are bounded.
        if key == gw.key:
            return True
        reply = await gw.http.get("/admin/tenants", headers={"authorization": f"Bearer {key}"})
        return reply.status_code == 200

    await until(admitted)
    assert (await browser.log_in(key)).status_code == 200
    return browser


async def test_an_administrator_logs_in_and_changes_things_with_no_key_in_sight(gw: Gateway):
    browser = await logged_in(gw, admin_key(gw)[0])
    assert browser.session["role"] == "admin"
    made = await browser.ask("POST", "/admin/keys", json={"tenant": "acme"})
    assert made.status_code == 201
    reply = await gw.client(made.json()["key"]).chat.completions.create(**HELLO)
    assert reply.choices
    audit = (await browser.ask("GET", "/admin/audit")).json()["data"]
    assert audit[0]["action"] == "key.create"
    assert audit[0]["actor"].startswith("adm_")


async def test_the_cookie_is_for_this_site_alone_and_for_no_script(gw: Gateway):
    browser = Browser(gw)
    line = (await browser.log_in(MASTER)).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(line.split("; "))
    assert "Secure" not in line
    behind_tls = await browser.http.post(
        "/console/login", json={"key": MASTER}, headers={"x-forwarded-proto": "https"}
    )
    assert "Secure" in behind_tls.headers["set-cookie"]


async def test_a_change_without_the_token_or_from_another_origin_is_refused(gw: Gateway):
    browser = await logged_in(gw, MASTER)
    body = {"name": "acme"}
    assert (await browser.http.post("/admin/tenants", json=body)).json()["error"]["code"] == "cross_site"
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        sent = {"x-console-token": browser.session["token"], **headers}
        assert (await browser.http.post("/admin/tenants", json=body, headers=sent)).status_code == 403
        assert (
            await browser.http.post("/console/login", json={"key": MASTER}, headers=headers)
        ).status_code == 403


async def test_a_session_ends_with_its_key(gw: Gateway):
    secret, key_id = admin_key(gw)
    browser = await logged_in(gw, secret)
    AdminKeys(gw.store).revoke(key_id)

    async def over() -> bool:
        return (await browser.ask("GET", "/admin/tenants")).status_code == 401

    await until(over)
    assert (await browser.ask("GET", "/console/session")).json()["role"] is None


async def test_logging_out_takes_the_cookie_back(gw: Gateway):
    browser = await logged_in(gw, MASTER)
    assert COOKIE in browser.http.cookies
    await browser.ask("POST", "/console/logout")
    assert COOKIE not in browser.http.cookies
    assert (await browser.ask("GET", "/admin/tenants")).status_code == 401


async def test_whoever_may_only_look_changes_nothing(gw: Gateway):
    browser = await logged_in(gw, admin_key(gw, "read")[0])
    assert browser.session["role"] == "read"
    assert (await browser.ask("GET", "/admin/fleet")).status_code == 200
    refused = await browser.ask("POST", "/admin/keys", json={"tenant": "acme"})
    assert refused.json()["error"]["code"] == "admin_role_required"


async def test_a_tenant_sees_its_own_and_nothing_else(gw: Gateway):
    browser = await logged_in(gw, gw.key)
    assert (browser.session["role"], browser.session["tenant"]) == ("tenant", "harbour")
    await gw.new_key("somebody-else")
    keys = (await browser.ask("GET", "/console/own/keys")).json()["data"]
    assert {key["tenant"] for key in keys} == {"harbour"}
    assert (await browser.ask("GET", "/v1/usage")).status_code == 200
    for path in ("/admin/fleet", "/admin/tenants", "/admin/config", "/admin/calls", "/console/events"):
        assert (await browser.ask("GET", path)).json()["error"]["code"] == "admin_key_required", path


async def test_a_session_makes_no_calls(gw: Gateway):
    browser = await logged_in(gw, gw.key)
    assert (await browser.ask("POST", "/v1/chat/completions", json=HELLO)).status_code == 401


async def test_guessing_keys_ends_soon(gw: Gateway):
    browser = Browser(gw)
    answers = [(await browser.log_in(f"tga-{number}")).status_code for number in range(12)]
    assert answers == [401] * 10 + [429] * 2
    assert (await browser.log_in(MASTER)).headers["retry-after"]


async def test_pages_are_safe_and_their_files_are_kept_for_ever(gw: Gateway):
    page = await gw.http.get("/console/keys")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["cache-control"] == "no-cache"
    again = await gw.http.get("/console/fleet", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    script = page.text.partition('type="module" src="')[2].partition('"')[0]
    file = await gw.http.get(script)
    assert file.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in file.headers["cache-control"]
    for reply in (page, file):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-frame-options"] == "DENY"
    other_version = script.replace("/assets/", "/assets/0")
    assert (await gw.http.get(other_version)).status_code == 404


async def events(browser: Browser, path: str) -> AsyncIterator[tuple[str, Any]]:
    async with browser.http.stream("GET", path) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in reply.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)


async def test_a_call_is_seen_as_it_happens_with_its_plan_and_its_attempts(gw: Gateway):
    browser = await logged_in(gw, MASTER)
    seen: dict[str, Any] = {}
    async with asyncio.timeout(LIMIT_S):
        calling = None
        async for name, data in events(browser, "/console/events?calls=true"):
            if calling is None:
                calling = asyncio.create_task(gw.client().chat.completions.create(**HELLO))
            for call in data if name == "calls" else ():
                seen = call
            if seen.get("state") == "ended":
                break
        await calling
    assert (seen["tenant"], seen["outcome"], seen["endpoint"]) == ("harbour", "ok", "worker-1")
    assert [each["endpoint"] for each in seen["candidates"]] == ["worker-1"]
    assert [(each["endpoint"], each["state"]) for each in seen["attempts"]] == [("worker-1", "over")]
    assert "High water" not in json.dumps(seen)
    assert seen["completion_tokens"] == 5


async def test_the_fleet_is_told_live_and_a_revoked_key_ends_it(gw: Gateway):
    secret, key_id = admin_key(gw)
    browser = await logged_in(gw, secret)
    names = []
    async with asyncio.timeout(LIMIT_S):
        async for name, data in events(browser, "/console/events?fleet=true"):
            names.append(name)
            if name == "fleet" and names.count("fleet") == 1:
                assert [each["name"] for each in data["endpoints"]] == ["worker-1"]
                AdminKeys(gw.store).revoke(key_id)
    assert names[-1] == "over"


async def test_a_gateway_that_ends_does_not_wait_for_those_who_look(tmp_path: Path):
    async with SimWorker(INSTANT) as worker:
        async with gateway(
            tmp_path, worker, auth={"master_key": MASTER}, timeouts={"drain_s": LIMIT_S}
        ) as gw:
            browser = Browser(gw, stays=True)
            await browser.log_in(MASTER)
            stream = events(browser, "/console/events?fleet=true")
            await anext(stream)
            rest = asyncio.create_task(_all(stream))
            started_s = asyncio.get_running_loop().time()
        await rest
        await browser.http.aclose()
        assert asyncio.get_running_loop().time() - started_s < LIMIT_S / 2


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in stream]


async def test_ended_calls_are_listed_the_latest_first_page_by_page(gw: Gateway):
    for _ in range(3):
        await gw.client().chat.completions.create(**HELLO)
    await gw.rows(3)
    headers = {"authorization": f"Bearer {MASTER}"}
    first = (await gw.http.get("/admin/calls?most=2", headers=headers)).json()
    second = (await gw.http.get(f"/admin/calls?most=2&before={first['before']}", headers=headers)).json()
    listed = [*first["data"], *second["data"]]
    assert [call["id"] for call in listed] == sorted((call["id"] for call in listed), reverse=True)
    assert (len(listed), second["before"]) == (3, None)
    none = (await gw.http.get("/admin/calls?failed=true", headers=headers)).json()
    assert none["data"] == []
    assert (await gw.http.get("/admin/calls?before=x", headers=headers)).status_code == 400


async def test_the_configuration_is_shown_without_its_secrets(tmp_path: Path):
    async with SimWorker(INSTANT) as worker:
        secrets = {"auth": {"master_key": MASTER}}
        served = endpoint(worker, "w", api_key="sk-of-the-worker")
        async with gateway(
            tmp_path, models={"llama": {"price": PRICE, "endpoints": [served]}}, **secrets
        ) as gw:
            reply = await gw.http.get("/admin/config", headers={"authorization": f"Bearer {MASTER}"})
    shown = reply.json()
    assert shown["valid"]
    assert shown["config"]["shared_state"] == "memory://"
    assert shown["config"]["models"]["llama"]["endpoints"][0]["name"] == "w"
    assert MASTER not in reply.text
    assert "sk-of-the-worker" not in reply.text


async def test_what_is_left_of_a_tenants_limits_is_there_for_administrators(gw: Gateway):
    await gw.new_key("acme", requests_per_min=10)
    headers = {"authorization": f"Bearer {MASTER}"}
    key = (await gw.http.get("/admin/keys?tenant=acme", headers=headers)).json()["data"][0]["id"]
    left = (await gw.http.get(f"/admin/left?key={key}", headers=headers)).json()
    assert [(each["name"], each["limit"]) for each in left["limits"]] == [("requests_per_min", 10)]
    assert (await gw.http.get("/admin/left?tenant=acme", headers=headers)).json()["limits"] == []


async def test_the_fleet_has_every_endpoint_with_what_it_has_done(gw: Gateway):
    await gw.client().chat.completions.create(**HELLO)
    await gw.rows()
    headers = {"authorization": f"Bearer {MASTER}"}
    fleet = (await gw.http.get("/admin/fleet", headers=headers)).json()
    [worker] = fleet["endpoints"]
    assert (worker["name"], worker["state"], worker["kind"]) == ("worker-1", "serving", "worker")
    assert worker["done"]["calls"] == 1
    assert worker["prefill_tokens_per_s"] > 0
