"""`tidegate keys`: create, list, change, rotate and revoke the keys that tenants call with.

`app` is mounted by gateway.cli, which also says what is wrong with a configuration. A running gateway sees a change within
a second.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gateway.cli_options import (
    FormatOption,
    MetadataOption,
    Place,
    ahead,
    pairs,
    seconds,
    show_rows,
    unfolded,
)
from gateway.cli_policy import PolicyOptions  # noqa: TC001 - typer reads annotations at run time
from gateway.output import Format

app = typer.Typer(no_args_is_help=True, help="The keys that tenants call with.")

TenantFilter = Annotated[str | None, typer.Option("--tenant", help="Only keys of this tenant.")]
KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="The key's id, or enough of its start.")]
ExpiresOption = Annotated[
    str | None, typer.Option("--expires", help="When it ends: a date, an ISO date-time (UTC), or 30d, 12h.")
]

_COLUMNS = (
    *("id", "tenant", "project", "name", "prefix", "last4", "created", "expires", "revoked", "policy"),
)
_NEW_COLUMNS = ("id", "key", "tenant", "project", "name", "created", "expires", "policy")


def keep_it() -> None:
    sys.stderr.write("Keep the key now: only its digest is stored, it cannot be shown again.\n")


@app.command()
@unfolded
def create(  # noqa: PLR0913  a command's options are its parameters
    *,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose key it is; created with its first key.")],
    project: Annotated[str | None, typer.Option("--project", help="One that the tenant has.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="To recognise the key by.")] = None,
    expires: ExpiresOption = None,
    metadata: MetadataOption = None,
    policy: PolicyOptions,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Create a key and show it, this once. What is not said is bounded by its project's and its tenant's policy alone."""
    body: dict[str, Any] = {"tenant": tenant, "project": project, "name": name, "expires": ahead(expires)}
    body |= {"metadata": pairs(metadata), "policy": policy.given()}
    show_rows([place.ask("POST", "keys", body=body)], _NEW_COLUMNS, as_format)
    keep_it()


@app.command("list")
@unfolded
def list_keys(
    tenant: TenantFilter = None,
    project: Annotated[str | None, typer.Option("--project", help="Only keys of this project.")] = None,
    *,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """List keys by their two ends, revoked ones too."""
    show_rows(place.all("keys", tenant=tenant, project=project), _COLUMNS, as_format)


@app.command()
@unfolded
def change(  # noqa: PLR0913  a command's options are its parameters
    key_id: KeyArgument,
    *,
    name: Annotated[str | None, typer.Option("--name", help="To recognise the key by.")] = None,
    expires: ExpiresOption = None,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="It does not end by itself.")] = False,
    metadata: MetadataOption = None,
    policy: PolicyOptions,
    no_policy: Annotated[bool, typer.Option("--no-policy", help="None of its own any more.")] = False,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Change a key. A policy that is given takes the place of the one it has; what is not said stays."""
    said = {"name": name, "expires": ahead(expires), "metadata": pairs(metadata), "policy": policy.given()}
    body: dict[str, Any] = {field: value for field, value in said.items() if value is not None}
    body |= {"policy": None} if no_policy else {}
    body |= {"expires": None} if no_expiry else {}
    show_rows([place.ask("PATCH", "keys", key_id, body=body)], _COLUMNS, as_format)


@app.command()
@unfolded
def rotate(
    key_id: KeyArgument,
    *,
    overlap: Annotated[
        str, typer.Option("--overlap", help="How long the old secret goes on: 30m, 24h, 7d; 0: not at all.")
    ] = "24h",
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Give a key a new secret and show it, this once. The old one ends by itself."""
    body = {"overlap_s": seconds(overlap, "--overlap")}
    show_rows([place.ask("POST", "keys", key_id, "rotate", body=body)], _NEW_COLUMNS, as_format)
    keep_it()


@app.command()
@unfolded
def revoke(
    key_id: KeyArgument,
    tenant: TenantFilter = None,
    *,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Revoke a key, for good."""
    show_rows([place.ask("DELETE", "keys", key_id, tenant=tenant)], _COLUMNS, as_format)
