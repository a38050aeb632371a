"""`tidegate reconcile`: whether what is counted in two places is the same in both."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, FormatOption, open_store
from gateway.output import Format, show, usd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.limit_accounts import Ledger

_COLUMNS = ("account", "kept_usd", "ledger_usd", "ahead_usd")


def reconcile(
    *,
    limits: Annotated[
        bool, typer.Option("--limits", help="What Redis takes to be spent of each budget, with the ledger.")
    ] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Compare line by line; the exit code is 1 where something differs that should not."""
    if not limits:
        raise typer.BadParameter("say what is to be compared: --limits")
    ahead = _limits(config, as_format)
    raise typer.Exit(1 if ahead else 0)


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
