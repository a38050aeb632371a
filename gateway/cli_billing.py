"""`tidegate credit`, `refund`, `payment`, `correct`, `pay`, `balance`, `prices`: money that moves beside calls, and prices.

The functions are mounted by gateway.cli.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from gateway.cli_options import FormatOption, Place, unfolded
from gateway.output import Format, iso, show, usd

if TYPE_CHECKING:
    from gateway.billing import Kind

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT")]
UsdArgument = Annotated[str, typer.Argument(metavar="USD", help="At most nine decimals.")]
KeyOption = Annotated[
    str | None,
    typer.Option("--idempotency-key", help="With the same one it is entered once, however often it is sent."),
]
NoteOption = Annotated[str, typer.Option("--note", help="Why.")]

_COLUMNS = ("id", "account", "amount_usd", "call_id", "time", "note", "new")
_PRICE_COLUMNS = (
    *("kind", "name", "endpoint", "since", "input", "output", "cached_input", "reasoning", "multiplier"),
)


class Entry(NamedTuple):
    """What all that is entered has."""

    idempotency_key: KeyOption = None
    note: NoteOption = ""
    as_format: FormatOption = Format.TABLE


@unfolded
def credit(tenant: TenantArgument, amount: UsdArgument, *, entry: Entry, place: Place) -> None:
    """Give a tenant so much."""
    _enter("credit", tenant, amount, entry, place)


@unfolded
def payment(tenant: TenantArgument, amount: UsdArgument, *, entry: Entry, place: Place) -> None:
    """A tenant has paid so much: an invoice, or in advance."""
    _enter("payment", tenant, amount, entry, place)


@unfolded
def refund(
    call_id: Annotated[str, typer.Argument(metavar="CALL", help="The call's id, as in its usage row.")],
    amount: Annotated[
        str | None, typer.Argument(metavar="[USD]", help="Without it, all that is left.")
    ] = None,
    *,
    entry: Entry,
    place: Place,
) -> None:
    """Take back the charge of a call, or a part of it; never more than the charge."""
    _enter("refund", call_id, amount, entry, place)


@unfolded
def correct(
    tenant: TenantArgument,
    amount: Annotated[
        str, typer.Argument(metavar="USD", help="What it owes more; below zero, less (after --).")
    ],
    *,
    entry: Entry,
    place: Place,
) -> None:
    """Put right what a tenant owes."""
    _enter("correction", tenant, amount, entry, place)


@unfolded
def pay(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    amount: UsdArgument,
    *,
    entry: Entry,
    place: Place,
) -> None:
    """A node has been paid so much."""
    _enter("payout", node, amount, entry, place)


@unfolded
def balance(
    account: Annotated[
        str | None, typer.Argument(metavar="[ACCOUNT]", help="As in `tenant:acme`; else all.")
    ] = None,
    *,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """What accounts stand at. Positive: owed to us, or spent; negative: owed by us, paid in advance, or earned."""
    found = place.ask("GET", "billing", "balances", account=account)["amounts_nano_usd"]
    rows = [
        {"account": name, "amount_nano_usd": amount, "amount_usd": usd(amount)}
        for name, amount in found.items()
    ]
    show(rows, ("account", "amount_usd"), as_format)


@unfolded
def prices(
    kind: Annotated[str | None, typer.Option(help="Only of this kind: charge, cost, tier or tenant.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this model, tier or tenant.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only costs of this endpoint.")] = None,
    *,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """What prices and multipliers there were, each from when it was first in force; in USD per million tokens."""
    found = place.ask("GET", "prices", kind=kind, name=name, endpoint=endpoint)
    show(found["data"], _PRICE_COLUMNS, as_format)


def _enter(kind: Kind, whom: str, amount: str | None, entry: Entry, place: Place) -> None:
    key = entry.idempotency_key or secrets.token_hex(12)
    body = {"whom": whom, "amount_usd": amount, "idempotency_key": key, "note": entry.note}
    row: dict[str, Any] = place.ask("POST", "billing", kind, body=body)
    row |= {"amount_usd": usd(row["amount_nano_usd"]), "time": iso(row["time_ms"])}
    show([row], _COLUMNS, entry.as_format)
