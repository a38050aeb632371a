"""What a gateway costs: its throughput on one core, the processor time of slow streams, and the latency it adds.

The server under test has core 0 to itself; core 1 is shared by an upstream that answers at once and by what sends the
requests, so that the server is the bottleneck whatever it is. Every round starts each server afresh, looks at one
reply of each kind before it times anything, and measures them one after another: A B C, A B C.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import uvloop
from msgspec import Struct, structs

from loadtest import procfs, wrk
from loadtest.arrivals import constant, until
from loadtest.client import Load
from loadtest.comparison import DIRECT, Comparison, Reading, compare
from loadtest.mock import PACED_PROMPT, reply_text
from loadtest.proxies import DidNotStartError, Running, Setting, free_port, pinned, running, spawned
from loadtest.report import Summary, headline, summarise
from loadtest.workloads import Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from loadtest.proxies import Proxy

MODEL = "bench"
CONNECTIONS = 32
PACED_STREAMS = 256
CHUNKS_PER_S = 50
LATENCY_RATE_PER_S = 1000
_LEAST_CORE_SHARE = 0.85
"""A saturated server uses all of its core; with less than this its requests per second are not what it can do."""
_KEEPS_UP = 0.97


class Plan(Struct, frozen=True):
    """How much to measure, and on what."""

    duration_s: float = 10.0
    rounds: int = 3
    endpoints: int = 8
    served_model: str = MODEL
    """The model's name at the upstreams; a gateway has more to do where it differs from the public one."""
    server_core: int | None = 0
    load_core: int | None = 1
    warm_up_s: float = 1.0
    with_wrk: bool = True
    """Where it is installed; else our own client sends the requests."""

    @property
    def wrk(self) -> bool:
        return self.with_wrk and wrk.installed() is not None


class Site(Struct, frozen=True):
    """The upstreams of a bench and where its files go."""

    upstreams: tuple[str, ...]
    folder: Path
    plan: Plan


def cores(plan: Plan) -> Plan:
    """`plan` with the cores there are; with fewer than two, nothing is pinned."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    first, second = (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)
    return structs.replace(plan, server_core=first, load_core=second)


def conditions(plan: Plan) -> str:
    """How the figures came about, in a sentence."""
    source = (
        f"wrk -t1 -c{CONNECTIONS}"
        if plan.wrk
        else f"our own client, {CONNECTIONS} connections (wrk is absent or not wanted)"
    )
    place = (
        "not pinned: server, load and mock share all cores"
        if plan.server_core is None
        else "server alone on one core, load and mock on another"
    )
    return (
        f"{source}; {place}; {plan.endpoints} endpoints; body 1.4 kB, reply 0.5 kB or 32 chunks; "
        f"{plan.rounds} interleaved rounds of {plan.duration_s:g} s, medians; memory after load"
    )


@contextmanager
def site(plan: Plan, folder: Path) -> Iterator[Site]:
    """The mock on the load's core, with one port for each endpoint."""
    options = (
        "--model",
        plan.served_model,
        "--ports",
        str(plan.endpoints),
        "--chunks-per-s",
        str(CHUNKS_PER_S),
    )
    log = folder / "mock.txt"
    with spawned(
        (sys.executable, "-m", "loadtest", "mock", *options), log=log, core=plan.load_core
    ) as process:
        deadline_s = time.perf_counter() + 30
        while not (text := log.read_text()).endswith("\n"):
            if process.poll() is not None or time.perf_counter() > deadline_s:
                raise DidNotStartError(f"the mock did not start: {text}")
            time.sleep(0.02)
        yield Site(tuple(json.loads(text)["urls"]), folder, plan)


def run_bench(
    place: Site, proxies: Sequence[Proxy], *, direct: bool, say: Callable[[str], None]
) -> Comparison:
    """Every round of every server."""
    names = [DIRECT] * direct + [proxy.name for proxy in proxies]
    rounds: dict[str, list[Reading]] = {name: [] for name in names}
    left_out = {proxy.name: reason for proxy in proxies if (reason := proxy.missing()) is not None}
    for name in left_out:
        del rounds[name]
    by_name = {proxy.name: proxy for proxy in proxies}
    for number in range(place.plan.rounds):
        for name, readings in rounds.items():
            say(f"round {number + 1} of {place.plan.rounds}: {name}")
            with pinned(place.plan.load_core):
                readings.append(_one_round(place, by_name.get(name), number))
    return compare(rounds, left_out, conditions(place.plan))


def _one_round(place: Site, proxy: Proxy | None, number: int) -> Reading:
    if proxy is None:
        return _measure(place, Running(DIRECT, 0, f"{place.upstreams[0]}/v1", "none", 0.0))
    try:
        with started(place, proxy, f"{proxy.name}-{number}") as target:
            return _measure(place, target)
    except DidNotStartError as error:
        return Reading(problems=(f"did not start: {error}",))


@contextmanager
def started(place: Site, proxy: Proxy, folder_name: str) -> Iterator[Running]:
    """`proxy` in front of the site's upstreams."""
    folder = place.folder / folder_name
    folder.mkdir()
    setting = Setting(place.upstreams, MODEL, place.plan.served_model, free_port(), folder)
    with running(proxy, setting, core=place.plan.server_core) as target:
        yield target


def _measure(place: Site, target: Running) -> Reading:
    problems: list[str] = []
    sizes = {stream: _checked_size(target, problems, stream=stream) for stream in (False, True)}
    if problems:
        return Reading(problems=tuple(problems))
    json_per_s, json_cpu_us = _throughput(place, target, problems, stream=False, size=sizes[False])
    streams_per_s, stream_cpu_us = _throughput(place, target, problems, stream=True, size=sizes[True])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        core_share = runner.run(_paced(target, place.plan, problems))
        p50_ms = p99_ms = None
        if json_per_s > 1.3 * LATENCY_RATE_PER_S:  # else it measures only its own queue
            p50_ms, p99_ms = runner.run(_latency(target, place.plan, problems))
    return Reading(
        json_per_s=json_per_s,
        json_cpu_us=json_cpu_us,
        streams_per_s=streams_per_s,
        stream_cpu_us=stream_cpu_us,
        paced_core_share=core_share if target.pid else None,
        latency_p50_ms=p50_ms,
        latency_p99_ms=p99_ms,
        resident_mb=procfs.resident_bytes(target.pid) / 1e6 if target.pid else None,
        start_s=target.start_s if target.pid else None,
        problems=tuple(problems),
    )


def body(*, stream: bool) -> dict[str, Any]:
    """1.4 kB of chat."""
    messages = [
        {"role": "system", "content": "You are a harbour master. Answer in one short sentence. " * 4},
        {
            "role": "user",
            "content": "When does the tide come in, and may a boat of two metres draught leave then? " * 13,
        },
    ]
    asked = {"model": MODEL, "messages": messages, "max_tokens": 32, "temperature": 0.7}
    return {**asked, "stream": True} if stream else asked


def _checked_size(target: Running, problems: list[str], *, stream: bool) -> int:
    """Bytes of one reply's body, once it has been seen to hold what the mock says."""
    answer = httpx2.post(
        f"{target.url}/chat/completions",
        json=body(stream=stream),
        headers={"authorization": f"Bearer {target.key}"},
        timeout=30,
        trust_env=False,
    )
    kind = "stream" if stream else "JSON reply"
    if answer.status_code != 200:
        problems.append(f"{kind}: status {answer.status_code}: {answer.text[:200]}")
    elif (text := _content(answer.text, stream=stream)) != reply_text():
        problems.append(f"{kind}: the content is not the mock's: {text[:80]!r}")
    return len(answer.content)


def check(target: Running, *, stream: bool) -> None:
    """Raises DidNotStartError where a reply is not what the mock says."""
    problems: list[str] = []
    _checked_size(target, problems, stream=stream)
    if problems:
        raise DidNotStartError(f"{target.name}: {problems[0]}")


def _content(text: str, *, stream: bool) -> str:
    """The text of a reply; of one that is not as OpenAI's, what is wrong with it."""
    try:
        if not stream:
            return str(json.loads(text)["choices"][0]["message"]["content"])
        events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        if not events or events.pop() != "[DONE]":
            return "a stream without [DONE]"
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)
    except (ValueError, LookupError) as error:
        return f"{error!r} in {text[:200]}"


def throughput(
    place: Site, target: Running, problems: list[str], *, stream: bool
) -> tuple[float, float | None]:
    """Requests per second, and processor time of one, of a server whose reply has been looked at."""
    size = _checked_size(target, problems, stream=stream)
    return (0.0, None) if problems else _throughput(place, target, problems, stream=stream, size=size)


def _throughput(
    place: Site, target: Running, problems: list[str], *, stream: bool, size: int
) -> tuple[float, float | None]:
    """Requests per second of a closed loop, and the server's processor time for one in microseconds."""
    kind, seconds, plan = "streams" if stream else "JSON", place.plan.duration_s, place.plan
    if plan.wrk:
        script = write_script(place, target, stream=stream)
        wrk.run(script, target.url, connections=CONNECTIONS, seconds=plan.warm_up_s)
        used_s = _cpu_s(target)
        result = wrk.run(script, target.url, connections=CONNECTIONS, seconds=seconds)
        used_s, per_s, elapsed_s = _cpu_s(target) - used_s, result.requests_per_s, result.duration_us / 1e6
        if result.problem:
            problems.append(f"{kind}: {result.problem}")
        elif result.bytes < result.requests * size:
            problems.append(f"{kind}: replies were shorter than the one that was looked at")
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            summary, used_s = runner.run(_own_throughput(target, plan, stream=stream))
        per_s, elapsed_s = summary.calls_per_s, summary.elapsed_s
        if summary.errors:
            problems.append(f"{kind}: {summary.errors}")
    if not target.pid:
        return per_s, None
    if used_s < _LEAST_CORE_SHARE * elapsed_s:
        problems.append(
            f"{kind}: less than {_LEAST_CORE_SHARE:.0%} of its core used: it waits for something (such as delayed ACKs), "
            "others took the core, or the load's core held it up; read the CPU time"
        )
    return per_s, used_s / elapsed_s / per_s * 1e6 if per_s else None


def write_script(place: Site, target: Running, *, stream: bool) -> Path:
    script = place.folder / f"{target.name.replace(' ', '-')}-{'stream' if stream else 'json'}.lua"
    wrk.write_script(script, target.key, body(stream=stream))
    return script


async def _own_throughput(target: Running, plan: Plan, *, stream: bool) -> tuple[Summary, float]:
    async with Load(_workload(target, stream=stream)) as load:
        await load.closed_loop(CONNECTIONS, seconds=plan.warm_up_s)
        load.samples.clear()
        begun_s, used_s = load.now_s(), _cpu_s(target)
        await load.closed_loop(CONNECTIONS, seconds=plan.duration_s)
        return summarise(load.samples, load.now_s() - begun_s), _cpu_s(target) - used_s


async def _paced(target: Running, plan: Plan, problems: list[str]) -> float:
    """The share of a core that the server uses for the paced streams; a problem where it falls behind."""
    workload = structs.replace(
        _workload(target, stream=True),
        prompt_start=PACED_PROMPT,
        max_tokens=int((plan.duration_s + 60) * CHUNKS_PER_S),
        timeout_s=600,
    )
    async with Load(workload) as load:
        streams = asyncio.create_task(load.closed_loop(PACED_STREAMS, calls=PACED_STREAMS))
        await asyncio.sleep(2 * plan.warm_up_s)
        begun_s, tokens, used_s = load.now_s(), load.tokens, _cpu_s(target)
        await asyncio.sleep(plan.duration_s)
        elapsed_s = load.now_s() - begun_s
        share, per_s = (_cpu_s(target) - used_s) / elapsed_s, (load.tokens - tokens) / elapsed_s
        streams.cancel()
        if load.samples:  # none of them was to end
            problems.append(f"paced streams ended: {headline(summarise(load.samples, elapsed_s))}")
        elif per_s < _KEEPS_UP * PACED_STREAMS * CHUNKS_PER_S:
            wanted = PACED_STREAMS * CHUNKS_PER_S
            problems.append(f"paced streams: it does not keep up, {per_s:,.0f} of {wanted:,} tokens/s")
    return share


def _cpu_s(target: Running) -> float:
    return procfs.cpu_s(target.pid) if target.pid else 0.0


async def _latency(target: Running, plan: Plan, problems: list[str]) -> tuple[float | None, float | None]:
    async with Load(_workload(target, stream=False)) as load:
        await load.open_loop(until(plan.warm_up_s, constant(LATENCY_RATE_PER_S)))
        load.samples.clear()
        begun_s = load.now_s()
        await load.open_loop(until(plan.duration_s, constant(LATENCY_RATE_PER_S)))
        summary = summarise(load.samples, load.now_s() - begun_s)
    if summary.errors:
        problems.append(f"at {LATENCY_RATE_PER_S} requests/s: {summary.errors}")
    if summary.duration is None:
        return None, None
    return summary.duration.percentiles_ms["p50"], summary.duration.percentiles_ms["p99"]


def _workload(target: Running, *, stream: bool) -> Workload:
    return Workload(
        url=target.url,
        key=target.key,
        model=MODEL,
        stream=stream,
        include_usage=False,
        prompt_tokens=260,
        max_tokens=32,
    )


@contextmanager
def held(place: Site, proxies: Sequence[Proxy]) -> Iterator[list[Running]]:
    """All of `proxies` at once, for a look at them with a profiler."""
    with ExitStack() as stack:
        yield [stack.enter_context(started(place, proxy, proxy.name)) for proxy in proxies]
