"""How the administration commands print rows: a table to read, JSON or CSV to read on.

JSON and CSV put nothing but the rows on stdout. A table that goes to no terminal is plain aligned text, as wide as it
needs to be, so that `grep` and `awk` see whole values.
"""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class ReportFormat(StrEnum):
    """For what is no list of rows."""

    TABLE = "table"
    JSON = "json"


class BillFormat(StrEnum):
    """Of invoices and the like."""

    JSON = "json"
    CSV = "csv"
    PDF = "pdf"


def show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_format: Format) -> None:
    """Print `rows` on stdout: all there is of them as JSON, `columns` as table and CSV."""
    out = sys.stdout
    if as_format is Format.JSON:
        json.dump([dict(row) for row in rows], out, indent=2, ensure_ascii=False)
        out.write("\n")
    elif as_format is Format.CSV:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(row[column]) for column in columns] for row in rows)
    elif out.isatty():
        _rich_table(rows, columns)
    else:
        _plain_table(rows, columns, out)


def usd(nano_usd: int) -> str:
    """The exact amount in USD, with cents at the least: 1_500_000_000 is 1.50, and 25 is 0.000000025."""
    whole, rest = divmod(abs(nano_usd), 1_000_000_000)
    cents, beyond = divmod(rest, 10_000_000)
    sign = "-" if nano_usd < 0 else ""
    return f"{sign}{whole}.{cents:02d}" + f"{beyond:07d}".rstrip("0")


def iso(time_ms: int) -> str:
    """A moment as ISO has it, to the second, in UTC."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _is_number(column: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return column.endswith("_usd") or all(isinstance(row[column], int | float) for row in rows)


def _plain_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], out: TextIO) -> None:
    cells = [list(columns), *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [_is_number(column, rows) for column in columns]
    for line in cells:
        aligned = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(line, widths, right, strict=True)
        )
        out.write("  ".join(aligned).rstrip() + "\n")


def _rich_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console  # noqa: PLC0415  not needed where the output is read by a program
    from rich.table import Table  # noqa: PLC0415  as above

    table = Table()
    for column in columns:
        table.add_column(
            column.replace("_", " "),
            justify="right" if _is_number(column, rows) else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_text(row[column]) for column in columns))
    Console(markup=False, highlight=False).print(table)
