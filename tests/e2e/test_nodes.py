"""Nodes that register over HTTP, renew their leases, drain and leave; and what an operator sees of them."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import QUICK, ask
from held import HeldWorker
from pool import PRICE, Gateway, endpoint, gateway, until
from typer.testing import CliRunner

from gateway.cli import app
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

MASTER = "sk-master-0123456789"
NOBODY = {"llama": {"price": PRICE, "endpoints": []}}
AUTH = {"master_key": MASTER}


def said(worker: Any, name: str = "node-1", **more: object) -> dict[str, object]:
    return {"name": name, "url": worker.url, "models": {"llama": "sim"}, **more}


async def admin(gw: Gateway, method: str, path: str = "", body: Any = None, key: str = MASTER) -> Any:
    """Status and answer."""
    headers = {"authorization": f"Bearer {key}"}
    reply = await gw.http.request(method, f"/admin/nodes{path}", json=body, headers=headers)
    return reply.status_code, reply.json() if reply.content else None


async def shown(gw: Gateway, name: str) -> dict[str, Any] | None:
    status, answer = await admin(gw, "GET", f"/{name}")
    return answer["workers"][0] if status == 200 and answer["workers"] else None


async def is_in(gw: Gateway, name: str, *states: str) -> None:
    async def it_is() -> bool:
        worker = await shown(gw, name)
        return worker is not None and worker["state"] in states

    await until(it_is)


async def is_gone(gw: Gateway, name: str) -> None:
    async def it_is() -> bool:
        return await shown(gw, name) is None

    await until(it_is)


async def stay_ended(gw: Gateway, name: str, ending: str) -> None:
    """Wait until that is on record, which it is a moment after the node has gone."""

    async def it_is() -> bool:
        return (await admin(gw, "GET"))[1]["histories"][name]["endings"] == {ending: 1}

    await until(it_is)


async def test_a_node_that_registers_is_probed_and_then_serves(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        client = gw.client()
        with pytest.raises(openai.InternalServerError) as nobody:
            await ask(client)
        assert (nobody.value.code, nobody.value.status_code) == ("no_endpoint_available", 503)
        more = {"gpu": "rtx-4090", "region": "eu", "cost": {"input": 0.5, "output": 1}}
        status, lease = await admin(gw, "POST", "", said(worker, **more))
        assert (status, lease) == (
            201,
            {"name": "node-1", "lease_s": 30.0, "heartbeat_s": 10.0, "leaves_in_s": None, "drained": False},
        )
        await is_in(gw, "node-1", "serving", "ramping")
        headers, _ = await ask(client)
        assert headers["x-tidegate-endpoint"] == "node-1"
        worker_shown = await shown(gw, "node-1")
        assert worker_shown["context_tokens"] == worker.spec.max_model_len
        assert (worker_shown["source"], worker_shown["region"]) == ("registered", "eu")
        assert 0 < worker_shown["lease_left_s"] <= 30
        row = (await gw.rows())[-1]
        assert row.cost_nano_usd == row.prompt_tokens * 500 + row.completion_tokens * 1000
        assert (await gw.http.get("/health/ready")).status_code == 200
        assert (await admin(gw, "POST", "", said(worker, **more)))[0] == 200


async def test_a_node_without_the_model_gets_nothing_and_the_reason_is_shown(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        await admin(gw, "POST", "", said(worker, models=["llama"]))

        async def told() -> bool:
            worker_shown = await shown(gw, "node-1")
            return "does not serve llama, but sim" in (worker_shown["reason"] or "")

        await until(told)
        assert (await shown(gw, "node-1"))["state"] == "probing"
        page = await gw.metrics()
        name = 'tidegate_probes_total{endpoint="node-1",model="llama",outcome="model_missing"}'
        assert page[name] >= 1


async def test_a_lease_that_is_not_renewed_ends_and_heartbeats_renew_it(tmp_path: Path):
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two:
        async with gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
            await admin(gw, "POST", "", said(one, "kept", lease_s=60))
            await admin(gw, "POST", "", said(two, "lost", lease_s=1))
            assert (await admin(gw, "POST", "/kept/heartbeat"))[0] == 200
            status, lease = await admin(gw, "PUT", "/kept/heartbeat")
            assert (status, lease["lease_s"], lease["heartbeat_s"]) == (200, 60.0, 20.0)
            await is_gone(gw, "lost")
            assert await shown(gw, "kept") is not None
            status, answer = await admin(gw, "PUT", "/lost/heartbeat")
            assert (status, answer["error"]["code"]) == (404, "node_not_found")
            await stay_ended(gw, "lost", "lease_lost")
            assert (await admin(gw, "GET"))[1]["histories"]["kept"]["endings"] == {}


async def test_a_node_that_is_removed_finishes_what_it_has(tmp_path: Path):
    async with HeldWorker() as held, SimWorker(QUICK) as other:
        config = {"models": {"llama": {"price": PRICE, "endpoints": [endpoint(held, "configured")]}}}
        async with gateway(tmp_path, **config, auth=AUTH) as gw:
            await admin(gw, "POST", "", said(other))
            await is_in(gw, "node-1", "serving", "ramping")
            client = gw.client()
            call = asyncio.create_task(
                ask(
                    client, user="a", extra_body={"routing": {"only": ["configured"]}}, service_tier="default"
                )
            )
            await until(lambda: _reached(held, "a"))
            assert (await admin(gw, "POST", "/configured/drain"))[0] == 200
            for _ in range(3):
                headers, _ = await ask(client)
                assert headers["x-tidegate-endpoint"] == "node-1"
            status, answer = await admin(gw, "DELETE", "/configured")
            assert (status, answer["error"]["code"]) == (409, "node_conflict")
            held.answer("a")
            assert (await call)[0]["x-tidegate-endpoint"] == "configured"
            assert (await shown(gw, "configured"))["state"] == "draining"
            assert (await admin(gw, "DELETE", "/configured/drain"))[0] == 200
            assert (await shown(gw, "configured"))["state"] == "serving"
            assert (await admin(gw, "DELETE", "/node-1"))[0] == 204
            await is_gone(gw, "node-1")
            assert (await admin(gw, "DELETE", "/node-1"))[0] == 404


async def _reached(held: HeldWorker, name: str) -> bool:
    return name in held.reached


async def test_a_node_that_drains_finishes_what_it_has_hears_so_and_stays_out(tmp_path: Path):
    slow = WorkerSpec(decode_s_per_token=0.01)
    async with SimWorker(slow) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        await admin(gw, "POST", "", said(worker))
        await is_in(gw, "node-1", "serving", "ramping")
        client = gw.client()
        stream = await client.chat.completions.create(
            model="llama",
            messages=[{"role": "user", "content": "High water?"}],
            max_tokens=100,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await anext(stream)
        status, lease = await admin(gw, "POST", "/node-1/drain", {"within_s": 3600})
        assert (status, lease["drained"]) == (200, False)
        assert 3500 < lease["leaves_in_s"] <= 3600
        pieces = [piece async for piece in stream]
        assert pieces[-1].choices[0].finish_reason == "length"

        async def hears_so() -> bool:
            return (await admin(gw, "PUT", "/node-1/heartbeat"))[1]["drained"]

        await until(hears_so)
        assert (await shown(gw, "node-1"))["state"] == "draining"
        with pytest.raises(openai.InternalServerError, match="is draining"):
            await ask(client, service_tier="default")
        assert (await admin(gw, "DELETE", "/node-1"))[0] == 204
        await is_gone(gw, "node-1")
        await stay_ended(gw, "node-1", "drained")


async def test_a_node_that_gives_notice_gets_what_is_done_in_time_and_is_gone_then(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        await admin(gw, "POST", "", said(worker))
        await is_in(gw, "node-1", "serving", "ramping")
        assert (await admin(gw, "POST", "/node-1/preempt", {"in_s": 600}))[0] == 200
        assert (await shown(gw, "node-1"))["state"] in ("leaving", "ramping")
        client = gw.client()
        assert (await ask(client))[0]["x-tidegate-endpoint"] == "node-1"
        assert (await admin(gw, "POST", "/node-1/preempt", {"in_s": 0.5}))[0] == 200
        await is_gone(gw, "node-1")


async def test_nodes_outlive_a_restart_of_the_gateway_but_not_those_with_a_key(tmp_path: Path):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as other:
        async with gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
            await admin(gw, "POST", "", said(worker))
            await admin(gw, "POST", "", said(other, "with-key", api_key="worker-key-0123456789"))
            assert await shown(gw, "with-key") is not None
        assert b"worker-key" not in (tmp_path / "tidegate.db").read_bytes()
        async with gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
            await is_in(gw, "node-1", "serving", "ramping")
            assert await shown(gw, "with-key") is None
            assert (await ask(gw.client()))[0]["x-tidegate-endpoint"] == "node-1"
            histories = (await admin(gw, "GET"))[1]["histories"]
            assert (histories["node-1"]["stays"], histories["node-1"]["endings"]) == (1, {})
            assert histories["with-key"]["endings"] == {"gateway_stopped": 1}


async def test_who_drains_or_has_given_notice_does_so_after_a_restart_of_the_gateway_as_well(tmp_path: Path):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as keyed, SimWorker(QUICK) as other:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(other, "configured")]}}
        with_key = said(keyed, "with-key", api_key="worker-key-0123456789")
        async with gateway(tmp_path, models=models, auth=AUTH) as gw:
            await admin(gw, "POST", "", said(worker))
            await admin(gw, "POST", "", with_key)
            await admin(gw, "POST", "/configured/drain", {"within_s": 3600})
            await admin(gw, "POST", "/with-key/drain", {"within_s": 3600})
            await admin(gw, "POST", "/node-1/preempt", {"in_s": 3600})
        async with gateway(tmp_path, models=models, auth=AUTH, ready=False) as gw:
            configured = await shown(gw, "configured")
            assert configured["state"] == "draining"
            assert 3000 < configured["leaves_in_s"] <= 3600
            await is_in(gw, "node-1", "leaving")
            assert 3000 < (await shown(gw, "node-1"))["leaves_in_s"] <= 3600
            assert (await ask(gw.client()))[0]["x-tidegate-endpoint"] == "node-1"
            await admin(gw, "POST", "", with_key)  # which it has to, as its key is not written down
            assert (await shown(gw, "with-key"))["state"] == "draining"
            assert (await admin(gw, "DELETE", "/configured/drain"))[0] == 200
            assert (await admin(gw, "DELETE", "/with-key"))[0] == 204
        async with gateway(tmp_path, models=models, auth=AUTH) as gw:
            assert (await shown(gw, "configured"))["state"] == "serving"
            await admin(gw, "POST", "", with_key)
            await is_in(gw, "with-key", "serving", "ramping")
            assert (await shown(gw, "node-1"))["leaves_in_s"] is not None


@pytest.mark.parametrize("own", [False, True], ids=["by an operator", "by itself"])
async def test_a_drain_by_an_operator_outlasts_the_node_and_its_own_ends_when_it_registers(
    own: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
):
    async with SimWorker(QUICK) as worker:
        async with gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
            await admin(gw, "POST", "", said(worker, lease_s=3600))
            await is_in(gw, "node-1", "serving", "ramping")
            await admin(gw, "POST", "/node-1/drain", {"within_s": 3600, "own": own})
            await admin(gw, "POST", "", said(worker, lease_s=3600))
            after = ("serving", "ramping") if own else ("draining",)
            await is_in(gw, "node-1", *after)
            await admin(gw, "POST", "/node-1/drain", {"within_s": 3600, "own": own})
        async with gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
            assert (await shown(gw, "node-1"))["state"] == "draining"
            await admin(gw, "POST", "", said(worker, lease_s=1))
            await is_gone(gw, "node-1")  # nothing is heard of it
            await stay_ended(gw, "node-1", "lease_lost" if own else "drained")
            await admin(gw, "POST", "", said(worker, lease_s=3600))
            await is_in(gw, "node-1", *after)


async def test_a_drain_of_a_node_that_is_gone_can_be_taken_back(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        await admin(gw, "POST", "", said(worker))
        await admin(gw, "POST", "/node-1/drain", {"within_s": 3600})
        await admin(gw, "POST", "", said(worker, lease_s=1))
        await is_gone(gw, "node-1")
        assert (await admin(gw, "DELETE", "/node-1/drain"))[0] == 200
        assert (await admin(gw, "DELETE", "/node-1/drain"))[0] == 404
        await admin(gw, "POST", "", said(worker, lease_s=3600))
        await is_in(gw, "node-1", "serving", "ramping")


async def test_a_drain_goes_with_a_node_that_is_removed(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=NOBODY, auth=AUTH, ready=False) as gw:
        await admin(gw, "POST", "", said(worker))
        await admin(gw, "POST", "/node-1/drain", {"within_s": 3600})
        assert (await admin(gw, "DELETE", "/node-1"))[0] == 204
        await admin(gw, "POST", "", said(worker))
        await is_in(gw, "node-1", "serving", "ramping")


async def test_a_deadline_that_has_passed_while_the_gateway_was_down_has_passed(tmp_path: Path):
    async with SimWorker(QUICK) as worker, SimWorker(QUICK) as other:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(other, "configured")]}}
        async with gateway(tmp_path, models=models, auth=AUTH) as gw:
            await admin(gw, "POST", "", said(worker))
            await admin(gw, "POST", "/configured/drain", {"within_s": 0.01})
            await admin(gw, "POST", "/node-1/preempt", {"in_s": 3600})
        with sqlite3.connect(tmp_path / "tidegate.db") as connection:
            connection.execute("UPDATE node_departures SET leaves_ms = leaves_ms - 7200000")
        connection.close()
        async with gateway(tmp_path, models=models, auth=AUTH, ready=False) as gw:
            assert (await shown(gw, "configured"))["state"] == "draining"
            await is_gone(gw, "node-1")
            await stay_ended(gw, "node-1", "preempted")


async def test_what_a_node_says_is_checked_and_names_are_taken_once(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, worker, auth=AUTH) as gw:
        for body, status, code, param in [
            (said(worker, models=["lama"]), 400, "invalid_value", "models.lama"),
            (said(worker, trust="blind"), 400, "invalid_value", "trust"),
            (said(worker, "worker-1"), 409, "node_conflict", "name"),
        ]:
            got, answer = await admin(gw, "POST", "", body)
            assert (got, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)
        assert (await admin(gw, "POST", "/nobody/drain"))[0] == 404
        assert (await admin(gw, "POST", "/worker-1/preempt"))[1]["error"]["message"] == "in_s: is required"
        assert (await admin(gw, "GET", "", key=gw.key))[0] == 403
        assert (await admin(gw, "POST", "", said(worker), key=gw.key))[0] == 403
        described = (await gw.http.get("/admin/openapi.json")).json()["paths"]
        assert {"get", "post"} <= described["/admin/nodes"].keys()


async def test_the_commands_list_drain_and_remove(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, worker, auth=AUTH) as gw:

        async def run(*words: str) -> Any:
            arguments = ["nodes", *words, "--url", f"{gw.url}/v1", "--key", MASTER]
            return await asyncio.to_thread(CliRunner().invoke, app, arguments)

        await admin(gw, "POST", "", said(worker))
        await is_in(gw, "node-1", "serving", "ramping")
        rows = {row["name"]: row for row in json.loads((await run("list", "--format", "json")).stdout)}
        assert (rows["worker-1"]["source"], rows["node-1"]["source"]) == ("config", "registered")
        assert rows["node-1"]["mean_stay_s"] is not None
        assert "worker-1" in (await run("list")).stdout
        assert (await run("drain", "worker-1", "--within", "600")).exit_code == 0
        assert (await shown(gw, "worker-1"))["state"] == "draining"
        assert "is draining" in (await run("list")).stdout
        assert (await run("drain", "worker-1", "--cancel")).exit_code == 0
        assert (await shown(gw, "worker-1"))["state"] == "serving"
        detail = json.loads((await run("show", "node-1")).stdout)
        assert len(detail["history"]["hours"]) == 24
        assert (await run("remove", "node-1")).exit_code == 0
        refused = await run("remove", "worker-1")
        assert refused.exit_code == 1
        assert "answered 409: worker-1 is not registered" in refused.output
