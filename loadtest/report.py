"""What a run amounts to: percentiles and errors by kind, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from rich.table import Table

from loadtest.sample import ABORTED, OK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from loadtest.sample import Sample

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The least of `ordered` that at least `fraction` of them do not exceed (nearest rank: always a value that was seen)."""
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[max(0, ceil(fraction * len(ordered)) - 1)]


class Spread(Struct, frozen=True):
    """How one quantity was spread over the calls, in milliseconds."""

    mean_ms: float
    percentiles_ms: dict[str, float]
    max_ms: float


class Summary(Struct, frozen=True):
    """A run in figures. Latencies are those of calls that ended well; they count from the intended arrival."""

    calls: int
    ok: int
    aborted: int
    errors: dict[str, int]
    """By kind."""
    elapsed_s: float
    calls_per_s: float
    """Calls that ended well."""
    tokens: int
    tokens_per_s: float
    bytes: int
    duration: Spread | None
    ttft: Spread | None
    time_per_token: Spread | None
    lateness: Spread | None
    """By how much the generator itself began calls late. It is part of the latencies; if it is large, so is the error."""


def spread(values_s: Iterable[float | None]) -> Spread | None:
    """The spread of those of `values_s` that are known, None where none is."""
    ordered = sorted(value * 1000 for value in values_s if value is not None)
    if not ordered:
        return None
    return Spread(
        mean_ms=sum(ordered) / len(ordered),
        percentiles_ms={name: percentile(ordered, fraction) for name, fraction in QUANTILES.items()},
        max_ms=ordered[-1],
    )


def summarise(samples: Sequence[Sample], elapsed_s: float) -> Summary:
    kinds = Counter(sample.outcome for sample in samples)
    good = [sample for sample in samples if sample.outcome == OK]
    tokens = sum(sample.tokens for sample in samples)
    return Summary(
        calls=len(samples),
        ok=kinds[OK],
        aborted=kinds[ABORTED],
        errors={kind: number for kind, number in sorted(kinds.items()) if kind not in {OK, ABORTED}},
        elapsed_s=elapsed_s,
        calls_per_s=kinds[OK] / elapsed_s,
        tokens=tokens,
        tokens_per_s=tokens / elapsed_s,
        bytes=sum(sample.bytes for sample in samples),
        duration=spread(sample.duration_s for sample in good),
        ttft=spread(sample.ttft_s for sample in good),
        time_per_token=spread(sample.time_per_token_s for sample in good),
        lateness=spread(sample.started_s - sample.intended_s for sample in samples),
    )


def latency_table(summary: Summary) -> Table:
    """The spreads, one row each."""
    table = Table(title=headline(summary), title_justify="left")
    table.add_column("ms")
    for name in ("mean", *QUANTILES, "max"):
        table.add_column(name, justify="right")
    rows = {
        "duration": summary.duration,
        "time to first token": summary.ttft,
        "time per output token": summary.time_per_token,
        "generator's lateness": summary.lateness,
    }
    for name, row in rows.items():
        if row is not None:
            table.add_row(
                name, *(f"{each:.2f}" for each in (row.mean_ms, *row.percentiles_ms.values(), row.max_ms))
            )
    return table


def headline(summary: Summary) -> str:
    errors = ", ".join(f"{kind} {number}" for kind, number in summary.errors.items()) or "none"
    return (
        f"{summary.calls} calls in {summary.elapsed_s:.1f} s: {summary.ok} ok ({summary.calls_per_s:.1f}/s), "
        f"{summary.aborted} aborted; errors: {errors}; {summary.tokens} tokens ({summary.tokens_per_s:.0f}/s), {summary.bytes} bytes"
    )


def write_json(found: Struct, file: Path | None) -> None:
    """For programs, where a file is wanted."""
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a README: the first column text, the others figures."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
