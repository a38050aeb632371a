"""What the gateway tells of its plans: in a header of a reply, where a call asks for it."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pool import HELLO, INSTANT, PRICE, TENANT, Gateway, endpoint, gateway

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MASTER = "sk-master-0123456789"
TOLD = {"explain_to": [TENANT]}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers() -> AsyncIterator[list[SimWorker]]:
    async with SimWorker(INSTANT) as dear, SimWorker(INSTANT) as cheap:
        yield [dear, cheap]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(workers: list[SimWorker], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    dear = endpoint(workers[0], "dear", region="eu", cost={"input": 5, "output": 9})
    cheap = endpoint(workers[1], "cheap", region="us", cost={"input": 1, "output": 9})
    models = {"llama": {"price": PRICE, "endpoints": [dear, cheap]}}
    async with gateway(tmp_path_factory.mktemp("gateway"), models=models, auth=TOLD) as running:
        yield running


async def plan_header(gw: Gateway, body: dict[str, Any], **headers: str) -> tuple[int, dict[str, Any] | None]:
    """The status of a call, and the plan in the reply's headers."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    reply = await gw.http.post(
        "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {gw.key}", **headers}
    )
    plan = reply.headers.get("x-tidegate-plan")
    return reply.status_code, None if plan is None else json.loads(plan)


@pytest.mark.parametrize("stream", ["", "true"])
async def test_a_reply_carries_its_plan_where_the_call_asks_for_it(gw: Gateway, stream: str):
    status, plan = await plan_header(gw, {**HELLO, "stream": bool(stream)}, x_tidegate_explain="1")
    assert status == 200
    assert sorted(candidate["endpoint"] for candidate in plan["candidates"]) == ["cheap", "dear"]
    assert plan["rejected"] == []
    status, plan = await plan_header(gw, {**HELLO, "stream": bool(stream), "routing": {"explain": True}})
    assert (status, len(plan["candidates"])) == (200, 2)


@pytest.mark.parametrize("headers", [{}, {"x_tidegate_explain": "0"}, {"x_tidegate_only": "dear"}])
async def test_a_reply_carries_no_plan_otherwise(gw: Gateway, headers: dict[str, str]):
    assert await plan_header(gw, HELLO, **headers) == (200, None)


async def test_an_error_that_nobody_can_serve_the_call_carries_the_plan_too(gw: Gateway):
    status, plan = await plan_header(gw, HELLO, x_tidegate_explain="true", x_tidegate_regions="mars")
    assert status == 400
    assert plan["candidates"] == []
    rejected = {each["endpoint"]: each["filter"] for each in plan["rejected"]}
    assert rejected == {"dear": "region", "cheap": "region"}


async def test_an_error_that_nobody_can_serve_it_now_carries_the_plan_too(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gone = SimpleNamespace(url="http://{}:{}".format(*taken.getsockname()))
    async with gateway(tmp_path, gone, ready=False, auth=TOLD) as running:
        codes = [await plan_header(running, HELLO, x_tidegate_explain="1") for _ in range(2)]
    status, plan = codes[-1]
    assert (status, plan["candidates"]) == (503, [])
    (rejected,) = plan["rejected"]
    assert (rejected["endpoint"], rejected["filter"]) == ("worker-1", "availability")
    assert rejected["retry_after_s"] > 0


async def test_what_is_no_yes_or_no_is_an_error_that_names_the_header(gw: Gateway):
    reply = await gw.http.post(
        "/v1/chat/completions",
        json=HELLO,
        headers={"authorization": f"Bearer {gw.key}", "x-tidegate-explain": "perhaps"},
    )
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "x-tidegate-explain")


NOT_ALLOWED = (403, "explain_not_allowed")


@pytest.mark.parametrize(
    ("auth", "of_tenant", "of_another", "of_master"),
    [
        ({}, NOT_ALLOWED, NOT_ALLOWED, (200, True)),
        (TOLD, (200, True), NOT_ALLOWED, (200, True)),
        ({"explain_to": ["*"]}, (200, True), (200, True), (200, True)),
        ({"mode": "none"}, (200, True), (200, True), (200, True)),
    ],
    ids=["nobody else", "a tenant", "everybody", "this machine"],
)
async def test_only_who_may_know_what_endpoints_cost_sees_plans(
    workers: list[SimWorker],
    tmp_path: Path,
    auth: dict[str, Any],
    of_tenant: Any,
    of_another: Any,
    of_master: Any,
):
    expected = {"of_tenant": of_tenant, "of_another": of_another, "of_master": of_master}
    async with gateway(tmp_path, *workers, auth={"master_key": MASTER, **auth}) as running:
        another = running.key if "mode" in auth else await running.new_key("another")
        keys = {"of_tenant": running.key, "of_another": another, "of_master": MASTER}
        for whose, key in keys.items():
            for asked in ({"json": HELLO}, {"json": {**HELLO, "routing": {"explain": True}}}):
                explains = {} if "routing" in asked["json"] else {"x-tidegate-explain": "1"}
                headers = {"authorization": f"Bearer {key}", **explains}
                reply = await running.http.post("/v1/chat/completions", headers=headers, **asked)
                error = reply.json().get("error")
                told = error["code"] if error else "x-tidegate-plan" in reply.headers
                assert (reply.status_code, told) == expected[whose]
            headers = {"authorization": f"Bearer {key}", "x-tidegate-explain": "0"}
            reply = await running.http.post("/v1/chat/completions", headers=headers, json=HELLO)
            assert (reply.status_code, "x-tidegate-plan" in reply.headers) == (200, False)
