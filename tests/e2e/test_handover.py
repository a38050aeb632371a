"""Streams of a worker that has to leave are finished elsewhere, and nobody sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from failing import MESSAGES
from pool import PRICE, Gateway, endpoint, gateway, until

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

MASTER = "sk-master-0123456789"
TOKENS = 150
SLOW = WorkerSpec(decode_s_per_token=0.02)
LONG: dict[str, Any] = {
    "messages": MESSAGES,
    "max_tokens": TOKENS,
    "stream": True,
    "extra_body": {"ignore_eos": True, "routing": {"trust": "verified"}},
}


async def said(gw: Gateway, model: str, begun: asyncio.Event) -> tuple[str, str]:
    """Text and finish of a stream; `begun` is set at its first chunk."""
    stream = await gw.client().chat.completions.create(model=model, **LONG)
    pieces, finish = [], ""
    async for piece in stream:
        begun.set()
        if piece.choices:
            pieces.append(piece.choices[0].delta.content or "")
            finish = piece.choices[0].finish_reason or finish
    return "".join(pieces), finish


async def tell(gw: Gateway, path: str, body: dict[str, Any]) -> None:
    reply = await gw.http.post(
        f"/admin/nodes/{path}", json=body, headers={"authorization": f"Bearer {MASTER}"}
    )
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(("what", "body"), [("drain", {"within_s": 1}), ("preempt", {"in_s": 1})])
async def test_a_stream_of_a_worker_that_has_to_leave_goes_on_at_another(
    tmp_path: Path, what: str, body: dict[str, Any]
):
    async with SimWorker(SLOW) as leaving, SimWorker(WorkerSpec(decode_s_per_token=0)) as staying:
        first = endpoint(leaving, "leaving", trust="verified", cost={"input": 0, "output": 0})
        other = endpoint(staying, "staying", trust="verified", cost={"input": 9, "output": 9})
        models = {
            "llama": {"price": PRICE, "endpoints": [first, other]},
            "same": {"price": PRICE, "endpoints": [other]},
        }
        async with gateway(tmp_path, models=models, auth={"master_key": MASTER}) as gw:
            begun = asyncio.Event()
            call = asyncio.create_task(said(gw, "llama", begun))
            await begun.wait()
            await tell(gw, f"leaving/{what}", body)
            disturbed = await call
            assert disturbed == await said(gw, "same", asyncio.Event())
            assert disturbed[1] == "length"

            async def left() -> bool:
                return not leaving.engine.running

            await until(left)
            rows = await gw.rows(2)
            assert [row.outcome for row in rows] == ["ok", "ok"]
            assert rows[0].completion_tokens == TOKENS
            page = await gw.metrics()
            assert sum(n for name, n in page.items() if name.startswith("tidegate_resumes_total{")) == 1
            failed = [
                name for name in page if name.startswith("tidegate_endpoint_ejections_total{") and page[name]
            ]
            assert failed == []
