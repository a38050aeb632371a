"""The metrics of all processes on one page: a scrape reaches one of them, and Prometheus is to see one gateway.

The process that is asked asks the others, and each writes what it has counted to a file; the page is the sum of those
files. So a process that has died has its last word in every sum from then on, and no counter ever falls, which Prometheus
would take for a start from zero. Of those that are gone the supervisor makes one file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from prometheus_client import CollectorRegistry

    from gateway.supervisor import Seat
    from gateway.telemetry import Telemetry

log = logging.getLogger(__name__)

ANSWER_S = 2.0
"""For the others to say what they have counted. Of one that does not, what it said last counts."""

SEEN_BY_ALL = {
    "tidegate_endpoint_available": max,
    "tidegate_endpoint_prefill_tokens_per_second": max,
    "tidegate_endpoint_keys": max,
    "tidegate_endpoint_kv_usage": max,
    "tidegate_endpoint_waiting": max,
    "tidegate_endpoint_foreign_running": min,
    "tidegate_endpoint_kv_tokens": max,
    "tidegate_kv_events_held_tokens": max,
    "tidegate_kv_events_believed": max,
    "tidegate_ledger_lag_seconds": max,
    "tidegate_config_valid": min,
    "tidegate_config_keys_waiting": max,
    "tidegate_gossip_peers": max,
    "tidegate_limits_drift_nano_usd": max,
    "tidegate_limits_store_away": max,
    "tidegate_events_waiting": max,
    "tidegate_events_lag_seconds": max,
    "tidegate_events_set_aside": max,
}
"""Gauges of what all processes look at, and what is to be shown where they do not see the same. All others are added up."""

_GONE = "gone.counts"
_SUFFIX = ".counts"
_SOCKET = ".socket"

Labels = tuple[tuple[str, str], ...]


class Family(Struct, array_like=True):
    name: str
    meaning: str
    kind: str
    samples: list[tuple[str, Labels, float]]


class Counted(Struct, array_like=True):
    """What one process has counted, or several that are gone."""

    processes: list[str]
    families: list[Family]


_read = msgspec.msgpack.Decoder(Counted).decode


class Sum(Collector):
    """What several have counted, as one."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@asynccontextmanager
async def shared(telemetry: Telemetry, seat: Seat | None) -> AsyncIterator[None]:
    """Count together with the other processes, where there are any, as long as the block runs."""
    if seat is None:
        telemetry.registry.register(Sum(list(_processes(1, 0))))
        yield
        return
    own = ProcessMetrics(seat, telemetry.registry)
    async with await asyncio.start_unix_server(own.answer, seat.folder / f"{seat.name}{_SOCKET}"):
        telemetry.of_all = own.of_all
        yield


class ProcessMetrics:
    """Those of this process, among the others."""

    def __init__(self, seat: Seat, registry: CollectorRegistry) -> None:
        self._folder = seat.folder
        self._name = seat.name
        self._registry = registry

    async def of_all(self) -> Collector:
        others = [path for path in self._folder.glob(f"*{_SOCKET}") if path.stem != self._name]
        await asyncio.gather(*(_ask(path) for path in others))
        self._write()
        return Sum(await asyncio.to_thread(summed, self._folder))

    async def answer(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """It is done when the connection is closed."""
        try:
            self._write()
        finally:
            writer.close()

    def _write(self) -> None:
        counted = Counted([self._name], [_family(metric) for metric in self._registry.collect()])
        write(self._folder, self._name, counted)


async def _ask(path: Path) -> None:
    with contextlib.suppress(OSError, TimeoutError):  # it is gone, or is too busy: its file is there
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
            await reader.read()
            writer.close()


def _family(metric: Metric) -> Family:
    samples = [(each.name, tuple(each.labels.items()), float(each.value)) for each in metric.samples]
    return Family(metric.name, metric.documentation, metric.type, samples)


def write(folder: Path, name: str, counted: Counted) -> None:
    """In one step, so that nobody reads half of it."""
    new = folder / f"{name}.new"
    new.write_bytes(msgspec.msgpack.encode(counted))
    new.replace(folder / f"{name}{_SUFFIX}")


def bury(folder: Path, name: str) -> None:
    """A process is gone: what it has counted is added to what others have that are. To be done by the supervisor."""
    for left in folder.glob(f"{name}.*"):
        if left.suffix != _SUFFIX:
            left.unlink(missing_ok=True)
    last = _found(folder / f"{name}{_SUFFIX}") or Counted([name], [])
    gone = _found(folder / _GONE) or Counted([], [])
    families = [_family(each) for each in _added([gone, last]) if each.type != "gauge"]
    try:
        write(folder, _GONE.removesuffix(_SUFFIX), Counted([*gone.processes, name], families))
        (folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
    except OSError as failure:
        log.error("what a process has counted cannot be kept: %s", failure)  # noqa: TRY400 - the disk's fault


def summed(folder: Path) -> list[Metric]:
    """What all processes have counted that are there or have been."""
    there = [_found(path) for path in folder.glob(f"*{_SUFFIX}") if path.name != _GONE]
    # Read last: whoever has been buried meanwhile may be in both, and counts in this one.
    gone = _found(folder / _GONE) or Counted([], [])
    alive = [each for each in there if each is not None and not set(each.processes) & set(gone.processes)]
    return [*_added([gone, *alive]), *_processes(len(alive), len(gone.processes))]


def _processes(alive: int, gone: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("tidegate_processes", "Processes of the gateway that are there.", value=alive)
    yield CounterMetricFamily(
        "tidegate_processes_ended_total", "Processes that have ended by themselves.", value=gone
    )


def _found(path: Path) -> Counted | None:
    try:
        return _read(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as failure:
        log.error("what a process has counted cannot be read: %s", failure)  # noqa: TRY400 - the file's fault
        return None


def _added(all_counted: Iterable[Counted]) -> list[Metric]:
    families: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, Labels], float]] = {}
    for family in (family for counted in all_counted for family in counted.families):
        families.setdefault(family.name, family)
        found = values.setdefault(family.name, {})
        choose = SEEN_BY_ALL.get(family.name)
        for name, labels, value in family.samples:
            known = found.get((name, labels))
            if known is None:
                found[name, labels] = value
            else:
                found[name, labels] = known + value if choose is None else choose(known, value)
    metrics = []
    for family in families.values():
        metric = Metric(family.name, family.meaning, family.kind)
        for (name, labels), value in values[family.name].items():
            metric.add_sample(name, dict(labels), value)
        metrics.append(metric)
    return metrics
