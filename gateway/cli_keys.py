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

from gateway.output import Format, show

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.store import KeyRecord, Store

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke the keys that tenants call with.")

ConfigOption = Annotated[Path, typer.Option("--config", help="The gateway's configuration file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
TenantFilter = Annotated[str | None, typer.Option("--tenant", help="Only keys of this tenant.")]

DEFAULT_CONFIG = Path("tidegate.yaml")

_COLUMNS = ("id", "tenant", "name", "prefix", "last4", "created", "revoked")


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
def create(
    tenant: Annotated[str, typer.Option("--tenant", help="Whose key it is; created with its first key.")],
    name: Annotated[str | None, typer.Option("--name", help="To recognise the key by.")] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    as_format: FormatOption = Format.TABLE,
) -> None:
    """Create a key and show it, this once."""
    with open_store(config) as store:
        created = store.create_key(tenant, name)
    row = {"id": created.record.id, "key": created.secret, **_shown(created.record)}
    del row["revoked"]
    show([row], ("id", "key", "tenant", "name", "created"), as_format)
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


def _shown(key: KeyRecord) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "prefix": key.prefix,
        "last4": key.last4,
        "created": iso(key.created_ms),
        "revoked": None if key.revoked_ms is None else iso(key.revoked_ms),
    }


def iso(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
