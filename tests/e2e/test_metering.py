"""What the books say of a call, as an accountant reads them: rows, and their sums, against what clients were told."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import time
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
from failing import LAST, STREAM, chunk, event, hosted, whole
from gateway_process import LIMIT_S, command, gateway_beside, key_before_start, rows_in, write_config
from msgspec import structs
from openai import AsyncOpenAI
from pool import endpoint, gateway
from scripted import Server, answers

from gateway.subjects import Subjects
from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gateway.ledger import UsageRow

PROMPT = "Spring tides follow the full moon and the new moon by a day or two. " * 4
TOKENS = 20
QUICK = WorkerSpec(decode_s_per_token=0, embeddings=True)
WRITES: dict[str, Any] = {"model": "llama", "max_tokens": TOKENS, "extra_body": {"ignore_eos": True}}
CHAT: dict[str, Any] = {**WRITES, "messages": [{"role": "user", "content": PROMPT}]}
COMPLETION: dict[str, Any] = {**WRITES, "prompt": PROMPT}
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}

# In USD per million tokens, and in nano-USD per token: prompt, of it cached, completion. Halves show the rounding.
PRICE = {"input": 0.0375, "cached_input": 0.0125, "output": 0.5005}
CHARGED = (Decimal("37.5"), Decimal("12.5"), Decimal("500.5"))
COST = {"input": 0.02, "output": 0.2505}
COSTS = (Decimal(20), Decimal(20), Decimal("250.5"))


class Told(NamedTuple):
    """The usage in a client's reply."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def amount(self, per_token: tuple[Decimal, Decimal, Decimal]) -> int:
        """In nano-USD, by hand."""
        counts = (self.prompt_tokens - self.cached_tokens, self.cached_tokens, self.completion_tokens)
        total = sum(map(Decimal.__mul__, map(Decimal, counts), per_token), start=Decimal())
        return int(total.quantize(Decimal(1), ROUND_HALF_EVEN))


def told(reply: Any) -> Told:
    usage = reply.usage.to_dict()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Told(usage["prompt_tokens"], cached, usage.get("completion_tokens", 0))


async def told_at_end(stream: Awaitable[Any]) -> Told:
    return told([shown async for shown in await stream][-1])


async def told_by(reply: Awaitable[Any]) -> Told:
    return told(await reply)


def metered(row: UsageRow) -> Told:
    return Told(row.prompt_tokens, row.cached_tokens, row.completion_tokens)


def fleet(*workers: SimWorker) -> dict[str, Any]:
    endpoints = [endpoint(worker, f"worker-{n}", cost=COST) for n, worker in enumerate(workers, start=1)]
    return {"llama": {"aliases": ["llama-small"], "price": PRICE, "endpoints": endpoints}}


async def test_a_row_says_all_there_is_to_say_of_a_call(tmp_path: Path):
    spec = WorkerSpec(prefill_tokens_per_s=1000, decode_s_per_token=0.005)
    async with SimWorker(spec) as worker, gateway(tmp_path, models=fleet(worker)) as gw:
        began_ms, began_s = time.time() * 1000, time.monotonic()
        reply = await gw.client().chat.completions.with_raw_response.create(
            **CHAT | {"model": "llama-small"}, service_tier="flex", extra_headers={"x-request-id": "spring"}
        )
        whole_ms = (time.monotonic() - began_s) * 1000
        began_s = time.monotonic()
        stream_told = await told_at_end(
            gw.client().chat.completions.create(**CHAT, **STREAMED, extra_headers={"x-request-id": "neap"})
        )
        stream_ms = (time.monotonic() - began_s) * 1000
        ended_ms = time.time() * 1000
        whole, streamed = await gw.rows(2)
        (key,) = Subjects(gw.store).list_keys()

    whole_told = told(reply.parse())
    assert whole_told.cached_tokens == 0 < stream_told.cached_tokens
    alike = {
        "tenant": "harbour",
        "key_id": key.id,
        "model": "llama",
        "endpoint": "worker-1",
        "api": "chat",
        "status": 200,
        "outcome": "ok",
        "attempts": 1,
        "estimated": False,
        "waste_nano_usd": 0,
        "project": "",
        "customer": "",
        "reasoning_tokens": 0,
        "hosted": False,
        "shares": (),
    }
    for row, usage, apart in (
        (whole, whole_told, {"request_id": "spring", "tier": "flex", "stream": False}),
        (streamed, stream_told, {"request_id": "neap", "tier": "default", "stream": True}),
    ):
        amounts = {"charge_nano_usd": usage.amount(CHARGED), "cost_nano_usd": usage.amount(COSTS)}
        expected = {**alike, **apart, **usage._asdict(), **amounts}
        timed = {name: getattr(row, name) for name in ("call_id", "time_ms", "ttft_ms", "duration_ms")}
        assert structs.asdict(row) == {**expected, **timed}
    assert whole.call_id != streamed.call_id
    assert reply.headers["x-tidegate-cost-usd"] == f"0.{whole.charge_nano_usd:09d}"

    # The worker reads a token in 1 ms, and writes one in 5. The gateway may see the first one late, and timers be early.
    written_ms = 0.5 * 5 * (TOKENS - 1)
    read_ms = [0.9 * (usage.prompt_tokens - usage.cached_tokens) for usage in (whole_told, stream_told)]
    assert began_ms - 1 <= whole.time_ms <= streamed.time_ms <= ended_ms
    assert whole.ttft_ms is None
    assert read_ms[0] + written_ms <= whole.duration_ms <= whole_ms
    assert read_ms[1] <= streamed.ttft_ms
    assert streamed.ttft_ms + written_ms <= streamed.duration_ms <= stream_ms


KINDS: dict[str, Callable[[AsyncOpenAI], Awaitable[Told]]] = {
    "chat": lambda client: told_by(client.chat.completions.create(**CHAT)),
    "chat streamed": lambda client: told_at_end(client.chat.completions.create(**CHAT, **STREAMED)),
    "chat of two choices": lambda client: told_by(client.chat.completions.create(**CHAT, n=2)),
    "chat of two choices streamed": lambda client: told_at_end(
        client.chat.completions.create(**CHAT, **STREAMED, n=2)
    ),
    "completions": lambda client: told_by(client.completions.create(**COMPLETION)),
    "completions streamed": lambda client: told_at_end(client.completions.create(**COMPLETION, **STREAMED)),
    "embeddings": lambda client: told_by(client.embeddings.create(model="llama", input=[PROMPT, "x"])),
}


async def test_calls_of_every_kind_are_charged_for_what_the_client_is_told(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=fleet(worker)) as gw:
        seen = {kind: await call(gw.client()) for kind, call in KINDS.items()}
        rows = dict(zip(KINDS, await gw.rows(len(KINDS)), strict=True))
        page = await gw.metrics()
    for kind, usage in seen.items():
        row = rows[kind]
        assert (row.api, row.stream) == (kind.split()[0], "streamed" in kind)
        assert (row.outcome, row.estimated) == ("ok", False)
        assert metered(row) == usage
        assert (row.charge_nano_usd, row.cost_nano_usd) == (usage.amount(CHARGED), usage.amount(COSTS))
        assert usage.completion_tokens == TOKENS * (2 if "two" in kind else kind != "embeddings")
        assert (row.ttft_ms is None) == (not row.stream)

    # Prometheus tells the same of all of them together.
    for name in ("prompt", "cached", "completion"):
        total = sum(getattr(row, f"{name}_tokens") for row in rows.values())
        assert total > 0
        assert page[f'tidegate_tokens_total{{kind="{name}",model="llama"}}'] == total


async def test_where_an_endpoint_does_not_report_usage_it_is_estimated_and_marked(tmp_path: Path):
    stream = (
        STREAM + b"".join(map(chunk, ("high", " wa", "ter"))) + chunk("", "stop") + event(b"[DONE]") + LAST
    )
    message = {"role": "assistant", "content": "high water"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = json.dumps({"id": "c", "object": "chat.completion", "model": "sim", "choices": choices}).encode()
    async with Server(answers(whole(body))) as replying, Server(answers(stream)) as streaming:
        names = {"replying": replying, "streaming": streaming}
        endpoints = [{**hosted(server.port, name), "cost": COST} for name, server in names.items()]
        models = {"llama": {"price": PRICE, "endpoints": endpoints}}
        async with gateway(tmp_path, models=models) as gw:
            chats = gw.client().chat.completions
            only = [{"routing": {"only": [name]}} for name in names]
            await chats.create(**CHAT | {"extra_body": only[0]})
            shown = [piece async for piece in await chats.create(**CHAT | STREAMED | {"extra_body": only[1]})]
            assert all(piece.usage is None for piece in shown)
            rows = await gw.rows(2)
    prompt_tokens = len(json.dumps(CHAT["messages"], separators=(",", ":"))) // 4
    for row, completion_tokens in zip(rows, (len("high water") // 4, 3), strict=True):
        used = Told(prompt_tokens, 0, completion_tokens)
        assert (row.outcome, row.status, row.estimated) == ("ok", 200, True)
        assert metered(row) == used
        assert (row.charge_nano_usd, row.cost_nano_usd) == (used.amount(CHARGED), used.amount(COSTS))


async def test_calls_that_brought_nothing_cost_nothing(tmp_path: Path):
    async with SimWorker(QUICK) as worker, gateway(tmp_path, models=fleet(worker)) as gw:
        chats = gw.client().chat.completions

        async def refused(**changes: Any) -> tuple[int, str]:
            with pytest.raises(openai.APIStatusError) as raised:
                await chats.create(**CHAT | changes)
            return raised.value.status_code, raised.value.code

        told = [
            await refused(max_tokens=1_000_000),
            await refused(extra_body={"routing": {"only": ["nobody"]}}),
        ]
        worker.order(Fault(kind="status", status=500))
        told.append(await refused())
        worker.order(Fault(kind="status", status=503, retry_after_s=LIMIT_S))
        told += [await refused(), await refused()]
        rows = await gw.rows(len(told))
    assert [(row.status, row.outcome) for row in rows] == told
    assert [(row.outcome, row.attempts) for row in rows] == [
        ("invalid_request", 1),
        ("demands_not_met", 0),
        ("upstream_error", 1),
        ("upstream_busy", 1),
        ("no_endpoint_available", 0),
    ]
    for row in rows:
        assert (row.endpoint, row.estimated, row.ttft_ms) == ("", False, None)
        assert metered(row) == (0, 0, 0)
        assert (row.charge_nano_usd, row.cost_nano_usd) == (0, 0)


async def test_refused_requests_make_no_row(tmp_path: Path):
    async with (
        SimWorker(QUICK) as worker,
        gateway(tmp_path, models=fleet(worker), limits={"body_bytes": 2000}) as gw,
    ):
        path, auth = "/v1/chat/completions", {"authorization": f"Bearer {gw.key}"}
        good = json.dumps({**CHAT, "max_tokens": 1})
        refused = [
            await gw.http.post(path, content=good),
            await gw.http.post(path, content=good, headers={"authorization": "Bearer tg-wrong"}),
            await gw.http.post(path, content="{", headers=auth),
            await gw.http.post(path, content='{"model": "llama"}', headers=auth),
            await gw.http.post(path, content=good.replace("llama", "lama"), headers=auth),
            await gw.http.post(path, content=" " * 2001, headers=auth),
            await gw.http.post(path, content=good, headers={**auth, "content-encoding": "gzip"}),
            await gw.http.get(path, headers=auth),
            await gw.http.post("/v1/no/such/path", content=good, headers=auth),
        ]
        assert [reply.status_code for reply in refused] == [401, 401, 400, 400, 404, 413, 415, 405, 404]
        assert (await gw.http.post(path, content=good, headers=auth)).status_code == 200
        assert [row.status for row in await gw.rows()] == [200]
        assert worker.stats.requests_received == 1


AMOUNTS = ("charge", "cost", "waste")
SUMMED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    *(f"{amount}_nano_usd" for amount in AMOUNTS),
)


async def test_the_command_line_sums_up_the_rows_of_a_span_of_time(tmp_path: Path):
    async with SimWorker(QUICK) as one, SimWorker(QUICK) as two:
        models = fleet(one, two)
        models["tiny"] = {"price": PRICE, "endpoints": [endpoint(two, "worker-2")]}
        write_config(tmp_path, models)
        async with gateway(tmp_path, models=models) as gw:
            tenants = [gw.client(), gw.client(await gw.new_key("mill")), gw.client(await gw.new_key("mill"))]
            before = await gw.rows(await some_calls(*tenants))
            between_ms = before[-1].time_ms + 1
            rows = await gw.rows(len(before) + await some_calls(*tenants[1:]))
    between = datetime.fromtimestamp(between_ms / 1000, UTC).isoformat()
    for by in ("tenant", "model", "endpoint", "key"):
        for counted, span in (
            (rows, ["--from", "1h"]),
            (before, ["--from", "1h", "--to", between]),
            (rows[len(before) :], ["--from", between]),
        ):
            shown = command(tmp_path, "usage", "--by", by, *span)
            for line in shown:
                line.update({f"{amount}_usd": Decimal(line[f"{amount}_usd"]) for amount in AMOUNTS})
            assert {line[by]: line for line in shown} == sums(counted, by)


async def some_calls(*clients: AsyncOpenAI) -> int:
    """Calls for both models at both endpoints, one of which is rejected; how many."""
    for client in clients:
        create = client.chat.completions.create
        for name in ("worker-1", "worker-2"):
            await create(**CHAT | {"extra_body": {"routing": {"only": [name]}}})
        await create(**CHAT | {"model": "tiny"})
    with pytest.raises(openai.BadRequestError):
        await clients[0].chat.completions.create(**CHAT | {"max_tokens": 1_000_000})
    return 3 * len(clients) + 1


def sums(rows: list[UsageRow], by: str) -> dict[str, dict[str, Any]]:
    """What the command is to print, by name."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = getattr(row, "key_id" if by == "key" else by)
        counts = ("calls", "errors", "estimated_calls", "helped_calls", "wasted_tokens", *SUMMED)
        line = lines.setdefault(name, {by: name, **dict.fromkeys(counts, 0)})
        line["calls"] += 1
        line["errors"] += row.outcome != "ok"
        for field in SUMMED:
            line[field] += getattr(row, field)
    for line in lines.values():
        for amount in AMOUNTS:
            line[f"{amount}_usd"] = Decimal(line[f"{amount}_nano_usd"]).scaleb(-9)
    return lines


async def test_work_in_vain_is_shown_with_who_did_it_and_never_charged(tmp_path: Path):
    async with SimWorker(QUICK) as bad, SimWorker(QUICK) as good:
        bad.order(Fault(kind="reset"))
        dearer = {name: 2 * each for name, each in COST.items()}
        endpoints = [endpoint(bad, "bad", cost=COST), endpoint(good, "good", cost=dearer)]
        models = {"llama": {"price": PRICE, "endpoints": endpoints}}
        write_config(tmp_path, models)
        async with gateway(tmp_path, models=models) as gw:
            usage = await told_by(gw.client().chat.completions.create(**CHAT, service_tier="flex"))
            (row,) = await gw.rows()
            answered, wasted = await gw.shares()
            page = await gw.metrics()
    estimated = len(json.dumps(CHAT["messages"], separators=(",", ":"))) // 4
    assert (row.charge_nano_usd, row.cost_nano_usd) == (
        usage.amount(CHARGED),
        usage.amount(tuple(2 * c for c in COSTS)),
    )
    assert (answered.endpoint, answered.purpose, answered.waste_nano_usd) == ("good", "answer", 0)
    assert (wasted.endpoint, wasted.purpose, wasted.prompt_tokens, wasted.cost_nano_usd) == (
        "bad",
        "broken",
        estimated,
        0,
    )
    assert row.waste_nano_usd == wasted.waste_nano_usd == 20 * estimated
    shown = {
        line["endpoint"]: line for line in command(tmp_path, "usage", "--by", "endpoint", "--from", "1h")
    }
    assert [shown[name]["calls"] for name in ("good", "bad")] == [1, 0]
    assert [shown[name]["helped_calls"] for name in ("good", "bad")] == [0, 1]
    assert [shown[name]["waste_nano_usd"] for name in ("good", "bad")] == [0, 20 * estimated]
    assert [shown[name]["charge_nano_usd"] for name in ("good", "bad")] == [row.charge_nano_usd, 0]
    label = '{borne_by="node",cause="broken",model="llama"}'
    assert page[f"tidegate_waste_nano_usd_total{label}"] == 20 * estimated


async def test_while_the_disk_takes_nothing_calls_are_answered_and_their_rows_wait_in_memory(tmp_path: Path):
    key = key_before_start(tmp_path, "acme")
    async with SimWorker(QUICK) as worker, gateway_beside(tmp_path, fleet(worker)) as process:
        full_disk(process.process.pid, full=True)
        async with AsyncOpenAI(
            base_url=f"{process.url}/v1", api_key=key, max_retries=0, timeout=LIMIT_S
        ) as client:
            seen = [await told_by(client.chat.completions.create(**CHAT)) for _ in range(3)]
            seen.append(await told_at_end(client.chat.completions.create(**CHAT, **STREAMED)))
        assert "\ntidegate_journal_backlog_rows 4.0\n" in await asyncio.to_thread(process.metrics)
        assert rows_in(tmp_path) == []
        full_disk(process.process.pid, full=False)
        assert await asyncio.to_thread(process.ended, signal.SIGTERM) == 0
    rows = rows_in(tmp_path)
    assert [metered(row) for row in rows] == seen


def full_disk(pid: int, *, full: bool) -> None:
    """No file of the process may grow: to it, a disk without a byte left."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))
