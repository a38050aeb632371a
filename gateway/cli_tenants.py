"""`tidegate tenants` and `tidegate projects`: whom there are calls of, what each may do, and whether it is suspended."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli_options import (
    FormatOption,
    MetadataOption,
    Place,
    PolicyOptions,
    pairs,
    show_rows,
    unfolded,
)
from gateway.output import Format

tenants = typer.Typer(no_args_is_help=True, help="Tenants, and what each may do.")
projects = typer.Typer(no_args_is_help=True, help="Projects of tenants, which keys can be put into.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose project it is.")]
NoPolicy = Annotated[bool, typer.Option("--no-policy", help="None of its own any more.")]
Suspended = Annotated[
    bool | None, typer.Option("--suspend/--resume", help="Whether its keys admit no calls for now.")
]

_TENANT_COLUMNS = ("name", "created", "suspended", "policy", "metadata")
_PROJECT_COLUMNS = ("tenant", *_TENANT_COLUMNS)


def _changed(
    metadata: list[str] | None, policy: PolicyOptions, *, no_policy: bool, suspended: bool | None
) -> dict[str, Any]:
    said = {"metadata": pairs(metadata), "policy": policy.given(), "suspended": suspended}
    body: dict[str, Any] = {field: value for field, value in said.items() if value is not None}
    return {**body, "policy": None} if no_policy else body


@tenants.command("create")
@unfolded
def create_tenant(
    name: NameArgument,
    *,
    metadata: MetadataOption = None,
    policy: PolicyOptions,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Create a tenant. One is created with its first key as well."""
    body = {"name": name, "metadata": pairs(metadata), "policy": policy.given()}
    show_rows([place.ask("POST", "tenants", body=body)], _TENANT_COLUMNS, as_format)


@tenants.command("list")
@unfolded
def list_tenants(*, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """List the tenants in the database."""
    show_rows(place.all("tenants"), _TENANT_COLUMNS, as_format)


@tenants.command("change")
@unfolded
def change_tenant(
    name: NameArgument,
    *,
    suspended: Suspended = None,
    metadata: MetadataOption = None,
    policy: PolicyOptions,
    no_policy: NoPolicy = False,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Change a tenant. A policy that is given takes the place of the one it has; what is not said stays."""
    body = _changed(metadata, policy, no_policy=no_policy, suspended=suspended)
    show_rows([place.ask("PATCH", "tenants", name, body=body)], _TENANT_COLUMNS, as_format)


@projects.command("create")
@unfolded
def create_project(
    name: NameArgument,
    *,
    tenant: TenantOption,
    metadata: MetadataOption = None,
    policy: PolicyOptions,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Create a project of a tenant."""
    body = {"name": name, "metadata": pairs(metadata), "policy": policy.given()}
    show_rows([place.ask("POST", "tenants", tenant, "projects", body=body)], _PROJECT_COLUMNS, as_format)


@projects.command("list")
@unfolded
def list_projects(*, tenant: TenantOption, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """List the projects of a tenant."""
    show_rows(place.all("tenants", tenant, "projects"), _PROJECT_COLUMNS, as_format)


@projects.command("change")
@unfolded
def change_project(  # noqa: PLR0913  a command's options are its parameters
    name: NameArgument,
    *,
    tenant: TenantOption,
    suspended: Suspended = None,
    metadata: MetadataOption = None,
    policy: PolicyOptions,
    no_policy: NoPolicy = False,
    place: Place,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Change a project. A policy that is given takes the place of the one it has; what is not said stays."""
    body = _changed(metadata, policy, no_policy=no_policy, suspended=suspended)
    row = place.ask("PATCH", "tenants", tenant, "projects", name, body=body)
    show_rows([row], _PROJECT_COLUMNS, as_format)
