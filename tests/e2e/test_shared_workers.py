"""Workers that are called past the gateway as well: what they say of those calls counts as load."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from openai import AsyncOpenAI
from pool import LIMIT_S, gateway, until

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

MASTER = "sk-master-0123456789"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "High water?"}], "max_tokens": 8}
OTHERS = 12


async def test_calls_go_to_the_worker_that_others_do_not_use(tmp_path: Path):
    spec = WorkerSpec(max_num_seqs=64)
    sections = {
        "auth": {"master_key": MASTER},
        "health": {"interval_s": 3600, "timeout_s": 60, "scrape_interval_s": 0.05},
    }
    async with SimWorker(spec) as shared, SimWorker(spec) as quiet:
        async with gateway(tmp_path, shared, quiet, **sections) as gw:

            async def candidates() -> list[dict[str, Any]]:
                admin = {"authorization": f"Bearer {MASTER}"}
                reply = await gw.http.post("/admin/explain", json={**ASKED, "model": "llama"}, headers=admin)
                return reply.json()["candidates"]

            async def others() -> float:
                return (await gw.metrics()).get(
                    'tidegate_endpoint_foreign_running{endpoint="worker-1",model="llama"}', 0
                )

            async def others_there() -> bool:
                return await others() == OTHERS

            one, other = await candidates()
            assert one | {"endpoint": ""} == other | {"endpoint": ""}
            past = AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)
            async with past:
                endless = {"model": "sim", "stream": True, "extra_body": {"ignore_eos": True}}
                streams = await asyncio.gather(
                    *(
                        past.chat.completions.create(**{**ASKED, **endless, "max_tokens": 30_000})
                        for _ in range(OTHERS)
                    )
                )
                await until(others_there)
                for _ in range(4):
                    first, second = await candidates()
                    assert (first["endpoint"], second["endpoint"]) == ("worker-2", "worker-1")
                    assert second["ms_per_token"] > first["ms_per_token"]
                    assert second["imposed_s"] > first["imposed_s"] == 0
                reply = await gw.client().chat.completions.with_raw_response.create(model="llama", **ASKED)
                assert reply.headers["x-tidegate-endpoint"] == "worker-2"
                for stream in streams:
                    await stream.close()

            async def alone() -> bool:
                return [
                    each["imposed_s"] for each in await candidates() if each["endpoint"] == "worker-1"
                ] == [0]

            await until(alone)
