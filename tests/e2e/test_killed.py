"""A gateway killed with SIGKILL and started again has lost no call whose end a client has seen, and counts none twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from gateway_process import (
    LIMIT_S,
    command,
    gateway_beside,
    key_before_start,
    rows_in,
    started,
    until,
    write_config,
)
from pool import PRICE, endpoint
from usage_rows import a_row

from gateway.app import application
from gateway.client import Client
from gateway.config import load
from gateway.journal import Segment
from gateway.ledger import UsageRow
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CLIENTS = 32
KILLS_UNDER_LOAD = 2


class Told(NamedTuple):
    """What a client was told that its call used."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Seen:
    """What all clients together know."""

    def __init__(self) -> None:
        self.sent: set[str] = set()
        """Every request id sent."""
        self.ended: dict[str, Told] = {}
        """Those of the calls whose end has been read: the last byte of a whole reply, or `[DONE]`."""


class Caller:
    """A client that makes one call after the other on one connection, until that breaks.

    It reads the wire itself: what is to be known is which byte it has seen last.
    """

    def __init__(self, seen: Seen, ids: Iterator[str], key: str, dice: random.Random) -> None:
        self._seen = seen
        self._ids = ids
        self._key = key
        self._dice = dice

    async def run(self, host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self._call(reader, writer)
        writer.close()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request_id, stream = next(self._ids), self._dice.random() < 0.5
        fields = {
            "model": "llama",
            "messages": [
                {"role": "user", "content": f"{'The tide comes in and goes out. ' * 8}{request_id}"}
            ],
            "max_tokens": self._dice.randint(1, 40),
            "stream": stream,
        }
        if stream:
            fields["stream_options"] = {"include_usage": True}
        body = json.dumps(fields)
        self._seen.sent.add(request_id)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: tide\r\nauthorization: Bearer {self._key}\r\n"
            f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        if stream:
            events = await reader.readuntil(b"data: [DONE]\n\n")
            last = [line for line in events.split(b"\n") if line.startswith(b"data: {")][-1]
            self._note(request_id, last.removeprefix(b"data: "))
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            self._note(request_id, await reader.readexactly(length))

    def _note(self, request_id: str, reply: bytes) -> None:
        usage = json.loads(reply)["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self._seen.ended[request_id] = Told(usage["prompt_tokens"], cached, usage["completion_tokens"])


async def test_killed_again_and_again_it_has_lost_no_call_that_a_client_saw_end_and_counts_none_twice(
    tmp_path: Path,
):
    dice = random.Random(2)  # noqa: S311  no secret
    seen, ids = Seen(), (f"call-{number}" for number in count())
    key = key_before_start(tmp_path, "acme")
    earlier = rows_left_in_the_journal(tmp_path)
    async with SimWorker(WorkerSpec(model="sim", decode_s_per_token=0.002, max_num_seqs=CLIENTS)) as worker:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(worker)]}}
        with started(tmp_path, models) as process:
            log = tmp_path / "gateway.log"
            await asyncio.to_thread(until, lambda: moved(tmp_path, "earlier") > 0, process, log)
        assert 0 < moved(tmp_path, "earlier") < len(earlier)

        not_moved: set[str] = set()
        for _ in range(KILLS_UNDER_LOAD):
            async with gateway_beside(tmp_path, models) as gateway:
                callers = [Caller(seen, ids, key, dice) for _ in range(CLIENTS)]
                calling = [asyncio.create_task(caller.run(*gateway.address)) for caller in callers]
                await some_more(seen, tmp_path)
                await asyncio.sleep(dice.random() * 0.5)
                gateway.kill()
                await asyncio.gather(*calling)
            not_moved |= seen.ended.keys() - {row.request_id for row in rows_in(tmp_path)}
        assert not_moved

        async with gateway_beside(tmp_path, models) as gateway:
            assert await asyncio.to_thread(gateway.ended, signal.SIGTERM) == 0
    assert list((tmp_path / "journal").iterdir()) == []

    rows = rows_in(tmp_path)
    assert [row for row in rows if row.tenant == "earlier"] == earlier
    metered = [row for row in rows if row.tenant == "acme"]
    assert len(rows) == len(earlier) + len(metered)
    assert_every_call_is_metered_once(metered, seen)
    (total,) = command(tmp_path, "usage", "--from", "1h")  # the earlier ones are of 2023
    assert_is_the_sum(total, metered)


class Watched:
    """In the place of a client's connection: what was on disk when it was given the last bytes."""

    date_line = b""
    full = False

    def __init__(self, journal: Path) -> None:
        self.on_disk = b""
        self.transport = self
        self._journal = journal

    def write(self, _block: bytes) -> None:
        self.on_disk = b"".join(path.read_bytes() for path in self._journal.glob("*.journal"))

    async def drain(self) -> None: ...


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_row_is_in_the_journal_before_the_last_byte_goes_out(tmp_path: Path, *, stream: bool):
    """Too narrow for kills to fall into: what of the journal was on disk when the connection was given the last byte."""
    asked = {"model": "llama", "messages": [{"role": "user", "content": "Ebb?"}], "stream": stream}
    connection = Watched(tmp_path / "journal")
    client = Client(connection)
    client.method, client.target = b"POST", b"/v1/chat/completions"
    client.headers[b"x-request-id"] = b"last-byte"
    client.received(json.dumps(asked).encode(), limit_bytes=1000)
    client.ended()
    async with SimWorker() as worker:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(worker)]}}
        config = load(write_config(tmp_path, models, auth={"mode": "none"}), {})
        async with application(config) as app:
            await app(client)
    (row,) = [msgspec.json.decode(line, type=UsageRow) for line in connection.on_disk.splitlines()]
    assert (row.request_id, row.outcome, row.stream) == ("last-byte", "ok", stream)
    assert rows_in(tmp_path) == [row]


def assert_every_call_is_metered_once(rows: list[UsageRow], seen: Seen) -> None:
    by_id = {row.request_id: row for row in rows}
    assert len(by_id) == len(rows)
    assert by_id.keys() <= seen.sent
    assert seen.ended.keys() <= by_id.keys()
    # A gateway may die between the row and the last byte, or in the midst of a stream.
    assert len(rows) <= len(seen.ended) + CLIENTS * KILLS_UNDER_LOAD
    died = [row for row in rows if row.outcome == "gateway_died"]
    assert died
    assert all(row.stream and row.estimated and row.completion_tokens for row in died)
    for request_id, told in seen.ended.items():
        row = by_id[request_id]
        assert Told(row.prompt_tokens, row.cached_tokens, row.completion_tokens) == told
        assert (row.outcome, row.status, row.estimated) == ("ok", 200, False)


def assert_is_the_sum(total: dict[str, Any], rows: list[UsageRow]) -> None:
    assert total["tenant"] == "acme"
    assert total["calls"] == len(rows)
    assert total["errors"] == total["estimated_calls"] == sum(row.outcome == "gateway_died" for row in rows)
    for field in ("prompt_tokens", "cached_tokens", "completion_tokens", "charge_nano_usd"):
        assert total[field] == sum(getattr(row, field) for row in rows) > 0


def rows_left_in_the_journal(home: Path) -> list[UsageRow]:
    """As many as take the mover a while, left by a process that is gone."""
    rows = [a_row(f"left-{number:05}", tenant="earlier") for number in range(40_000)]
    (home / "journal").mkdir()
    segment = Segment.create(home / "journal")
    segment.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    segment.release()
    return rows


def moved(home: Path, tenant: str) -> int:
    """How many rows of the tenant are in the database."""
    connection = sqlite3.connect(home / "tidegate.db")
    (number,) = connection.execute("SELECT count(*) FROM usage WHERE tenant = ?", [tenant]).fetchone()
    connection.close()
    return number


async def some_more(seen: Seen, home: Path) -> None:
    """Wait until some more calls have ended, and some of them are in the database."""
    calls, rows = len(seen.ended) + 2 * CLIENTS, moved(home, "acme")
    async with asyncio.timeout(LIMIT_S):
        while len(seen.ended) < calls or moved(home, "acme") <= rows:  # noqa: ASYNC110 - clients and a process do it
            await asyncio.sleep(0.01)
