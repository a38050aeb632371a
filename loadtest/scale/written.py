"""Rows a second into the ledger, by how many processes write them at once.

Each writer is a process with a journal of its own that is full when the clock starts; it carries the rows into the database
with the gateway's own mover: double entries, balances, sums by hour and day, and all.
"""

from __future__ import annotations

import os
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gateway.journal import Journal
from gateway.ledger import UsageRow
from gateway.mover import Mover
from gateway.store import Store
from loadtest import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

TENANTS = 100
_LONGEST_S = 600.0


class Written(Struct, frozen=True):
    """So many processes that write into one database."""

    database: str
    writers: int
    rows_per_s: float
    """Of all together."""
    writer_us: float
    """Processor time of a row where it comes from."""
    database_us: float | None
    """And at the server, where there is one."""


def written(url: str, writers: int, rows: int, server_pid: int | None = None) -> Written:
    """So many rows in all, from so many writers."""
    context = get_context("spawn")
    barrier, results = context.Barrier(writers + 1), context.Queue()
    with Store.open(url) as store, tempfile.TemporaryDirectory(prefix="tidegate-scale-") as folder:
        tasks = [
            context.Process(
                target=_write, args=(url, Path(folder) / str(number), rows // writers, barrier, results)
            )
            for number in range(writers)
        ]
        for task in tasks:
            task.start()
        barrier.wait(_LONGEST_S)
        begun_s, used_s = time.perf_counter(), _cpu_s(server_pid)
        cpu_s = sum(results.get(timeout=_LONGEST_S) for _ in tasks)
        elapsed_s, used_s = time.perf_counter() - begun_s, _cpu_s(server_pid) - used_s
        for task in tasks:
            task.join()
        kind = store.kind
    count = rows // writers * writers
    database_us = None if server_pid is None else used_s / count * 1e6
    return Written(kind, writers, count / elapsed_s, cpu_s / count * 1e6, database_us)


def _cpu_s(pid: int | None) -> float:
    return 0.0 if pid is None else procfs.cpu_s(pid)


def _write(url: str, folder: Path, rows: int, barrier: Any, results: Any) -> None:
    journal = Journal.open(folder)
    for row in _rows(rows):
        journal.append(row)
    with Store.open(url) as store:
        mover = Mover(journal, store)
        barrier.wait(_LONGEST_S)
        begun_s = time.process_time()
        mover.move()
        results.put(time.process_time() - begun_s)
        if mover.moved_rows != rows:
            raise RuntimeError(f"{rows} rows were to be written, and {mover.moved_rows} were")
        journal.close()
        mover.release()


def _rows(count: int) -> Iterator[UsageRow]:
    """Calls of a hundred tenants at eight endpoints, as a process of a gateway would have them."""
    now_ms = int(time.time() * 1000)
    for number in range(count):
        tenant = number % TENANTS
        yield UsageRow(
            call_id=f"call_{os.getpid()}_{number}",
            time_ms=now_ms,
            request_id=f"req-{number}",
            tenant=f"tenant-{tenant}",
            key_id=f"key_{tenant}_{number % 3}",
            model="llama-3.1-8b",
            endpoint=f"node-{number % 8}",
            tier="default",
            api="chat",
            stream=number % 2 == 0,
            status=200,
            outcome="ok",
            attempts=1,
            prompt_tokens=900,
            cached_tokens=512,
            completion_tokens=120,
            estimated=False,
            ttft_ms=180.5,
            duration_ms=2100.25,
            charge_nano_usd=57_000,
            cost_nano_usd=22_800,
        )
