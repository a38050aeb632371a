"""`tidegate invoice`, `invoices`, `payout` and `export focus`: what the ledger says to those who pay and are paid.

The functions are mounted by gateway.cli.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli_options import FormatOption, Place, unfolded
from gateway.output import BillFormat, Format, show

export = typer.Typer(no_args_is_help=True, help="Usage and money in formats of others.")

MonthArgument = Annotated[str, typer.Argument(metavar="YYYY-MM")]
OutOption = Annotated[Path | None, typer.Option("--out", help="A file to write to, instead of stdout.")]

_COLUMNS = ("number", "tenant", "month", "issued", "total_usd", "closing_usd")


BillFormatOption = Annotated[BillFormat, typer.Option("--format", help="How to write it.")]


@unfolded
def invoice(
    tenant: Annotated[str, typer.Argument(metavar="TENANT")],
    month: MonthArgument,
    *,
    issue: Annotated[
        bool, typer.Option("--issue", help="Give it a number, once; it never changes again.")
    ] = False,
    as_format: BillFormatOption = BillFormat.JSON,
    out: OutOption = None,
    place: Place,
) -> None:
    """What a tenant owes for a month: as its invoice was issued, or a draft."""
    method = "POST" if issue else "GET"
    _put(place.fetch(method, "billing", "invoices", tenant, month, format=as_format.value), out)


@unfolded
def invoices(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only of this tenant.")] = None,
    *,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """List the invoices that have been issued."""
    show(place.all("billing", "invoices", tenant=tenant), _COLUMNS, as_format)


@unfolded
def payout(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    month: MonthArgument,
    *,
    as_format: BillFormatOption = BillFormat.JSON,
    out: OutOption = None,
    place: Place,
) -> None:
    """What a node has earned in a month, and been paid."""
    _put(place.fetch("GET", "billing", "payouts", node, month, format=as_format.value), out)


@export.command()
@unfolded
def focus(
    month: MonthArgument,
    *,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    issuer: Annotated[str, typer.Option(help="Who bills.")] = "Tidegate",
    validator_names: Annotated[
        bool, typer.Option("--validator-names", help="Columns named as focus-validator 1.0.0 wants them.")
    ] = False,
    out: OutOption = None,
    place: Place,
) -> None:
    """The charges of a billing period, a month, as a FOCUS 1.0 CSV with the invoices that they are on."""
    text = place.fetch(
        "GET", "billing", "focus", month, tenant=tenant, issuer=issuer, validator_names=validator_names
    )
    _put(text, out)


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
