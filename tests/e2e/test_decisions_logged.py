"""The decision log of a gateway that serves: a line for each call, whatever became of it, and nothing that is secret."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
from pool import INSTANT, PRICE, Gateway, endpoint, gateway

from gateway.decision_log import Line
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import httpx2

MASTER = "sk-master-0123456789"
PROVIDER_KEY = "sk-provider-0123456789"
PROMPT = "When is high water at the harbour of Oban?"
CALL: dict[str, Any] = {
    "model": "llama-small",
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 5,
}


async def logged(home: Path, workers: Sequence[SimWorker], sample: float = 1.0, calls: int = 0) -> list[Line]:
    """The lines after a few calls of different fate, and so many plain ones."""
    file = home / "decisions.jsonl"
    near = endpoint(workers[0], "near", api_key=PROVIDER_KEY, cost={"input": 5, "output": 9})
    far = endpoint(workers[1], "far", region="us", cost={"input": 1, "output": 9})
    async with gateway(
        home,
        models={"llama": {"aliases": ["llama-small"], "price": PRICE, "endpoints": [near, far]}},
        auth={"master_key": MASTER},
        decision_log={"file": str(file), "sample": sample},
    ) as running:
        for _ in range(calls):
            assert (await post(running, CALL)).status_code == 200
        assert (await post(running, {**CALL, "stream": True, "service_tier": "flex"})).status_code == 200
        nobody = {"regions": ["mars"], "session_id": "nobody-knows-this"}
        assert (await post(running, {**CALL, "routing": nobody})).status_code == 400
        page = await running.metrics()
        await running.rows(least=calls + 2)
        keys = [running.key, MASTER, PROVIDER_KEY]
    text = file.read_text()
    for secret in (PROMPT, "Oban", "nobody-knows-this", *keys, *(key[-12:] for key in keys)):
        assert secret not in text
    assert page["tidegate_decision_log_dropped_total"] == 0
    return msgspec.json.Decoder(Line).decode_lines(text.encode())


async def post(gw: Gateway, call: dict[str, Any]) -> httpx2.Response:
    return await gw.http.post(
        "/v1/chat/completions", content=json.dumps(call), headers={"authorization": f"Bearer {gw.key}"}
    )


async def test_each_decision_is_kept_with_its_fate_and_makes_the_same_plan_again(tmp_path: Path):
    async with SimWorker(INSTANT) as near, SimWorker(INSTANT) as far:
        first, streamed, refused = await logged(tmp_path, (near, far), calls=1)
    assert [each.asked_model for each in (first, streamed, refused)] == ["llama-small"] * 3
    assert (first.tenant, first.api, first.stream, first.ended.outcome) == ("harbour", "chat", False, "ok")
    assert first.ended.endpoint == first.ranked[0][0]
    assert (streamed.decision.call.tier.name, streamed.stream) == ("flex", True)
    assert streamed.ended.ttft_s > 0
    assert streamed.ended.completion_tokens == 5
    assert (refused.ended.outcome, refused.ended.status, refused.ranked) == ("demands_not_met", 400, [])
    for line in (first, streamed, refused):
        again = line.decision.plan()
        assert [(each.endpoint.name, each.score_nano_usd) for each in again.ranked] == line.ranked
        assert [endpoint.name for endpoint, _ in line.decision.snapshot] != []


async def test_only_the_share_asked_for_is_kept(tmp_path: Path):
    async with SimWorker(INSTANT) as near, SimWorker(INSTANT) as far:
        # At a millionth, a line among these comes once in ten thousand runs.
        assert await logged(tmp_path, (near, far), sample=1e-6, calls=98) == []
