"""`tidegate keys`: create, list and revoke the keys that tenants call with.

`app` is mounted by gateway.cli, which also says what is wrong with a configuration. The commands write to the database
themselves; a running gateway sees the change within a second or two.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.config_file import ConfigError, Problem
from gateway.output import Format, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.policy import Policy
    from gateway.store import KeyRecord, Store

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke the keys that tenants call with.")

ConfigOption = Annotated[Path, typer.Option("--config", help="The gateway's configuration file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
TenantFilter = Annotated[str | None, typer.Option("--tenant", help="Only keys of this tenant.")]

DEFAULT_CONFIG = Path("tidegate.yaml")

_COLUMNS = ("id", "tenant", "name", "prefix", "last4", "created", "revoked", "policy")


@contextmanager
def open_store(config: Path) -> Iterator[Store]:
    """The database that the configuration names; what is wrong with it ends the command with one line."""
    # Imported by the commands that need them, for the sake of those that do not.
    from gateway.config import load  # noqa: PLC0415  see above
    from gateway.database import StoreError  # noqa: PLC0415  see above
    from gateway.store import Store  # noqa: PLC0415  see above

    url = load(config, os.environ).database.get_secret_value()
    try:
        with Store.open(url) as store:
            yield store
    except StoreError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


@app.command()
def create(  # noqa: PLR0913  a command's options are its parameters
    *,
    tenant: Annotated[str, typer.Option("--tenant", help="Whose key it is; created with its first key.")],
    name: Annotated[str | None, typer.Option("--name", help="To recognise the key by.")] = None,
    models: Annotated[str | None, typer.Option(help="Only these models, separated by commas.")] = None,
    tiers: Annotated[str | None, typer.Option(help="Only these tiers.")] = None,
    least_trust: Annotated[
        str | None, typer.Option(help="Only endpoints trusted so far: provider, verified or community.")
    ] = None,
    regions: Annotated[str | None, typer.Option(help="Only endpoints in these regions.")] = None,
    max_price_input: Annotated[
        str | None, typer.Option(help="Most USD per million prompt tokens, of the endpoint's cost.")
    ] = None,
    max_price_output: Annotated[
        str | None, typer.Option(help="Most USD per million completion tokens.")
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Create a key and show it, this once. What is not said is not bounded, or only by the tenant's policy."""
    lists = {"models": models, "tiers": tiers, "regions": regions}
    given: dict[str, Any] = {field: _parts(text) for field, text in lists.items() if text is not None}
    prices = {"input": max_price_input, "output": max_price_output}
    if most := {side: usd for side, usd in prices.items() if usd is not None}:
        given["max_price"] = most
    if least_trust is not None:
        given["least_trust"] = least_trust
    policy = read_policy(given, config) if given else None
    with open_store(config) as store:
        created = store.create_key(tenant, name, policy)
    row = {"id": created.record.id, "key": created.secret, **_shown(created.record)}
    del row["revoked"]
    show([row], ("id", "key", "tenant", "name", "created", "policy"), as_format)
    sys.stderr.write("Keep the key now: only its digest is stored, it cannot be shown again.\n")


@app.command("list")
def list_keys(
    tenant: TenantFilter = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """List keys by their two ends, revoked ones too."""
    with open_store(config) as store:
        keys = store.list_keys(tenant)
    show([_shown(key) for key in keys], _COLUMNS, as_format)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, or enough of its start.")],
    tenant: TenantFilter = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Revoke a key, for good."""
    with open_store(config) as store:
        key = store.revoke_key(key_id, tenant)
    show([_shown(key)], _COLUMNS, as_format)


def read_policy(given: dict[str, Any], config: Path) -> Policy:
    """A policy from what the options say. Raises ConfigError with every problem, each at its option."""
    from pydantic import ValidationError  # noqa: PLC0415  see open_store

    from gateway.config import load  # noqa: PLC0415  as above
    from gateway.config_policy import PolicySection, no_such_model  # noqa: PLC0415  as above

    names = load(config, os.environ).model_names
    problems = [
        Problem("--models", no_such_model(name, names))
        for name in given.get("models", ())
        if name not in names
    ]
    try:
        section = PolicySection.model_validate(given)
    except ValidationError as error:
        problems += [
            Problem(_option(detail["loc"]), detail["msg"])
            for detail in error.errors(include_url=False, include_input=False)
        ]
    if problems:
        raise ConfigError(tuple(problems))
    return section.policy()


def _option(location: tuple[str | int, ...]) -> str:
    return "--" + "-".join(part for part in location if isinstance(part, str)).replace("_", "-")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _shown(key: KeyRecord) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "prefix": key.prefix,
        "last4": key.last4,
        "created": iso(key.created_ms),
        "revoked": None if key.revoked_ms is None else iso(key.revoked_ms),
        "policy": None if key.policy is None else key.policy.described(),
    }


def iso(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
