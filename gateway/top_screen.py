"""`tidegate top` on a terminal: what matters most is there in 80 columns and 24 lines, and more where there is room."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from gateway.top import Node, Picture

_TONES = {
    **dict.fromkeys(("serving", "ok"), "green"),
    **dict.fromkeys(("ramping", "leaving", "draining", "probing", "planning", "queued", "asked"), "yellow"),
    **dict.fromkeys(("answering",), "cyan"),
    **dict.fromkeys(("client_left",), "dim"),
}
_LEAST_CALLS = 4
"""Lines for calls, however many endpoints there are."""


class Column(NamedTuple):
    title: str
    width: int
    cell: Callable[[Any], str | Text]
    rank: int
    """Those with the lowest are there where there is no room for all."""
    justify: Literal["left", "right"] = "right"


def short(value: float | None) -> str:
    """In four characters or five."""
    if value is None:
        return "-"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit * 0.9995:
            scaled = value / unit
            return f"{scaled:.1f}{letter}" if scaled < 9.95 else f"{scaled:.0f}{letter}"
    return f"{value:.1f}" if 0 < value < 9.95 and value % 1 else f"{value:.0f}"


def span(ms: float | None) -> str:
    if ms is None:
        return "-"
    if ms < 999.5:
        return f"{ms:.0f}ms"
    s = ms / 1000
    if s < 99.5:
        return f"{s:.1f}s"
    return f"{s / 60:.0f}m" if s < 5970 else f"{s / 3600:.0f}h"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def money(nano_usd: int) -> str:
    """With two digits that say something."""
    value = nano_usd / 1e9
    if value >= 1 or not nano_usd:
        return f"${value:.2f}"
    places = 2
    while value < 10 ** (1 - places) and places < 7:
        places += 1
    return f"${value:.{places}f}"


def _state(word: str) -> Text:
    return Text(word.replace("_", " "), _TONES.get(word, "red"))


def _errors(node: Node) -> Text:
    return Text(short(node.errors), "red" if node.errors else "dim")


def _note(node: Node) -> str:
    if node.leaves_in_s is not None:
        return f"leaves in {span(max(0.0, node.leaves_in_s) * 1000)}"
    return node.reason or ""


_NODES = (
    Column("ENDPOINT", 16, lambda node: node.name, 0, "left"),
    Column("STATE", 8, lambda node: _state(node.state), 0, "left"),
    Column("CALLS", 5, lambda node: short(node.inflight), 0),
    Column("WAIT", 4, lambda node: short(node.waiting), 8),
    Column("BUSY", 4, lambda node: share(node.busy), 3),
    Column("KV", 4, lambda node: share(node.kv_usage), 4),
    Column("HITS", 4, lambda node: share(node.cache_hits), 5),
    Column("READS/s", 7, lambda node: short(node.prefill_tokens_per_s), 6),
    Column("WRITES/s", 8, lambda node: short(node.decode_tokens_per_s), 7),
    Column("TOK/s", 5, lambda node: short(node.tokens_per_s), 1),
    Column("DONE", 5, lambda node: short(node.answered), 9),
    Column("ERR", 4, _errors, 2),
    Column("EARNED 1d", 10, lambda node: money(node.earned_nano_usd), 13),
    Column("GPU", 10, lambda node: node.gpu or node.kind, 12, "left"),
    Column("REGION", 8, lambda node: node.region or "-", 14, "left"),
    Column("MODEL", 16, lambda node: node.model, 11, "left"),
    Column("NOTE", 16, _note, 10, "left"),
)

_CALLS = (
    Column("AT", 8, lambda call: time.strftime("%H:%M:%S", time.localtime(call.time_ms / 1000)), 8, "left"),
    Column("STATE", 10, lambda call: _state(call.state), 0, "left"),
    Column("TENANT", 10, lambda call: call.tenant, 7, "left"),
    Column("MODEL", 16, lambda call: call.model, 9, "left"),
    Column("ENDPOINT", 14, lambda call: call.endpoint or "-", 0, "left"),
    Column("TIER", 8, lambda call: call.tier, 5, "left"),
    Column("IN", 5, lambda call: short(call.prompt_tokens), 1),
    Column("OUT", 5, lambda call: short(call.completion_tokens), 0),
    Column("FIRST", 5, lambda call: span(call.ttft_ms), 3),
    Column("TOOK", 5, lambda call: span(call.duration_ms), 2),
    Column("COST", 10, lambda call: money(call.cost_nano_usd) if call.ended else "-", 4),
    Column("CHARGED", 10, lambda call: money(call.charge_nano_usd) if call.ended else "-", 10),
    Column("STEPS", 8, lambda call: ", ".join(call.steps), 6, "left"),
)


def _table(columns: Sequence[Column], rows: Sequence[Any], width: int) -> Table:
    """Those of the columns that there is room for; the last one has what is left."""
    chosen: set[Column] = set()
    left = width
    for column in sorted(columns, key=lambda each: each.rank):
        if column.width + 1 > left + 1:
            break
        chosen.add(column)
        left -= column.width + 1
    kept = [column for column in columns if column in chosen]
    wide = next((at for at, column in reversed([*enumerate(kept)]) if column.justify == "left"), 0)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold dim", width=width)
    for at, column in enumerate(kept):
        more = max(0, left) if at == wide else 0
        table.add_column(
            column.title, justify=column.justify, width=column.width + more, no_wrap=True, overflow="ellipsis"
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in kept))
    return table


def _head(picture: Picture, width: int) -> Text:
    at = time.strftime("%H:%M:%S", time.localtime(picture.at_ms / 1000))
    processes = f", {picture.processes} processes" if picture.processes > 1 else ""
    head = Text.assemble(("tidegate", "bold"), f" {picture.url}{processes}  {at}  ", no_wrap=True)
    if picture.away is None:
        head.append("live", "green")
    else:
        head.append(f"away, trying again: {picture.away}", "bold red")
    head.truncate(width, overflow="ellipsis")
    return head


def _sums(picture: Picture, width: int) -> Text:
    totals, up = picture.totals, sum(node.reason is None for node in picture.endpoints)
    about = "~" if totals.unseen else ""
    parts = [
        (short(totals.running), "under way"),
        (about + short(totals.calls_per_s), "calls/s"),
        (about + short(totals.tokens_per_s), "tok/s"),
        (f"{span(totals.ttft_p50_ms)} {span(totals.ttft_p99_ms)}", "TTFT p50 p99"),
        (f"{up}/{len(picture.endpoints)}", "up"),
        (short(totals.failed), "failed"),
    ]
    line = Text(no_wrap=True)
    for at, (value, name) in enumerate(parts):
        line.append("" if not at else "  ").append(value, "bold").append(f" {name}", "dim")
    line.truncate(width, overflow="ellipsis")
    return line


def _in_view(nodes: list[Node], lines: int) -> tuple[list[Node], str]:
    """Of the endpoints, as many as there are lines for, those in trouble and those at work first; and what is left out."""
    if len(nodes) <= lines:
        return nodes, ""
    first = sorted(nodes, key=lambda node: (node.reason is None, -node.inflight, node.name))
    left = first[max(1, lines - 1) :]
    well = sum(node.reason is None for node in left)
    return first[: max(1, lines - 1)], f"and {len(left)} more, {well} of them up"


def screen(picture: Picture, width: int, height: int | None = None) -> RenderableType:
    """For so many columns and lines; without `height`, all of it."""
    lines = max(
        4, (height or 10_000) - 7
    )  # but for two lines of sums, an empty one, two headers, one between, one below
    calls_least = min(max(_LEAST_CALLS, lines // 3), len(picture.calls) or 1)
    nodes, more = _in_view(picture.endpoints, max(2, lines - calls_least))
    calls = picture.calls[: max(1, lines - len(nodes) - bool(more))]
    parts: list[RenderableType] = [_head(picture, width), _sums(picture, width), Text()]
    parts.append(_table(_NODES, nodes, width))
    if more:
        parts.append(Text(more, "dim"))
    parts.append(Text())
    parts.append(_table(_CALLS, calls, width) if calls else Text("No calls of late.", "dim"))
    return Group(*parts)
