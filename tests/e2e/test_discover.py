"""Workers that the gateway finds by itself: by the addresses of a name, and by Kubernetes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from failing import QUICK, ask
from kubernetes_api import TOKEN, KubernetesApi, pod
from pool import PRICE, gateway, until

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from pathlib import Path

    from pool import Gateway

MASTER = "sk-master-0123456789"


def found_by(discover: dict[str, Any]) -> dict[str, Any]:
    more = {"model": "sim", "region": "eu", "cost": {"input": 0.5, "output": 1}}
    return {"llama": {"price": PRICE, "endpoints": [], "discover": [{**discover, **more}]}}


async def states(gw: Gateway) -> dict[str, str]:
    reply = await gw.http.get("/admin/nodes", headers={"authorization": f"Bearer {MASTER}"})
    return {each["name"]: each["state"] for each in reply.json()["nodes"]}


async def are_in(gw: Gateway, **expected: str) -> None:
    async def they_are() -> bool:
        now = await states(gw)
        return now.keys() == expected.keys() and all(now[name] in expected[name] for name in expected)

    await until(they_are)


async def test_each_address_of_a_name_is_a_worker(tmp_path: Path):
    async with SimWorker(QUICK) as worker:
        models = found_by({"dns": {"host": "localhost", "port": worker.port}})
        async with gateway(tmp_path, models=models, auth={"master_key": MASTER}) as gw:
            name = f"127.0.0.1:{worker.port}"

            async def serves() -> bool:
                return (await states(gw)).get(name) in ("serving", "ramping")

            await until(serves)
            headers, _ = await ask(gw.client())
            assert headers["x-tidegate-endpoint"] == name
            row = (await gw.rows())[-1]
            assert row.cost_nano_usd == row.prompt_tokens * 500 + row.completion_tokens * 1000


async def test_pods_of_a_service_are_workers_and_one_that_terminates_drains(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    # Pods of their own ports, which takes a slice each: here they have one address.
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two, KubernetesApi() as api:
        await api.put("s1", one.port, pod("pod-1"))
        kubernetes = {"service": "vllm", "namespace": "pool", "port": "http", "api": api.url}
        models = found_by({"kubernetes": {**kubernetes, "token_file": str(token)}})
        async with gateway(tmp_path, models=models, auth={"master_key": MASTER}) as gw:
            there = "serving ramping"
            await are_in(gw, **{"pod-1": there})
            client = gw.client()
            assert (await ask(client))[0]["x-tidegate-endpoint"] == "pod-1"
            await api.put("s2", two.port, pod("pod-2"))
            await are_in(gw, **{"pod-1": there, "pod-2": there})
            await api.put("s1", one.port, pod("pod-1", ready=False, serving=True, terminating=True))
            await are_in(gw, **{"pod-1": "draining", "pod-2": there})
            for _ in range(3):
                assert (await ask(client))[0]["x-tidegate-endpoint"] == "pod-2"
            await api.delete("s1")
            await are_in(gw, **{"pod-2": there})
