"""`tidegate invoice`, `payout` and `export focus`: what the ledger says to those who pay and are paid.

The functions are mounted by gateway.cli.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec import structs

from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, open_store
from gateway.output import usd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.invoice import Invoice, Statement

export = typer.Typer(no_args_is_help=True, help="Usage and money in formats of others.")

MonthArgument = Annotated[str, typer.Argument(metavar="YYYY-MM")]
OutOption = Annotated[Path | None, typer.Option("--out", help="A file to write to, instead of stdout.")]

_LINE = ("project", "model", "tier", "calls", "prompt_tokens", "cached_tokens", "completion_tokens")
_COLUMNS = ("kind", "id", *_LINE, "reasoning_tokens", "note", "amount_usd")


class InvoiceFormat(StrEnum):
    JSON = "json"
    CSV = "csv"
    PDF = "pdf"


InvoiceFormatOption = Annotated[InvoiceFormat, typer.Option("--format", help="How to write it.")]


def invoice(
    tenant: Annotated[str, typer.Argument(metavar="TENANT")],
    month: MonthArgument,
    as_format: InvoiceFormatOption = InvoiceFormat.JSON,
    out: OutOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """What a tenant owes for a month: usage, credits, refunds, corrections, payments."""
    from gateway import invoice as of  # noqa: PLC0415  not needed by other commands

    with open_store(config) as store, _argument("YYYY-MM"):
        made = of.invoice(store, tenant, month)
    _write(made, as_format, out)


def payout(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    month: MonthArgument,
    as_format: InvoiceFormatOption = InvoiceFormat.JSON,
    out: OutOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """What a node has earned in a month, and been paid."""
    from gateway import invoice as of  # noqa: PLC0415  as above

    with open_store(config) as store, _argument("YYYY-MM"):
        made = of.statement(store, node, month)
    _write(made, as_format, out)


@export.command()
def focus(
    month: MonthArgument,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    issuer: Annotated[str, typer.Option(help="Who bills.")] = "Tidegate",
    validator_names: Annotated[  # noqa: FBT002 - an option
        bool, typer.Option("--validator-names", help="Columns named as focus-validator 1.0.0 wants them.")
    ] = False,
    out: OutOption = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """The charges of a month as a FOCUS 1.0 CSV."""
    from gateway.focus import COLUMNS, VALIDATOR_NAMES, VALIDATOR_TYPE, rows  # noqa: PLC0415  as above

    text = io.StringIO()
    names = VALIDATOR_NAMES if validator_names else {}
    columns = (*COLUMNS, VALIDATOR_TYPE) if validator_names else COLUMNS
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writerow({column: names.get(column, column) for column in columns})
    with open_store(config) as store, _argument("YYYY-MM"):
        for row in rows(store, month, issuer, tenant):
            writer.writerow({**row, VALIDATOR_TYPE: row["ChargeCategory"]})
    _put(text.getvalue().encode(), out)


@contextmanager
def _argument(name: str) -> Iterator[None]:
    """A ValueError in the block is about the argument with this name."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=name) from None


def _write(made: Invoice | Statement, as_format: InvoiceFormat, out: Path | None) -> None:
    if as_format is InvoiceFormat.PDF:
        from gateway.invoice import in_words  # noqa: PLC0415  as above
        from gateway.pdf import document  # noqa: PLC0415  as above

        _put(document(in_words(made)), out)
    elif as_format is InvoiceFormat.CSV:
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(_rows(made))
        _put(text.getvalue().encode(), out)
    else:
        _put(json.dumps(_with_usd(structs.asdict(made)), indent=2, ensure_ascii=False).encode() + b"\n", out)


def _rows(made: Invoice | Statement) -> list[dict[str, Any]]:
    moved = [*getattr(made, "adjustments", ()), *made.payments]
    lines = [{"kind": "usage", **structs.asdict(line)} for line in made.lines]
    rows = [*lines, *(structs.asdict(each) for each in moved)]
    return [{**row, "amount_usd": usd(row["amount_nano_usd"])} for row in rows]


def _with_usd(value: Any) -> Any:
    """Beside every amount in nano-USD, the same in USD."""
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for name, each in value.items():
            found[name] = _with_usd(each)
            if name.endswith("_nano_usd"):
                found[name.removesuffix("_nano_usd") + "_usd"] = usd(each)
        return found
    if isinstance(value, tuple | list):
        return [
            _with_usd(structs.asdict(each) if hasattr(each, "__struct_fields__") else each) for each in value
        ]
    return value


def _put(content: bytes, out: Path | None) -> None:
    if out is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        typer.echo(f"cannot write {out}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
