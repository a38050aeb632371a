"""`tidegate admin-keys` and `tidegate audit`: who may administrate, and what they have done."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from gateway.cli_keys import ExpiresOption, KeyArgument, keep_it
from gateway.cli_options import FormatOption, Place, ahead, show_rows, unfolded
from gateway.output import Format

admin_keys = typer.Typer(no_args_is_help=True, help="The keys of administrators; good for no call.")

_COLUMNS = ("id", "name", "role", "prefix", "last4", "created", "expires", "revoked")
_NEW_COLUMNS = ("id", "key", "name", "role", "created", "expires")
_ENTRY_COLUMNS = ("id", "time", "actor", "source", "action", "subject", "before", "after")
_PAGE = 1000


class RoleOption(StrEnum):
    ADMIN = "admin"
    READ = "read"


@admin_keys.command()
@unfolded
def create(
    *,
    role: Annotated[RoleOption, typer.Option(help="read: sees everything and changes nothing.")],
    name: Annotated[str | None, typer.Option("--name", help="To recognise the key by.")] = None,
    expires: ExpiresOption = None,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Create a key of an administrator and show it, this once."""
    body = {"role": role.value, "name": name, "expires": ahead(expires)}
    show_rows([place.ask("POST", "admin-keys", body=body)], _NEW_COLUMNS, as_format)
    keep_it()


@admin_keys.command("list")
@unfolded
def list_admin_keys(*, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """List keys of administrators, revoked ones too."""
    show_rows(place.all("admin-keys"), _COLUMNS, as_format)


@admin_keys.command()
@unfolded
def revoke(key_id: KeyArgument, *, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """Revoke a key of an administrator, for good."""
    show_rows([place.ask("DELETE", "admin-keys", key_id)], _COLUMNS, as_format)


@unfolded
def audit(
    *,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only changes of this tenant.")] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="Only of this: `key:ID`, `tenant:NAME`, `project:T/P`.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many entries, the newest.")] = 100,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Who has changed which tenant, project, key or policy, when and from where; the newest first."""
    rows: list[dict[str, Any]] = []
    before = None
    while len(rows) < most:
        wanted = min(_PAGE, most - len(rows))
        page = place.ask("GET", "audit", tenant=tenant, subject=subject, before=before, most=wanted)
        rows += page["data"]
        before = page["before"]
        if before is None:
            break
    show_rows(rows, _ENTRY_COLUMNS, as_format)
