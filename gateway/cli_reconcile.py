"""`tidegate reconcile`: whether what is counted in two places is the same in both."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import Annotated

import typer

from gateway.cli_options import FormatOption, Place, decoded, fail, unfolded
from gateway.output import Format, show, usd

_COLUMNS = ("account", "kept_usd", "ledger_usd", "ahead_usd", "repaired")


@unfolded
def reconcile(  # noqa: PLR0913 - a command's options are its parameters
    *,
    limits: Annotated[
        bool, typer.Option("--limits", help="What Redis takes to be spent of each budget, with the ledger.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Where Redis is ahead, let it take the ledger's word.")
    ] = False,
    provider: Annotated[
        str | None, typer.Option("--provider", help="The endpoint that a provider's invoice is of.")
    ] = None,
    invoice: Annotated[
        Path | None, typer.Option("--invoice", help="That invoice, a CSV: day, model, amount in USD.")
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--name", help="THEIRS=OURS, of a model that is called otherwise there."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Also lines of the invoice that agree.")] = False,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Compare line by line; the exit code is 1 where something differs that should not, and has not been put right."""
    if limits:
        differs = _limits(place, as_format, repair=repair)
    elif provider is not None and invoice is not None:
        differs = _invoice(provider, invoice, name or [], place, as_format, every=every)
    else:
        raise typer.BadParameter("say what is to be compared: --limits, or --provider and --invoice")
    raise typer.Exit(1 if differs else 0)


def _invoice(
    provider: str, invoice: Path, names: list[str], place: Place, as_format: Format, *, every: bool
) -> bool:
    """Whether a provider's invoice differs from what the ledger has counted there, by day and model."""
    try:
        content = invoice.read_bytes()
    except OSError as error:
        fail(f"{invoice}: {error.strerror}", 2)
    answer = place.fetch("POST", "billing", "reconcile", provider, content=content, name=names)
    found = decoded(answer)["data"]
    differing = [each for each in found if Decimal(each["difference_usd"])]
    columns = ("day", "model", "billed_usd", "ledger_usd", "difference_usd")
    show(found if every else differing, columns, as_format)
    return bool(differing)


def _limits(place: Place, as_format: Format, *, repair: bool) -> bool:
    """Whether Redis is ahead of the ledger, and stays so. Behind it by what has just been committed it may be."""
    found = place.ask("POST", "limits", "repair") if repair else place.ask("GET", "limits")
    rows = [
        {
            "account": each["account"],
            "kept_usd": usd(each["kept_nano_usd"]),
            "ledger_usd": usd(each["ledger_nano_usd"]),
            "ahead_usd": usd(each["ahead_nano_usd"]),
            "repaired": each["repaired"],
        }
        for each in found["data"]
    ]
    show(rows, _COLUMNS, as_format)
    return any(each["ahead_nano_usd"] and not each["repaired"] for each in found["data"])
