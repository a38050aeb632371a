"""What is done to hide churn from a client, as the decision log, headers, metrics and a replay tell it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec
from failing import MESSAGES, QUICK, model
from pool import endpoint, gateway, until
from resumed import CALL, CHAT
from test_lookout import SLOW, SPEEDY
from test_race import HANG, RARELY

from gateway.decision_log import Line
from gateway.replay import replay
from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2
    from pool import Gateway

MASTER = "sk-master-0123456789"
NEVER = 1e-9
"""Of the decisions that are no steps."""


class Both:
    """A gateway with a log over a cheap worker, which is asked first, and another one."""

    def __init__(self, home: Path, bad: SimWorker, good: SimWorker) -> None:
        self.file = home / "decisions.jsonl"
        bad_section = endpoint(bad, "bad", cost={"input": 1, "output": 1})
        served = model(bad_section, endpoint(good, "good", cost={"input": 2, "output": 2}))
        self.gateway = gateway(
            home,
            models={"llama": served},
            health=RARELY,
            auth={"master_key": MASTER},
            decision_log={"file": str(self.file), "sample": NEVER},
        )

    def lines(self) -> list[Line]:
        """Once the gateway has ended. Each makes the same plan again."""
        text = self.file.read_bytes()
        lines = msgspec.json.Decoder(Line).decode_lines(text)
        assert replay(text.splitlines()).same == len(lines)
        assert "content" not in text.decode()
        return lines


async def post(gw: Gateway, key: str = "", **more: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key or gw.key}"}
    if key:
        headers["x-tidegate-explain"] = "1"
    body = CALL | {"service_tier": "default"} | more
    return await gw.http.post(CHAT, content=json.dumps(body), headers=headers)


async def test_a_hedge_is_told_with_its_cause_its_end_and_its_price(tmp_path: Path):
    async with SimWorker() as bad, SimWorker(QUICK) as good:
        both = Both(tmp_path, bad, good)
        async with both.gateway as gw:
            bad.order(HANG)
            reply = await post(gw)
            told = 'hedge;cause=late;from="bad";to="good";outcome=won;tokens=0'
            assert reply.headers["x-tidegate-steps"] == told
            assert 'tidegate_hedges_total{model="llama",outcome="won"}' in await gw.metrics()
            await gw.rows()
    (line,) = both.lines()
    step = line.step
    assert (step.kind, step.cause, step.begun, step.taken, step.outcome) == (
        *("hedge", "late"),
        *("bad", "good", "won"),
    )
    assert 0 < step.at_s <= line.ended.duration_s
    assert step.expected_nano_usd > 0
    assert [share.endpoint for share in line.ended.shares if share.purpose == "hedge_lost"] == ["bad"]
    report = replay(both.file.read_bytes().splitlines())
    (steps,) = report.steps
    assert (steps.kind, steps.cause, steps.outcome, steps.steps) == ("hedge", "late", "won", 1)
    (wasted,) = report.wasted
    assert (wasted.cause, wasted.calls, wasted.nano_usd) == ("hedge_lost", 1, line.ended.waste_nano_usd)
    assert report.before.plans == 0


async def test_a_reply_in_one_piece_tells_of_the_resume_in_its_midst_and_whoever_may_see_prices_of_the_price(
    tmp_path: Path,
):
    # So slow that the reply is expected to take seconds, and is asked for as a stream.
    async with SimWorker(WorkerSpec(decode_s_per_token=0.01)) as bad, SimWorker(QUICK) as good:
        both = Both(tmp_path, bad, good)
        async with both.gateway as gw:
            bad.order(Fault("reset", after_chunks=9, count=1))
            asked = {"max_tokens": 400, "messages": MESSAGES, "stream": False}
            reply = await post(gw, MASTER, **asked)
            assert reply.json()["usage"]["completion_tokens"] == 400
            step, _, price = reply.headers["x-tidegate-steps"].rpartition(";usd=")
            assert step.startswith('resume;cause=upstream_broken;from="bad";to="good";outcome=tokens;tokens=')
            assert float(price) > 0
            await gw.rows()
    (line,) = both.lines()
    assert (line.step.kind, line.step.outcome, line.step.taken) == ("resume", "tokens", "good")
    assert line.step.tokens > 0
    assert [share.endpoint for share in line.ended.shares if share.purpose == "read_again"] == ["good"]


async def test_a_move_is_told_apart_from_what_breaks(tmp_path: Path):
    async with SimWorker(SPEEDY) as bad, SimWorker(SPEEDY) as good:
        both = Both(tmp_path, bad, good)
        async with both.gateway as gw:
            bad.order(SLOW)
            await post(gw, max_tokens=60)
            page = await gw.metrics()
            assert page['tidegate_resumes_total{cause="slow",model="llama",outcome="tokens"}'] == 1
            await gw.rows()
    (line,) = both.lines()
    step = line.step
    assert (step.kind, step.cause, step.begun, step.taken) == ("move", "slow", "bad", "good")
    assert step.outcome == "tokens"


async def test_a_hand_over_is_told_apart_from_what_breaks(tmp_path: Path):
    async with SimWorker(WorkerSpec(decode_s_per_token=0.1)) as bad, SimWorker(QUICK) as good:
        both = Both(tmp_path, bad, good)
        async with both.gateway as gw:
            asked = asyncio.create_task(post(gw))
            await until(lambda: runs(bad))
            body, headers = {"within_s": 1}, {"authorization": f"Bearer {MASTER}"}
            (await gw.http.post("/admin/nodes/bad/drain", json=body, headers=headers)).raise_for_status()
            await asked
            page = await gw.metrics()
            assert page['tidegate_resumes_total{cause="leaving",model="llama",outcome="tokens"}'] == 1
            await gw.rows()
    (line,) = both.lines()
    step = line.step
    assert (step.kind, step.cause, step.begun, step.taken) == ("hand_over", "leaving", "bad", "good")
    assert step.outcome == "tokens"


async def runs(worker: SimWorker) -> bool:
    return any(len(sequence.emitted) > 3 for sequence in worker.engine.running)


async def test_those_who_could_not_go_on_with_it_are_told_too(tmp_path: Path):
    async with SimWorker(QUICK) as bad, SimWorker(QUICK) as good:
        both = Both(tmp_path, bad, good)
        async with both.gateway as gw:
            bad.order(Fault("reset", after_chunks=9, count=1))
            good.order(Fault("status", status=400), Fault("status", status=400, path="/tokenize"))
            await post(gw)
            (row,) = await gw.rows()
            assert row.outcome == "ok"
    *failed, last = [line.step for line in both.lines()]
    assert {step.outcome for step in failed} == {"failed"}
    assert (last.taken, last.outcome) == ("bad", "tokens")  # it is back


async def test_a_slow_stream_that_is_not_moved_for_its_price_is_counted_once(tmp_path: Path):
    async with SimWorker(SPEEDY) as bad, SimWorker(SPEEDY) as good:
        both = Both(tmp_path, bad, good)
        async with both.gateway as gw:
            bad.order(Fault("slow", factor=25, count=1))
            # Each is within the cap on the price of input, both together are not: the prompt would be read twice.
            reply = await post(gw, max_tokens=12, routing={"max_price": {"input": 2.5}})
            assert reply.headers["x-tidegate-endpoint"] == "bad"
            page = await gw.metrics()
            refused = {name: count for name, count in page.items() if "moves_suppressed_total" in name}
            assert refused == {'tidegate_moves_suppressed_total{model="llama",reason="price"}': 1}
            assert not [name for name in page if name.startswith("tidegate_resumes_total{")]
            await gw.rows()
