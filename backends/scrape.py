"""What a worker says of itself in its /metrics: load by others, and how much its prefix cache holds.

None of it is needed to serve, and estimates rest on what calls show, which is younger than any scrape. So a page that
does not come, or is none, says nothing of the worker's health; the last one just grows old.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from msgspec import Struct

from backends.base import AttemptFailed
from backends.rounds import rounds

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from backends.member import Member

PAGE_BYTES = 1_048_576
"""A vLLM server's page has some hundred kilobytes."""
FRESH_S = 60.0
"""After this long without a page, nothing is concluded from the last one."""

_NAMES = (
    b"vllm:num_requests_running",
    b"vllm:num_requests_waiting",
    b"vllm:kv_cache_usage_perc",
    b"vllm:cache_config_info",
    b"vllm:prefix_cache_queries_total",
    b"vllm:prefix_cache_hits_total",
    b"vllm:prefix_cache_queries_created",
    b"process_start_time_seconds",
)
_SAMPLE = re.compile(
    rb'([A-Za-z_:][A-Za-z0-9_:]*)[ \t]*(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?[ \t]+([^ \t]+)'
)
_LABEL = re.compile(rb'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Scraped(Struct, frozen=True, kw_only=True):
    """One look at a worker. Its engines (data parallelism) are added up."""

    at_s: float
    """When, on the monotonic clock."""
    running: int = 0
    waiting: int = 0
    foreign_running: int = 0
    """Calls running or waiting there that came neither from this gateway nor from those that it knows of."""
    kv_usage: float = 0.0
    """Share of its KV cache that calls under way hold, 0 to 1; the mean of its engines."""
    kv_tokens: int | None = None
    """Room for so many tokens in its KV cache, where it says so."""
    queried_tokens: int = 0
    """Prompt tokens looked up in its prefix cache since it started; `hit_tokens` of them were found."""
    hit_tokens: int = 0
    started_s: float | None = None
    """When it started, on its own wall clock; it serves only to tell one start from another."""

    def fresh(self, now_s: float) -> bool:
        return now_s - self.at_s < FRESH_S

    def restarted_since(self, before: Scraped) -> bool:
        """Whether it was started anew in between, which empties its prefix cache."""
        return self.started_s != before.started_s or self.queried_tokens < before.queried_tokens


def scraping(member: Member, interval_s: float, timeout_s: float) -> AbstractAsyncContextManager[None]:
    """Look at the member's /metrics now and then, as long as the block runs."""
    return rounds(lambda _: scrape(member, timeout_s), interval_s, f"scraping {member.endpoint.name}")


async def scrape(member: Member, timeout_s: float) -> None:
    """Look at the member's /metrics and note what they say."""
    ours = member.inflight + member.inflight_elsewhere
    try:
        status, page = await member.backend.get("/metrics", timeout_s, PAGE_BYTES)
    except AttemptFailed:
        return
    if status != 200:
        return
    # What was sent or has ended meanwhile may be on the page or not: it is no load by others.
    scraped = read_page(page, time.monotonic(), max(ours, member.inflight + member.inflight_elsewhere))
    if scraped is not None:
        member.looked_at(scraped)


def read_page(page: bytes, at_s: float, inflight: int = 0) -> Scraped | None:
    """What a page of metrics says of a worker with `inflight` calls of ours; None where it is no vLLM server's."""
    found: dict[bytes, list[tuple[dict[bytes, bytes], float]]] = {name: [] for name in _NAMES}
    for line in page.split(b"\n"):
        if line.startswith(_NAMES):
            sample = _SAMPLE.match(line)
            if sample is not None and sample[1] in found and (value := _number(sample[3])) is not None:
                found[sample[1]].append((dict(_LABEL.findall(sample[2] or b"")), value))
    values = {name: [value for _, value in samples] for name, samples in found.items()}
    running, waiting = (sum(values[b"vllm:num_requests_" + state]) for state in (b"running", b"waiting"))
    usage = values[b"vllm:kv_cache_usage_perc"]
    rooms = [room for labels, _ in found[b"vllm:cache_config_info"] if (room := _room(labels)) is not None]
    if not values[b"vllm:num_requests_running"]:
        return None
    starts = values[b"process_start_time_seconds"] or values[b"vllm:prefix_cache_queries_created"]
    return Scraped(
        at_s=at_s,
        running=int(running),
        waiting=int(waiting),
        foreign_running=max(0, int(running + waiting) - inflight),
        kv_usage=min(1.0, sum(usage) / len(usage)) if usage else 0.0,
        kv_tokens=sum(rooms) if rooms else None,
        queried_tokens=int(sum(values[b"vllm:prefix_cache_queries_total"])),
        hit_tokens=int(sum(values[b"vllm:prefix_cache_hits_total"])),
        started_s=min(starts, default=None),
    )


def _room(labels: dict[bytes, bytes]) -> int | None:
    """Tokens that one engine's cache has room for. Newer servers name them, since layers may differ in their blocks."""
    for names in ((b"kv_cache_size_tokens",), (b"block_size", b"num_gpu_blocks")):
        numbers = [labels.get(name, b"") for name in names]
        if all(number.isdigit() and len(number) < 13 for number in numbers):
            room = 1
            for number in numbers:
                room *= int(number)
            return room
    return None


def _number(text: bytes) -> float | None:
    """A value that is no nonsense: counts and shares are never negative, and no worker counts further than this."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value < 1e18 else None
