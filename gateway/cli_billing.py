"""`tidegate credit`, `refund`, `payment`, `correct`, `pay`, `balance`: money that moves beside calls.

The functions are mounted by gateway.cli. They write to the database themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli_options import DEFAULT_CONFIG, ConfigOption, FormatOption, actor_here, open_store
from gateway.output import Format, iso, show, usd

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.billing import Kind

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT")]
UsdArgument = Annotated[str, typer.Argument(metavar="USD", help="At most nine decimals.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="With the same one it is entered once, however often it is sent."),
]
NoteOption = Annotated[str, typer.Option("--note", help="Why.")]

_COLUMNS = ("id", "account", "amount_usd", "call_id", "time", "note", "new")


def credit(
    tenant: TenantArgument,
    amount: UsdArgument,
    key: KeyOption = None,
    note: NoteOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Give a tenant so much."""
    _enter("credit", tenant, amount, key, note, config, as_format)


def payment(
    tenant: TenantArgument,
    amount: UsdArgument,
    key: KeyOption = None,
    note: NoteOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """A tenant has paid so much: an invoice, or in advance."""
    _enter("payment", tenant, amount, key, note, config, as_format)


def refund(
    call_id: Annotated[str, typer.Argument(metavar="CALL", help="The call's id, as in its usage row.")],
    amount: Annotated[
        str | None, typer.Argument(metavar="[USD]", help="Without it, all that is left.")
    ] = None,
    key: KeyOption = None,
    note: NoteOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Take back the charge of a call, or a part of it; never more than the charge."""
    _enter("refund", call_id, amount, key, note, config, as_format)


def correct(
    tenant: TenantArgument,
    amount: Annotated[
        str, typer.Argument(metavar="USD", help="What it owes more; below zero, less (after --).")
    ],
    key: KeyOption = None,
    note: NoteOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Put right what a tenant owes."""
    _enter("correction", tenant, amount, key, note, config, as_format)


def pay(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    amount: UsdArgument,
    key: KeyOption = None,
    note: NoteOption = "",
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """A node has been paid so much."""
    _enter("payout", node, amount, key, note, config, as_format)


def balance(
    account: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="As in `tenant:acme`; else all.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """What accounts stand at. Positive: owed to us, or spent; negative: owed by us, paid in advance, or earned."""
    from gateway.billing import balances  # noqa: PLC0415  not needed by other commands

    with open_store(config) as store:
        found = balances(store, account)
    rows = [
        {"account": name, "amount_nano_usd": amount, "amount_usd": usd(amount)}
        for name, amount in found.items()
    ]
    show(rows, ("account", "amount_usd"), as_format)


def _enter(
    kind: Kind, whom: str, amount: str | None, key: str | None, note: str, config: Path, as_format: Format
) -> None:
    from gateway.billing import BillingError, Order, enter  # noqa: PLC0415  as above

    order = Order(kind, whom, None if amount is None else nano_usd_of(amount), key, note)
    with open_store(config) as store:
        try:
            entered = enter(store, order, actor=actor_here())
        except BillingError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
    row: dict[str, Any] = {
        "id": entered.id,
        "account": entered.account,
        "amount_nano_usd": entered.amount_nano_usd,
        "amount_usd": usd(entered.amount_nano_usd),
        "call_id": entered.call_id,
        "time": iso(entered.time_ms),
        "note": entered.note,
        "new": entered.new,
    }
    show([row], _COLUMNS, as_format)


def nano_usd_of(text: str) -> int:
    """Exact."""
    from gateway.config_section import nano_usd_text  # noqa: PLC0415  as above

    try:
        return nano_usd_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="USD") from None
