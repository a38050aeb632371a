"""The tables of how a gateway grows, for people and for a README."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.box import SIMPLE
from rich.table import Table

from loadtest.report import markdown_table
from loadtest.scale.model import FULL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.scale.model import Row
    from loadtest.scale.run import Grown


_SERVED = (
    *("endpoints", "CPU us of a JSON reply", "core while idle", "/metrics ms", "kB", "fleet ms", "kB", "MB"),
    "start s",
)
_TOLD = (
    *("processes", "endpoints", "batches/s out", "bytes each", "kB/s out", "batches/s in", "kB/s in"),
    *("us to say one", "us to hear one", "core"),
)
_MODEL = (
    *("calls/s", "endpoints", "processes", "gateway CPU", "routing", "gossip", "Redis", "ledger rows"),
    *("most used", "too small"),
)


class Sheet(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def sheets(grown: Grown) -> list[Sheet]:
    asked = grown.asked
    return [
        Sheet(
            "Processes of one gateway, which share this machine with load and mock",
            ["processes", "JSON replies/s", "CPU us each", "burst streams/s", "CPU us each", "MB"],
            _processes(grown),
        ),
        Sheet(
            "A gateway, by its endpoints",
            _SERVED,
            _served(grown),
        ),
        Sheet(
            "Routing, by endpoints",
            ["endpoints", "plan us", "rest of a call us", "MB with its index full"],
            [
                [
                    str(each.endpoints),
                    f"{each.plan_us:.0f}",
                    f"{each.round_us:.0f}",
                    f"{each.resident_mb:.0f}",
                ]
                for each in grown.routed
            ],
        ),
        Sheet(
            f"Gossip, by processes and endpoints, at {asked.calls_per_s:,.0f} calls/s of all together",
            _TOLD,
            _told(grown),
        ),
        Sheet(
            "Ledger, by writers",
            ["database", "writers", "rows/s", "CPU us of a row, gateway", "database"],
            _written(grown),
        ),
        Sheet(
            "Redis", ["what", "a second", "its CPU us each", "a core of it would do, a second"], _redis(grown)
        ),
        Sheet(
            f"The model: {asked.tenants:,} tenants with limits; nothing is to be used for more than {FULL:.0%}",
            _MODEL,
            [_row(each) for each in grown.model],
        ),
    ]


def _processes(grown: Grown) -> list[list[str]]:
    return [
        [
            name.rpartition("-")[2] if "-" in name else "1",
            *(
                _number(value)
                for value in (each.json_per_s, each.json_cpu_us, each.streams_per_s, each.stream_cpu_us)
            ),
            _number(each.resident_mb),
        ]
        for name, each in grown.processes.medians.items()
    ]


def _served(grown: Grown) -> list[list[str]]:
    return [
        [
            str(each.endpoints),
            _number(each.json_cpu_us),
            f"{each.idle_core_share:.1%}",
            *(_number(value) for value in (each.metrics_ms, each.metrics_kb, each.fleet_ms, each.fleet_kb)),
            _number(each.resident_mb),
            f"{each.start_s:.1f}",
        ]
        for each in grown.served
    ]


def _told(grown: Grown) -> list[list[str]]:
    rows = []
    for each in grown.told:
        prompts = each.prompts_per_s / max(1.0, each.batches_per_s)
        hearing_us = each.standings_per_batch * each.standing_us + prompts * each.prompt_us
        figures = (each.batches_per_s, each.batch_bytes, each.out_bytes_per_s / 1e3, each.in_per_s)
        more = (each.in_bytes_per_s / 1e3, each.saying_us, hearing_us)
        rows.append(
            [
                str(each.processes),
                str(each.endpoints),
                *(_number(value) for value in (*figures, *more)),
                f"{each.core_share:.1%}",
            ]
        )
    return rows


def _written(grown: Grown) -> list[list[str]]:
    return [
        [
            each.database,
            str(each.writers),
            *(_number(value) for value in (each.rows_per_s, each.writer_us, each.database_us)),
        ]
        for each in grown.written
    ]


def _redis(grown: Grown) -> list[list[str]]:
    limits = [
        [
            f"exchange of {each.accounts} accounts",
            _number(each.per_s),
            _number(each.redis_us),
            _number(1e6 / each.redis_us),
        ]
        for each in grown.exchanged
    ]
    gossip = [
        [
            f"batch of {each.batch_bytes / 1e3:.1f} kB to {each.listeners}",
            "-",
            _number(each.redis_us),
            _number(1e6 / each.redis_us),
        ]
        for each in grown.passed_on
    ]
    return limits + gossip


def _row(each: Row) -> list[str]:
    use = each.use
    shares = (use.gateway, use.routing, use.gossip, use.redis, use.ledger)
    return [
        f"{each.calls_per_s:,.0f}",
        str(each.endpoints),
        f"{use.processes:,}",
        *(f"{share:.0%}" for share in shares),
        next(iter(each.parts)),
        ", ".join(each.too_small) or "-",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def notes(grown: Grown) -> list[str]:
    """What is full first, and what a reader of the tables must know."""
    lines = []
    for count, full in grown.full_at.items():
        order = [f"{part} at {calls:,.0f}" for part, calls in full.items()]
        lines.append(
            f"full with {count} endpoints, by calls/s: {', then '.join(order) or 'nothing, ever so far'}"
        )
    lines += [
        f"(!) {each.endpoints} endpoints: {problem}" for each in grown.served for problem in each.problems
    ]
    lines += [
        f"(!) {name}: {problem}"
        for name, each in grown.processes.medians.items()
        for problem in each.problems
    ]
    return [*lines, *grown.left_out]


def table(sheet: Sheet) -> Table:
    drawn = Table(title=sheet.title, title_justify="left", box=SIMPLE)
    for number, column in enumerate(sheet.columns):
        drawn.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for cells in sheet.rows:
        drawn.add_row(*cells)
    return drawn


def markdown(grown: Grown) -> str:
    """All tables and notes as a README wants them."""
    parts = [f"{sheet.title}:\n\n{markdown_table(sheet.columns, sheet.rows)}" for sheet in sheets(grown)]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes(grown))]) + "\n"
