"""What the rounds of a bench amount to: medians for each server, and the ratios they are run for.

A shared machine is noisy, so the figures of one round mean little. The rounds are interleaved, the medians of each
server are taken over its rounds, and ratios are between medians of the same run.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from msgspec import Struct
from rich.table import Table

from loadtest.report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DIRECT = "mock directly"
BARE_PROXY = "nginx"
OURS = "tidegate"
RUST_ROUTERS = ("sglang-router", "vllm-router")
FIGURES = {
    "json_per_s": "JSON replies/s",
    "json_cpu_us": "CPU us each",
    "streams_per_s": "burst streams/s",
    "stream_cpu_us": "CPU us each",
    "paced_core_share": "core for 256 paced streams",
    "latency_p50_ms": "p50 ms at 1,000/s",
    "latency_p99_ms": "p99 ms at 1,000/s",
    "resident_mb": "MB",
    "start_s": "start s",
}
_COMPARED = {
    "json_per_s": "JSON replies/s",
    "json_cpu_us": "CPU of a JSON reply",
    "streams_per_s": "burst streams/s",
    "stream_cpu_us": "CPU of a burst stream",
    "paced_core_share": "CPU of paced streams",
}
_SHAKEN = {"json_per_s", "streams_per_s"}
"""What a busy machine, or a server that waits, makes worthless; processor time is not among it."""
_LESS_IS_BETTER = {"json_cpu_us", "stream_cpu_us", "paced_core_share"}


class Reading(Struct, frozen=True):
    """One server in one round. None: not measured, and `problems` or the server's nature says why."""

    json_per_s: float | None = None
    json_cpu_us: float | None = None
    """Processor time of a reply: holds still on a busy machine, where requests per second do not."""
    streams_per_s: float | None = None
    stream_cpu_us: float | None = None
    paced_core_share: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    resident_mb: float | None = None
    start_s: float | None = None
    problems: tuple[str, ...] = ()


class Comparison(Struct, frozen=True):
    """All of a bench's outcome."""

    medians: dict[str, Reading]
    """By server; `problems` are those of all its rounds."""
    rounds: dict[str, list[Reading]]
    left_out: dict[str, str]
    conditions: str
    """How it was measured."""


def compare(rounds: dict[str, list[Reading]], left_out: dict[str, str], conditions: str) -> Comparison:
    return Comparison(
        {name: middle(readings) for name, readings in rounds.items()}, rounds, left_out, conditions
    )


def middle(readings: Sequence[Reading]) -> Reading:
    """The median of each figure over the rounds that have it, and every problem met, once."""
    figures: dict[str, float | None] = {}
    for figure in FIGURES:
        seen = [value for reading in readings if (value := getattr(reading, figure)) is not None]
        figures[figure] = median(seen) if seen else None
    problems = dict.fromkeys(problem for reading in readings for problem in reading.problems)
    return Reading(**figures, problems=tuple(problems))


def ratio(medians: dict[str, Reading], name: str, peers: Iterable[str], figure: str) -> float | None:
    """`name`'s figure over that of the best of `peers`; None where either is missing."""
    own = getattr(medians[name], figure) if name in medians else None
    others = [
        value for peer in peers if peer in medians and (value := getattr(medians[peer], figure)) is not None
    ]
    best = (min if figure in _LESS_IS_BETTER else max)(others, default=None)
    return None if own is None or not best else own / best


def ratio_lines(medians: dict[str, Reading], name: str) -> list[str]:
    """The ratios for people, one line a figure."""
    lines = []
    for figure, title in _COMPARED.items():
        to_bare, to_rust = (
            ratio(medians, name, [BARE_PROXY], figure),
            ratio(medians, name, RUST_ROUTERS, figure),
        )
        parts = [f"{to_bare:.2f} x {BARE_PROXY}"] if to_bare is not None else []
        parts += [f"{to_rust:.2f} x the better Rust router"] if to_rust is not None else []
        if parts:
            doubt = "" if figure not in _SHAKEN else _doubt(medians, [name, BARE_PROXY, *RUST_ROUTERS])
            lines.append(f"{name}, {title}: {', '.join(parts)}{doubt}")
    return lines + _added_latency(medians, name)


def variant_lines(medians: dict[str, Reading], name: str) -> list[str]:
    """What it costs this gateway to be started otherwise: a line, of the figures that both have."""
    parts = [
        f"{title} {found:.2f} x{_doubt(medians, [name, OURS]) if figure in _SHAKEN else ''}"
        for figure, title in _COMPARED.items()
        if (found := ratio(medians, name, [OURS], figure)) is not None
    ]
    return [f"{name}, against {OURS}: {', '.join(parts)}"] if parts else []


def _doubt(medians: dict[str, Reading], names: Iterable[str]) -> str:
    """A ratio of requests per second is no result where one of its rows is marked."""
    marked = [name for name in names if name in medians and medians[name].problems]
    return f" (no result: {', '.join(marked)} marked)" if marked else ""


def _added_latency(medians: dict[str, Reading], name: str) -> list[str]:
    own, direct = medians.get(name), medians.get(DIRECT)
    if own is None or direct is None or None in {own.latency_p50_ms, own.latency_p99_ms}:
        return []
    added = [
        f"{quantile} {getattr(own, figure) - getattr(direct, figure):.2f} ms"
        for quantile, figure in (("p50", "latency_p50_ms"), ("p99", "latency_p99_ms"))
        if getattr(direct, figure) is not None
    ]
    return [f"{name}, latency added at 1,000 requests/s: {', '.join(added)}"] if added else []


def cells(reading: Reading) -> list[str]:
    """A server's figures as text, "-" where there is none."""
    return [_cell(figure, getattr(reading, figure)) for figure in FIGURES]


def _cell(figure: str, value: float | None) -> str:
    if value is None:
        return "-"
    if figure == "paced_core_share":
        return f"{value * 100:.0f} %"
    if figure in {"latency_p50_ms", "latency_p99_ms", "start_s"}:
        return f"{value:.2f}"
    return f"{value:,.0f}"


def comparison_table(comparison: Comparison) -> Table:
    table = Table(title="Medians", title_justify="left")
    table.add_column("in front of the mock")
    for name in FIGURES.values():
        table.add_column(name, justify="right")
    for name, reading in comparison.medians.items():
        table.add_row(name + (" (!)" if reading.problems else ""), *cells(reading))
    return table


def notes(comparison: Comparison) -> list[str]:
    """Everything a reader of the table must know: conditions, problems, what was left out, the ratios."""
    lines = [comparison.conditions]
    lines += [
        f"(!) {name}: {problem}" for name, each in comparison.medians.items() for problem in each.problems
    ]
    lines += [f"left out: {name}: {reason}" for name, reason in comparison.left_out.items()]
    variants = [name for name in comparison.medians if name.startswith(f"{OURS}-")]
    beside_ours = [line for name in variants for line in variant_lines(comparison.medians, name)]
    return lines + ratio_lines(comparison.medians, OURS) + beside_ours


def markdown(comparison: Comparison) -> str:
    """The table and its notes as a README wants them."""
    rows = [
        [name + (" (!)" if reading.problems else ""), *cells(reading)]
        for name, reading in comparison.medians.items()
    ]
    table = markdown_table(["in front of the mock", *FIGURES.values()], rows)
    return table + "\n\n" + "\n".join(f"- {line}" for line in notes(comparison)) + "\n"
