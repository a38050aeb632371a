"""`tidegate reconcile`: whether what is counted in two places is the same in both."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, FormatOption, open_store
from gateway.output import Format, show, usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.limit_accounts import Ledger

_COLUMNS = ("account", "kept_usd", "ledger_usd", "ahead_usd")


def reconcile(
    *,
    limits: Annotated[
        bool, typer.Option("--limits", help="What Redis takes to be spent of each budget, with the ledger.")
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
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Compare line by line; the exit code is 1 where something differs that should not."""
    if limits:
        differs = _limits(config, as_format) > 0
    elif provider is not None and invoice is not None:
        names = dict(each.split("=", 1) for each in name or [] if "=" in each)
        differs = _invoice(provider, invoice, names, config, as_format, every=every)
    else:
        raise typer.BadParameter("say what is to be compared: --limits, or --provider and --invoice")
    raise typer.Exit(1 if differs else 0)


def _invoice(
    provider: str, invoice: Path, names: dict[str, str], config: Path, as_format: Format, *, every: bool
) -> bool:
    """Whether a provider's invoice differs from what the ledger has counted there, by day and model."""
    from gateway.reconcile import BadInvoice, compare, read  # noqa: PLC0415  see below

    try:
        with invoice.open(encoding="utf-8-sig", newline="") as file:
            billed = read(file)
        with open_store(config) as store:
            found = compare(store, provider, billed, names)
    except (OSError, UnicodeDecodeError, BadInvoice) as error:
        typer.echo(f"{invoice}: {error}", err=True)
        raise typer.Exit(2) from None
    differing = [each for each in found if each.difference_nano_usd]
    rows = [
        {
            "day": each.day,
            "model": each.model,
            "billed_usd": None if each.billed_nano_usd is None else f"{each.billed_nano_usd.scaleb(-9):f}",
            "ledger_usd": None if each.ledger_nano_usd is None else usd(each.ledger_nano_usd),
            "difference_usd": f"{each.difference_nano_usd.scaleb(-9):f}",
        }
        for each in (found if every else differing)
    ]
    show(rows, ("day", "model", "billed_usd", "ledger_usd", "difference_usd"), as_format)
    return bool(differing)


def _limits(config: Path, as_format: Format) -> int:
    """By how much Redis is ahead of the ledger, in nano-USD. Behind it by what has just been committed it may be."""
    # Imported here, for the sake of the commands that do not need them.
    from gateway.config import load  # noqa: PLC0415  see above
    from gateway.limit_store import LimitStoreAway  # noqa: PLC0415  see above
    from gateway.spending import Spending  # noqa: PLC0415  see above

    url = load(config, os.environ).shared_state.get_secret_value()
    if url == "memory://":
        raise typer.BadParameter(
            "shared_state is memory://: each process has its limits from the ledger alone"
        )
    with open_store(config) as store:
        try:
            found = asyncio.run(_compared(url, Spending(store)))
        except LimitStoreAway as failure:
            typer.echo(f"cannot ask Redis: {failure}", err=True)
            raise typer.Exit(1) from None
    rows = [
        {
            "account": account,
            "kept_usd": usd(kept),
            "ledger_usd": usd(spent),
            "ahead_usd": usd(max(0, kept - spent)),
        }
        for account, (kept, spent) in sorted(found.items())
    ]
    show(rows, _COLUMNS, as_format)
    return sum(max(0, kept - spent) for kept, spent in found.values())


async def _compared(url: str, ledger: Ledger) -> Mapping[str, tuple[int, int]]:
    from gateway.limit_accounts import Accounts  # noqa: PLC0415  see above
    from gateway.redis_store import RedisStore  # noqa: PLC0415  see above

    store = RedisStore(url)
    try:
        return await Accounts(store, ledger, "reconcile").compared()
    finally:
        await store.close()
