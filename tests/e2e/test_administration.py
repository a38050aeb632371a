"""Tenants, projects and keys as administrators make and change them while the gateway runs, and what calls see of it."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pool import Gateway, gateway
from typer.testing import CliRunner

from gateway.cli import app
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "sk-master-0123456789"
HELLO = {"model": "llama", "messages": [{"role": "user", "content": "High water?"}], "max_tokens": 2}
SEEN_WITHIN_S = 20
"""It takes half a second, and longer where the machine is busy."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker:
        auth, listen = {"master_key": MASTER}, {"trusted_proxies": ["127.0.0.1/32"]}
        home = tmp_path_factory.mktemp("gateway")
        async with gateway(home, worker, auth=auth, listen=listen) as running:
            yield running


async def ask(gw: Gateway, method: str, path: str, body: Any = None, key: str = MASTER) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"}
    reply = await gw.http.request(method, f"/admin{path}", json=body, headers=headers)
    return reply.status_code, reply.json()


async def made(gw: Gateway, path: str, **body: Any) -> dict[str, Any]:
    status, answer = await ask(gw, "POST", path, body)
    assert status == 201, answer
    return answer


async def called(gw: Gateway, key: str, path: str = "chat/completions", **headers: str) -> tuple[int, str]:
    """Status and, where it is an error, its code."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given["authorization"] = f"Bearer {key}"
    if path == "models":
        reply = await gw.http.get("/v1/models", headers=given)
    else:
        reply = await gw.http.post(f"/v1/{path}", json=HELLO, headers=given)
    return reply.status_code, "" if reply.status_code == 200 else reply.json()["error"]["code"]


async def until_called(gw: Gateway, key: str, expected: tuple[int, str]) -> None:
    async with asyncio.timeout(SEEN_WITHIN_S):
        while await called(gw, key) != expected:  # noqa: ASYNC110  what is waited for is time
            await asyncio.sleep(0.05)


async def test_a_key_made_over_http_is_good_at_once_and_its_calls_are_its_projects_and_customers(gw: Gateway):
    await made(gw, "/tenants", name="acme", metadata={"crm": "4711"})
    await made(gw, "/tenants/acme/projects", name="web")
    key = await made(gw, "/keys", tenant="acme", project="web", name="ci")
    assert await called(gw, key["key"], x_tidegate_customer="c-1") == (200, "")
    row = (await gw.rows())[-1]
    assert (row.tenant, row.project, row.key_id, row.customer) == ("acme", "web", key["id"], "c-1")
    assert (await ask(gw, "GET", "/tenants/acme"))[1]["metadata"] == {"crm": "4711"}
    status, listed = await ask(gw, "GET", "/keys?tenant=acme&project=web")
    assert (status, [each["id"] for each in listed["data"]], listed["after"]) == (200, [key["id"]], None)
    assert "key" not in listed["data"][0]


async def test_a_policy_is_in_force_at_tenant_project_and_key_and_the_narrowest_holds(gw: Gateway):
    await made(gw, "/tenants", name="narrow", policy={"tiers": ["default", "flex"]})
    await made(gw, "/tenants/narrow/projects", name="p", policy={"apis": ["chat"]})
    key = await made(gw, "/keys", tenant="narrow", project="p", policy={"max_price": {"input": "0.000001"}})
    assert key["policy"] == {"max_price": {"input": "0.000001"}}
    status, plan = await ask(gw, "POST", "/explain", {"request": HELLO, "key": key["id"]})
    assert (status, plan["held_to"]) == (200, "tiers default, flex; APIs chat; input up to 1e-06")
    assert await called(gw, key["key"], "embeddings") == (400, "missing_required_parameter")
    assert await called(gw, key["key"], "completions") == (400, "missing_required_parameter")
    assert await called(gw, key["key"], "models") == (403, "api_not_allowed")
    await ask(gw, "PATCH", f"/keys/{key['id']}", {"policy": None})
    await ask(gw, "PATCH", "/tenants/narrow", {"policy": {"tiers": ["flex"]}})
    status, plan = await ask(gw, "POST", "/explain", {"request": HELLO, "tenant": "narrow"})
    assert (plan["held_to"], plan["tier"]) == ("tiers flex", "flex")


async def test_keys_of_a_suspended_tenant_or_project_admit_nothing_until_it_is_resumed(gw: Gateway):
    await made(gw, "/tenants/late/projects", name="p")
    of_project = (await made(gw, "/keys", tenant="late", project="p"))["key"]
    other = (await made(gw, "/keys", tenant="late"))["key"]
    await ask(gw, "PATCH", "/tenants/late/projects/p", {"suspended": True})
    assert await called(gw, of_project) == (403, "tenant_suspended")
    assert await called(gw, other) == (200, "")
    status, tenant = await ask(gw, "PATCH", "/tenants/late", {"suspended": True})
    assert status == 200
    assert tenant["suspended"].endswith("Z")
    assert await called(gw, other) == await called(gw, other, "models") == (403, "tenant_suspended")
    await ask(gw, "PATCH", "/tenants/late", {"suspended": False})
    assert await called(gw, other) == (200, "")


async def test_a_rotated_key_is_good_with_both_secrets_until_the_old_one_ends_by_itself(gw: Gateway):
    old = await made(gw, "/keys", tenant="acme")
    status, new = await ask(gw, "POST", f"/keys/{old['id']}/rotate", {"overlap_s": 3})
    assert (status, new["id"]) == (200, old["id"])
    assert await called(gw, old["key"]) == await called(gw, new["key"]) == (200, "")
    await until_called(gw, old["key"], (401, "invalid_api_key"))
    assert await called(gw, new["key"]) == (200, "")
    status, newest = await ask(gw, "POST", f"/keys/{old['id']}/rotate", {"overlap_s": 0})
    assert await called(gw, new["key"]) == (401, "invalid_api_key")
    assert await called(gw, newest["key"]) == (200, "")


async def test_a_key_that_expires_ends_by_itself_and_none_is_made_that_is_over(gw: Gateway):
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 4))
    key = (await made(gw, "/keys", tenant="acme", expires=soon))["key"]
    await until_called(gw, key, (401, "invalid_api_key"))
    status, answer = await ask(gw, "POST", "/keys", {"tenant": "acme", "expires": "2020-01-01T00:00:00Z"})
    assert (status, answer["error"]["param"]) == (400, "expires")


async def test_a_key_bound_to_networks_is_good_from_there_alone_as_a_trusted_proxy_says(gw: Gateway):
    key = (await made(gw, "/keys", tenant="acme", policy={"networks": ["10.0.0.0/8"]}))["key"]
    refused = (403, "network_not_allowed")
    for path in ("chat/completions", "models"):
        assert await called(gw, key, path) == refused
        assert await called(gw, key, path, x_forwarded_for="10.1.2.3") == (200, "")
        assert await called(gw, key, path, x_forwarded_for="10.1.2.3, 192.0.2.1") == refused
    local = (await made(gw, "/keys", tenant="acme", policy={"networks": ["127.0.0.1"]}))["key"]
    assert await called(gw, local) == (200, "")


async def test_an_admin_key_may_do_what_its_role_says_and_make_no_call(gw: Gateway):
    admin, read = [await made(gw, "/admin-keys", role=role) for role in ("admin", "read")]
    for key in (admin["key"], read["key"]):
        assert (await ask(gw, "GET", "/tenants", key=key))[0] == 200
        assert (await ask(gw, "GET", "/nodes", key=key))[0] == 200
        assert (await ask(gw, "POST", "/explain", HELLO, key=key))[0] == 200
        assert await called(gw, key) == (401, "invalid_api_key")
    assert (await ask(gw, "POST", "/tenants", {"name": "by-admin"}, key=admin["key"]))[0] == 201
    for method, path, body in [
        ("POST", "/tenants", {"name": "by-reader"}),
        ("PATCH", "/tenants/acme", {"suspended": True}),
        ("POST", "/keys", {"tenant": "acme"}),
        ("POST", "/nodes", {}),
        ("DELETE", f"/admin-keys/{admin['id']}", None),
    ]:
        status, answer = await ask(gw, method, path, body, key=read["key"])
        assert (status, answer["error"]["code"]) == (403, "admin_role_required")
    assert (await ask(gw, "DELETE", f"/admin-keys/{read['id']}"))[0] == 200
    assert (await ask(gw, "GET", "/tenants", key=read["key"]))[0] == 401
    call_key = (await made(gw, "/keys", tenant="acme"))["key"]
    assert (await ask(gw, "GET", "/tenants", key=call_key))[0] == 403


async def test_the_audit_log_says_who_has_changed_what_from_where(gw: Gateway):
    admin = await made(gw, "/admin-keys", role="admin", name="ops")
    headers = {"authorization": f"Bearer {admin['key']}", "x-forwarded-for": "192.0.2.7"}
    await gw.http.post("/admin/tenants", json={"name": "audited"}, headers=headers)
    await ask(gw, "PATCH", "/tenants/audited", {"policy": {"budgets": {"day": "1.5"}}})
    status, log = await ask(gw, "GET", "/audit?tenant=audited&most=1")
    (newest,) = log["data"]
    assert (newest["actor"], newest["source"], newest["action"]) == ("master", "127.0.0.1", "tenant.change")
    assert (newest["before"], newest["after"]) == (
        {"policy": None},
        {"policy": {"budgets": {"day": 1_500_000_000}}},
    )
    status, log = await ask(gw, "GET", f"/audit?tenant=audited&before={log['before']}")
    assert [(each["actor"], each["source"]) for each in log["data"]] == [(admin["id"], "192.0.2.7")]
    assert (status, log["before"]) == (200, None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", "/tenants", {"name": "a b"}, 400, "invalid_value", "name"),
        ("POST", "/tenants", {"name": "harbour"}, 409, "name_taken", None),
        ("POST", "/tenants", {}, 400, "invalid_value", "name"),
        ("POST", "/tenants", {"name": "x", "polcy": {}}, 400, "invalid_value", "polcy"),
        ("GET", "/tenants/nobody", None, 404, "subject_not_found", None),
        ("POST", "/keys", {"tenant": "harbour", "project": "none"}, 404, "subject_not_found", None),
        ("DELETE", "/keys/key_nosuchkey", None, 404, "subject_not_found", None),
        (
            "PATCH",
            "/tenants/harbour",
            {"policy": {"models": ["lama"]}},
            400,
            "invalid_value",
            "policy.models",
        ),
        (
            "PATCH",
            "/tenants/harbour",
            {"policy": {"tiers": ["fast"]}},
            400,
            "invalid_value",
            "policy.tiers[0]",
        ),
        (
            "PATCH",
            "/tenants/harbour",
            {"policy": {"budgets": {"day": "0.0000000001"}}},
            400,
            "invalid_value",
            "policy.budgets.day",
        ),
        ("PATCH", "/tenants/harbour", {"metadata": {"x": "y" * 513}}, 400, "invalid_value", "metadata.x"),
        ("GET", "/keys?most=0", None, 400, "invalid_value", "most"),
    ],
)
async def test_what_cannot_be_done_is_an_error_in_the_usual_shape(
    gw: Gateway, method: str, path: str, body: Any, status: int, code: str, param: str | None
):
    got, answer = await ask(gw, method, path, body)
    assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)


async def test_a_body_that_is_no_json_is_told_so(gw: Gateway):
    headers = {"authorization": f"Bearer {MASTER}", "content-type": "application/json"}
    reply = await gw.http.post("/admin/tenants", content=b"{", headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


async def test_all_of_it_is_described(gw: Gateway):
    page = (await gw.http.get("/admin/docs")).text
    for route in ("POST /admin/tenants", "POST /admin/keys/{key}/rotate", "GET /admin/audit"):
        assert route in page
    assert "Most USD charged for calls of a day" in page


async def test_the_commands_do_the_same_at_a_running_gateway(gw: Gateway):
    def command(*words: str) -> Any:
        at = ["--url", gw.url, "--key", MASTER, "--format", "json"]
        done = CliRunner().invoke(app, [*words, *at], catch_exceptions=False)
        return json.loads(done.stdout) if done.exit_code == 0 else done.stderr

    def session() -> None:
        (tenant,) = command("tenants", "create", "from-afar", "--metadata", "crm=1", "--budget-day", "0.5")
        assert tenant["policy"] == {"budgets": {"day": "0.50"}}
        command("projects", "create", "p", "--tenant", "from-afar")
        (key,) = command("keys", "create", "--tenant", "from-afar", "--project", "p")
        keys.append(key["key"])
        assert [each["id"] for each in command("keys", "list", "--tenant", "from-afar")] == [key["id"]]
        (entry, *_) = command("audit", "--tenant", "from-afar", "--most", "1")
        assert (entry["actor"], entry["subject"]) == ("master", f"key:{key['id']}")
        assert "/admin/tenants answered 409" in command("tenants", "create", "from-afar")

    keys: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        await asyncio.get_running_loop().run_in_executor(thread, session)
    assert await called(gw, keys[0]) == (200, "")
