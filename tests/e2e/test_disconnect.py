"""Clients that leave, and clients that read slowly or not at all: neither may hold more than its share, nor get it free."""

from __future__ import annotations

import asyncio
import http.client
import logging
import queue
import random
import select
import socket
import time
from contextlib import asynccontextmanager, suppress
from logging.handlers import QueueHandler
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
import pytest_asyncio
from failing import (
    ASKED,
    LAST,
    MESSAGES,
    PROMPT_TOKENS,
    STREAM,
    ask,
    chunk,
    event,
    hosted,
    models,
    of_endpoint,
)
from pool import LIMIT_S, gateway, until
from scripted import Peer, Server

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pool import Gateway

    from gateway.ledger import UsageRow

ENDLESS: dict[str, Any] = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
"""Minutes of work for a simulated worker."""
RARELY = {"interval_s": 3600, "timeout_s": 60}
"""Health checks would open connections of their own."""
UNUSED_CLOSES_SOON = {"idle_connection_s": 0.2}


async def nothing_is_left(gw: Gateway, worker: SimWorker) -> None:
    """Wait until the gateway does nothing any more, and neither does the worker."""

    async def at_rest() -> bool:
        page = await gw.metrics()
        counts = (
            page["tidegate_calls_running"],
            of_endpoint(page, "inflight", "worker-1"),
            of_endpoint(page, "connections", "worker-1"),
            worker.stats.open_connections,
        )
        return counts == (0, 0, 0, 0)

    await until(at_rest)
    assert not worker.engine.running
    assert not worker.engine.waiting


async def asked(worker: SimWorker, calls: int = 1) -> None:
    """Wait until that many calls have reached the worker."""

    async def reached() -> bool:
        return len(worker.requests) >= calls

    await until(reached)


async def leave(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_leaves_its_stream_ends_the_workers_work_and_pays_for_what_was_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with (
        SimWorker() as worker,
        gateway(tmp_path, worker, health=RARELY, timeouts=UNUSED_CLOSES_SOON) as gw,
    ):
        stream = await gw.client().chat.completions.create(**ASKED | ENDLESS, stream=True)
        heard = 0
        async for piece in stream:
            heard += bool(piece.choices[0].delta.content)
            if heard == 5:
                break
        await stream.close()
        await nothing_is_left(gw, worker)
        assert worker.stats.requests_aborted == 1
        (row,) = await gw.rows()
        assert (row.outcome, row.status, row.endpoint, row.attempts) == ("client_left", 200, "worker-1", 1)
        assert (row.prompt_tokens, row.estimated) == (PROMPT_TOKENS, True)
        assert 5 <= row.completion_tokens <= worker.engine.generated_tokens
        assert row.charge_nano_usd == 1000 * PROMPT_TOKENS + 2000 * row.completion_tokens
        page = await gw.metrics()
        assert page['tidegate_calls_total{model="llama",outcome="client_left",tier="flex"}'] == 1
        assert of_endpoint(page, "available", "worker-1") == 1
        assert errors(caplog) == []


WAITS = {
    "while a whole reply is written": (WorkerSpec(), False),
    "before a stream's head": (WorkerSpec(faults=(Fault(kind="hang"),)), True),
    "before a stream's first chunk": (WorkerSpec(prefill_tokens_per_s=0.01), True),
}


@pytest.mark.parametrize("wait", WAITS)
async def test_a_client_that_leaves_before_it_has_got_anything_pays_for_the_prompt_and_what_was_seen(
    tmp_path: Path, wait: str, caplog: pytest.LogCaptureFixture
):
    spec, stream = WAITS[wait]
    async with (
        SimWorker(spec) as worker,
        gateway(tmp_path, worker, health=RARELY, timeouts=UNUSED_CLOSES_SOON) as gw,
    ):
        client = gw.client()
        call = asyncio.create_task(ask(client, stream=stream, **ENDLESS))
        await asked(worker)
        await leave(call)
        await nothing_is_left(gw, worker)
        (row,) = await gw.rows()
        assert (row.outcome, row.status, row.endpoint, row.attempts) == ("client_left", 499, "worker-1", 1)
        # Of a long reply in one piece, which the worker is asked for as a stream, the gateway has seen some tokens.
        assert stream or row.completion_tokens <= worker.engine.generated_tokens
        seen_tokens = 0 if stream else row.completion_tokens
        assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (PROMPT_TOKENS, seen_tokens, True)
        assert row.charge_nano_usd == 1000 * PROMPT_TOKENS + 2000 * seen_tokens
        assert errors(caplog) == []


async def test_a_call_that_leaves_the_workers_queue_disturbs_no_other(tmp_path: Path):
    async with SimWorker(WorkerSpec(max_num_seqs=1)) as worker:
        async with gateway(tmp_path, worker, health=RARELY, timeouts=UNUSED_CLOSES_SOON) as gw:
            client = gw.client()
            running = await client.chat.completions.create(**ASKED | ENDLESS, stream=True)
            pieces = aiter(running)
            await anext(pieces)
            queued = [asyncio.create_task(ask(client, stream=stream)) for stream in (False, True)]
            await asked(worker, calls=3)
            assert len(worker.engine.waiting) == 2
            for call in queued:
                await leave(call)

            async def deserted() -> bool:
                return worker.stats.requests_aborted == 2

            await until(deserted)
            assert not worker.engine.waiting
            for _ in range(5):
                await anext(pieces)
            await running.close()
            await nothing_is_left(gw, worker)
            first, *others = await gw.rows(3)
            assert (first.outcome, first.status) == ("client_left", 200)
            assert first.completion_tokens >= 5
            for row in others:
                assert (row.outcome, row.status, row.completion_tokens) == ("client_left", 499, 0)


async def test_a_client_that_leaves_within_its_request_has_made_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with SimWorker() as worker, gateway(tmp_path, worker) as gw:
        client = gw.client()
        _, writer = await asyncio.open_connection(*gw.address)
        writer.write(head(gw, 1000) + b'{"model": ')
        await writer.drain()
        await gw.http.get("/health/live")
        writer.close()
        await writer.wait_closed()
        await ask(client)
        (row,) = await gw.rows()
        assert row.outcome == "ok"
        assert len(worker.requests) == 1
        assert not [
            name for name in await gw.metrics() if name.startswith("tidegate_requests_refused_total{")
        ]
        assert errors(caplog) == []


async def test_nothing_is_left_of_many_calls_whose_clients_leave_at_any_moment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    dice = random.Random(1)  # noqa: S311 - when clients leave

    async def call(gw: Gateway) -> bool:
        """Whether the client has got anything by the time it leaves."""
        body = msgspec.json.encode(ASKED | {"stream": dice.random() < 0.7, "max_tokens": 20})
        reader, writer = await asyncio.open_connection(*gw.address)
        writer.write(head(gw, len(body)) + body)
        await writer.drain()
        for _ in range(dice.randrange(40)):
            await asyncio.sleep(0)
        got = [await reader.read(300) for _ in range(dice.choice([0, 0, 1, 4, 100]))]
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        return any(got)

    async with SimWorker(WorkerSpec(max_num_seqs=8)) as worker:
        async with gateway(tmp_path, worker, health=RARELY, timeouts=UNUSED_CLOSES_SOON) as gw:
            heard = sum(await asyncio.gather(*(call(gw) for _ in range(60))))
            stats = worker.stats

            async def all_ended() -> bool:
                return stats.requests_received == stats.requests_aborted + stats.requests_finished

            await until(all_ended)
            await nothing_is_left(gw, worker)
            assert stats.requests_aborted
            rows = await gw.rows(heard)
            assert len({row.call_id for row in rows}) == len(rows)
            assert {row.outcome for row in rows} == {"ok", "client_left"}
            page = await gw.metrics()
            ended = [count for name, count in page.items() if name.startswith("tidegate_calls_total{")]
            assert sum(ended) == len(rows) >= max(heard, stats.requests_received)
            assert errors(caplog) == []


def head(gw: Gateway, length: int) -> bytes:
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: tidegate\r\nauthorization: Bearer {gw.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n"
        "connection: close\r\n\r\n"
    ).encode()


TIDES = 2048


class Flood:
    """A worker's stream that is much larger than all buffers on its way: 32 MiB in events of 16 KiB."""

    def __init__(self) -> None:
        self.contents = [f"{number:08}" + "tide" * 4094 for number in range(TIDES)]
        self.sent_bytes = 0
        self.over = asyncio.Event()

    async def __call__(self, peer: Peer) -> None:
        try:
            await peer.request()
            await peer.send(STREAM)
            for content in self.contents:
                await peer.send(chunk(content))
                self.sent_bytes += len(content)
            await peer.send(chunk(finish_reason="stop") + event(b"[DONE]") + LAST)
            await peer.lost()
        finally:
            self.over.set()

    async def held_back(self) -> None:
        """Wait until no more can be sent."""
        before = 0
        while before < self.sent_bytes or not before:
            before = self.sent_bytes
            await asyncio.sleep(0.3)


@asynccontextmanager
async def idle_reader(gw: Gateway) -> AsyncIterator[socket.socket]:
    """A client that has asked for a stream, and reads nothing of it."""
    loop = asyncio.get_running_loop()
    body = msgspec.json.encode({"model": "llama", "messages": MESSAGES, "stream": True})
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, gw.address)
        await loop.sock_sendall(client, head(gw, len(body)) + body)
        yield client


def whole_body(client: socket.socket) -> bytes:
    """The reply, read at last."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    client.settimeout(LIMIT_S)
    reply = http.client.HTTPResponse(client)
    reply.begin()
    return reply.read()


def closed_by_peer(client: socket.socket) -> bool:
    """Whether nothing more can come or go, even while there is something left to read."""
    poll = select.poll()
    poll.register(client, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


async def test_a_slow_client_slows_its_worker_down_and_gets_every_byte(tmp_path: Path):
    flood = Flood()
    async with Server(flood) as server, gateway(tmp_path, models=models(hosted(server.port))) as gw:
        async with idle_reader(gw) as client:
            await flood.held_back()
            assert 0 < flood.sent_bytes < 16 << 20  # what sockets buffer; the gateway adds some 200 KiB
            assert not closed_by_peer(client)
            body = await asyncio.to_thread(whole_body, client)
        events = body.split(b"\n\n")
        assert events[-2:] == [b"data: [DONE]", b""]
        chunks = [msgspec.json.decode(line.removeprefix(b"data: ")) for line in events[:-2]]
        assert {shown["model"] for shown in chunks} == {"llama"}
        assert [shown["choices"][0]["delta"]["content"] for shown in chunks] == [*flood.contents, ""]
        (row,) = await gw.rows()
        assert (row.outcome, row.completion_tokens) == ("ok", len(flood.contents))


class NeverRead(NamedTuple):
    """What became of a client that asks for a stream and never reads."""

    took_s: float
    row: UsageRow
    page: dict[str, float]
    closed: bool
    """Whether its connection had ended by then."""
    errors: list[logging.LogRecord]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def never_read(tmp_path_factory: pytest.TempPathFactory) -> NeverRead:
    flood, log = Flood(), queue.SimpleQueue()
    logged = QueueHandler(log)
    logged.setLevel(logging.ERROR)
    logging.getLogger().addHandler(logged)
    async with Server(flood) as server:
        served = models(hosted(server.port))
        async with gateway(tmp_path_factory.mktemp("slow"), models=served, timeouts={"total_s": 2}) as gw:
            began_s = time.monotonic()
            async with idle_reader(gw) as client:
                async with asyncio.timeout(LIMIT_S):
                    await flood.over.wait()
                took_s = time.monotonic() - began_s
                (row,) = await gw.rows()
                page, closed = await gw.metrics(), closed_by_peer(client)
    logging.getLogger().removeHandler(logged)
    return NeverRead(took_s, row, page, closed, [log.get() for _ in range(log.qsize())])


def test_the_call_of_a_client_that_never_reads_ends_when_its_time_is_over(never_read: NeverRead):
    assert never_read.took_s >= 2
    row, page = never_read.row, never_read.page
    assert (row.status, row.outcome, row.estimated) == (200, "call_timeout", True)
    assert 0 < row.completion_tokens < TIDES
    assert of_endpoint(page, "inflight") == of_endpoint(page, "connections") == 0
    assert of_endpoint(page, "ejections_total") == 0


def test_the_connection_of_a_client_that_never_reads_ends_with_its_call(never_read: NeverRead):
    assert never_read.closed
    assert never_read.errors == []
