"""A gateway as it is started, by how many endpoints it has: a call, a while of nothing to do, and its operator's pages."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx2
from msgspec import Struct, structs

from loadtest import bench, procfs
from loadtest.proxies import MASTER_KEY, Tidegate

if TYPE_CHECKING:
    from pathlib import Path

_PAGES = ("/metrics", "/admin/fleet")
_LOOKS = 5


class Served(Struct, frozen=True):
    """One process in front of so many endpoints."""

    endpoints: int
    json_per_s: float
    json_cpu_us: float | None
    idle_core_share: float
    """While nobody calls: health checks, scrapes, rounds."""
    metrics_ms: float
    metrics_kb: float
    fleet_ms: float
    """Of the console's page."""
    fleet_kb: float
    resident_mb: float
    start_s: float
    problems: tuple[str, ...]


def served(endpoints: int, plan: bench.Plan, folder: Path) -> Served:
    folder.mkdir()
    with (
        bench.site(structs.replace(plan, endpoints=endpoints), folder) as place,
        bench.started(place, Tidegate(), "tidegate") as target,
    ):
        time.sleep(plan.warm_up_s)
        used_s = procfs.cpu_s(target.pid)
        time.sleep(plan.duration_s)
        idle = (procfs.cpu_s(target.pid) - used_s) / plan.duration_s
        (metrics_ms, metrics_kb), (fleet_ms, fleet_kb) = (_page(target.url, page) for page in _PAGES)
        problems: list[str] = []
        per_s, cpu_us = bench.throughput(place, target, problems, stream=False)
        return Served(
            endpoints=endpoints,
            json_per_s=per_s,
            json_cpu_us=cpu_us,
            idle_core_share=idle,
            metrics_ms=metrics_ms,
            metrics_kb=metrics_kb,
            fleet_ms=fleet_ms,
            fleet_kb=fleet_kb,
            resident_mb=procfs.resident_bytes(target.pid) / 1e6,
            start_s=target.start_s,
            problems=tuple(problems),
        )


def _page(url: str, page: str) -> tuple[float, float]:
    """Milliseconds, the best of some, and kilobytes."""
    headers = {"authorization": f"Bearer {MASTER_KEY}"}
    took_ms, size = [], 0
    with httpx2.Client(headers=headers, timeout=60, trust_env=False) as client:
        for _ in range(_LOOKS):
            begun_s = time.perf_counter()
            answer = client.get(url.removesuffix("/v1") + page)
            took_ms.append((time.perf_counter() - begun_s) * 1e3)
            answer.raise_for_status()
            size = len(answer.content)
    return min(took_ms), size / 1e3
