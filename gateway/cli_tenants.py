"""`tidegate tenants` and `tidegate projects`: whom there are calls of, what each may do, and whether it is suspended."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from gateway.cli_options import (
    FormatOption,
    MetadataOption,
    Place,
    pairs,
    show_rows,
    unfolded,
)
from gateway.cli_policy import PolicyOptions  # noqa: TC001 - typer reads annotations at run time
from gateway.output import Format

tenants = typer.Typer(no_args_is_help=True, help="Tenants, and what each may do.")
projects = typer.Typer(no_args_is_help=True, help="Projects of tenants, which keys can be put into.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose project it is.")]
NoPolicy = Annotated[bool, typer.Option("--no-policy", help="None of its own any more.")]
Suspended = Annotated[
    bool | None, typer.Option("--suspend/--resume", help="Whether its keys admit no calls for now.")
]

_COLUMNS = ("name", "created", "suspended", "policy", "metadata")
_TENANT_COLUMNS = (*_COLUMNS, "config_policy")
_PROJECT_COLUMNS = ("tenant", *_COLUMNS)


class Creation(NamedTuple):
    """What a new one may be given."""

    metadata: MetadataOption = None
    as_format: FormatOption = Format.TABLE

    def body(self, name: str, policy: PolicyOptions) -> dict[str, Any]:
        return {"name": name, "metadata": pairs(self.metadata), "policy": policy.given()}


class Changing(NamedTuple):
    """What may be different; what is not said stays."""

    suspended: Suspended = None
    metadata: MetadataOption = None
    no_policy: NoPolicy = False
    as_format: FormatOption = Format.TABLE

    def body(self, policy: PolicyOptions) -> dict[str, Any]:
        said = {"metadata": pairs(self.metadata), "policy": policy.given(), "suspended": self.suspended}
        body: dict[str, Any] = {field: value for field, value in said.items() if value is not None}
        return {**body, "policy": None} if self.no_policy else body


@tenants.command("create")
@unfolded
def create_tenant(name: NameArgument, *, policy: PolicyOptions, creation: Creation, place: Place) -> None:
    """Create a tenant. One is created with its first key as well."""
    row = place.ask("POST", "tenants", body=creation.body(name, policy))
    show_rows([row], _TENANT_COLUMNS, creation.as_format)


@tenants.command("list")
@unfolded
def list_tenants(*, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """List the tenants in the database, and those that only the configuration knows, which have no `created`."""
    show_rows(place.all("tenants"), _TENANT_COLUMNS, as_format)


@tenants.command("change")
@unfolded
def change_tenant(name: NameArgument, *, policy: PolicyOptions, changing: Changing, place: Place) -> None:
    """Change a tenant. A policy that is given takes the place of the one it has; what is not said stays."""
    row = place.ask("PATCH", "tenants", name, body=changing.body(policy))
    show_rows([row], _TENANT_COLUMNS, changing.as_format)


@projects.command("create")
@unfolded
def create_project(
    name: NameArgument, *, tenant: TenantOption, policy: PolicyOptions, creation: Creation, place: Place
) -> None:
    """Create a project of a tenant."""
    row = place.ask("POST", "tenants", tenant, "projects", body=creation.body(name, policy))
    show_rows([row], _PROJECT_COLUMNS, creation.as_format)


@projects.command("list")
@unfolded
def list_projects(*, tenant: TenantOption, place: Place, as_format: FormatOption = Format.TABLE) -> None:
    """List the projects of a tenant."""
    show_rows(place.all("tenants", tenant, "projects"), _PROJECT_COLUMNS, as_format)


@projects.command("change")
@unfolded
def change_project(
    name: NameArgument, *, tenant: TenantOption, policy: PolicyOptions, changing: Changing, place: Place
) -> None:
    """Change a project. A policy that is given takes the place of the one it has; what is not said stays."""
    row = place.ask("PATCH", "tenants", tenant, "projects", name, body=changing.body(policy))
    show_rows([row], _PROJECT_COLUMNS, changing.as_format)
