"""What the commands of administration have in common: options, and how they reach the database or a running gateway.

A command asks the routes of `gateway.admin_desk`, over HTTP with `--url` and in this process over the database with
`--config`, so that the two cannot differ. Options that several commands take are fields of a group, and a command that
has a group among its parameters takes each of the fields as an option.
"""

from __future__ import annotations

import getpass
import inspect
import json
import os
import re
import socket
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints
from urllib.parse import quote

import typer

from gateway.config_file import ConfigError
from gateway.output import Format, ReportFormat, show
from gateway.waiting import waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fastapi import FastAPI

    from gateway.audit import Actor
    from gateway.config import Config
    from gateway.store import Store

ConfigOption = Annotated[Path, typer.Option("--config", help="The gateway's configuration file.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
ReportFormatOption = Annotated[ReportFormat, typer.Option("--format", help="How to print it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The same as `--format json`.")]

DEFAULT_CONFIG = Path("tidegate.yaml")

_ASK_LIMIT_S = 30.0
KEYS_IN_ENVIRONMENT = ["TIDEGATE_ADMIN_KEY", "TIDEGATE_MASTER_KEY"]

# Of commands that only a running gateway can answer.
DEFAULT_URL = "http://127.0.0.1:8000"
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help=f"Where its administration is. [default: as {DEFAULT_CONFIG} in this folder says, or {DEFAULT_URL}]",
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar=KEYS_IN_ENVIRONMENT, help="An admin key, or the master key."),
]


class Place(NamedTuple):
    """Where to administrate."""

    config: ConfigOption = DEFAULT_CONFIG
    url: Annotated[
        str | None, typer.Option("--url", help="Ask the gateway that runs there, not the database.")
    ] = None
    admin_key: Annotated[
        str | None,
        typer.Option("--key", envvar=KEYS_IN_ENVIRONMENT, help="For --url: an admin key, or the master key."),
    ] = None

    def ask(self, method: str, *path: str, body: Any = None, **parameters: Any) -> Any:
        """What `/admin` and this below it answers. Ends the command with one line where it refuses."""
        return decoded(self.fetch(method, *path, body=body, **parameters))

    def fetch(
        self, method: str, *path: str, body: Any = None, content: bytes | None = None, **parameters: Any
    ) -> bytes:
        """The same as it comes, of formats other than JSON. `content` is a body that is no JSON either."""
        given = {name: value for name, value in parameters.items() if value is not None}
        options = {"json": body, "content": content, "params": given}
        with waiting(f"{path[0]}: asking {self.url or 'the database'}"):
            if self.url is not None:
                return asked_over_http(self.url, self.admin_key, method, below(*path), **options)
            return _content(_in_process(self.config, method, below(*path), options), "")

    def all(self, *path: str, **parameters: Any) -> list[dict[str, Any]]:
        """The rows of all pages."""
        rows: list[dict[str, Any]] = []
        while True:
            page = self.ask("GET", *path, most=1000, **parameters)
            rows += page["data"]
            if page.get("after") is None:
                return rows
            parameters["after"] = page["after"]


def administration_at(url: str | None) -> str:
    """That of `--url`, or else of the gateway whose configuration is in this folder."""
    if url is not None:
        return url
    if not DEFAULT_CONFIG.exists():
        return DEFAULT_URL
    from gateway.config import load  # noqa: PLC0415 - takes time to import

    try:
        return load(DEFAULT_CONFIG, os.environ).administration_url or DEFAULT_URL
    except ConfigError:
        typer.echo(f"{DEFAULT_CONFIG} is not valid here: {DEFAULT_URL} is asked", err=True)
        return DEFAULT_URL


def below(*path: str) -> str:
    """A path below `/admin`."""
    return "".join(f"/{quote(part, safe='')}" for part in path)


def asked_over_http(url: str, key: str | None, method: str, path: str, **options: Any) -> bytes:
    """What `/admin` and this path below it answers, of the gateway that runs at `url`."""
    import httpx2  # noqa: PLC0415 - takes time to import

    place = f"{url.rstrip('/').removesuffix('/v1')}/admin{path}"
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        reply = httpx2.request(method, place, headers=headers, timeout=_ASK_LIMIT_S, **options)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        fail(f"cannot ask {place}: {error}")
    return _content(reply, f"{place} answered {reply.status_code}: ")


def _content(reply: Any, before: str) -> bytes:
    if not reply.is_success:
        try:
            message = json.loads(reply.content)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            message = reply.text[:200] or "nothing"
        fail(before + message, 2 if reply.status_code == 400 else 1)
    return bytes(reply.content)


def decoded(answer: bytes) -> Any:
    """JSON. Ends the command with one line where it is something else, such as a page."""
    try:
        return json.loads(answer or b"null")
    except ValueError:
        fail(f"this is no answer of Tidegate's administration: {answer[:200]!r}")


def _in_process(config: Path, method: str, path: str, options: dict[str, Any]) -> Any:
    """The answer of the routes over the database that the configuration names."""
    import asyncio  # noqa: PLC0415 - takes time to import

    import httpx2  # noqa: PLC0415 - as above

    from gateway.config import load  # noqa: PLC0415 - as above

    parsed = load(config, os.environ)

    async def asked(app: FastAPI) -> httpx2.Response:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://tidegate") as client:
            return await client.request(method, path, **options)

    with opened(parsed) as store:
        return asyncio.run(asked(_desk_app(parsed, store)))


def _desk_app(config: Config, store: Store) -> FastAPI:
    from fastapi import FastAPI  # noqa: PLC0415 - takes time to import

    from gateway.admin_desk import desk_routes  # noqa: PLC0415 - as above
    from gateway.control import show_errors  # noqa: PLC0415 - as above
    from gateway.desk import Desk  # noqa: PLC0415 - as above
    from gateway.limiting import drift_of  # noqa: PLC0415 - as above
    from gateway.policy import tenant_policies  # noqa: PLC0415 - as above

    actor, configured = actor_here(), tenant_policies(config)

    async def changed() -> None:
        """Running gateways see it by themselves."""

    app = FastAPI()
    desk = Desk(
        store,
        lambda _: actor,
        lambda: config.model_names,
        lambda: configured,
        changed,
        partial(drift_of, config, store),
    )
    app.include_router(desk_routes(desk))
    show_errors(app)
    return app


def actor_here() -> Actor:
    """Who runs the command, on which machine."""
    from gateway.audit import Actor  # noqa: PLC0415 - takes time to import

    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return Actor(f"cli:{user}", socket.gethostname())


@contextmanager
def open_store(config: Path) -> Iterator[Store]:
    """The database that the configuration names; what is wrong with it ends the command with one line."""
    # Imported by the commands that need them, for the sake of those that do not.
    from gateway.config import load  # noqa: PLC0415  see above

    with opened(load(config, os.environ)) as store:
        yield store


@contextmanager
def opened(config: Config) -> Iterator[Store]:
    from gateway.database import StoreError  # noqa: PLC0415  see above
    from gateway.store import Store  # noqa: PLC0415  see above

    try:
        with Store.open(config.database.get_secret_value()) as store:
            yield store
    except StoreError as error:
        fail(str(error))


def fail(message: str, code: int = 1) -> NoReturn:
    """End the command with this line."""
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


def pairs(given: list[str] | None) -> dict[str, str] | None:
    """`NAME=VALUE` each."""
    if given is None:
        return None
    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE", param_hint="--metadata")
        found[name.strip()] = value.strip()
    return found


_SPANS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def seconds(span: str, option: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", span)
    if found is None or (not found[2] and span != "0"):
        raise typer.BadParameter(f"{span!r} is no span such as 30m, 24h or 7d", param_hint=option)
    return int(found[1]) * _SPANS_S[found[2] or "s"]


def ahead(moment: str | None) -> str | None:
    """A moment to come, said as a span from now, a date or a date-time, as ISO with its zone."""
    if moment is None:
        return None
    if re.fullmatch(r"\d+[smhdw]", moment):
        return (datetime.now(UTC) + timedelta(seconds=seconds(moment, "--expires"))).isoformat()
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        message = (
            f"{moment!r} is neither a date (2026-01-31), a date-time (2026-01-31T12:00) nor a span (30d)"
        )
        raise typer.BadParameter(message, param_hint="--expires") from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).isoformat()


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], as_format: Format) -> None:
    """As `show`; in tables, policies in words and other things of several parts as JSON."""
    if as_format is not Format.JSON:
        rows = [{name: _cell(name, value) for name, value in row.items()} for row in rows]
    show(rows, columns, as_format)


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, dict | list):
        return value
    if isinstance(value, list) or not name.endswith("policy"):
        return json.dumps(value, ensure_ascii=False)
    from gateway.config_policy import PolicySection  # noqa: PLC0415 - takes time to import

    return PolicySection.model_validate(value).policy().described()


MetadataOption = Annotated[
    list[str] | None, typer.Option("--metadata", help="NAME=VALUE, your own words for it; may be repeated.")
]


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer is to see it: in place of each group of options, its fields; and `--json` beside `--format`."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if isinstance(kind, type) and hasattr(kind, "_field_defaults"):
            groups[parameter.name] = kind
            fields = get_type_hints(kind, include_extras=True)
            parameters += [
                inspect.Parameter(
                    field, parameter.KEYWORD_ONLY, default=kind._field_defaults[field], annotation=hint
                )
                for field, hint in fields.items()
            ]
        else:
            parameters.append(
                parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
            )

    formats = [each for each in parameters if _is_format(each.annotation)]
    if formats:
        as_json = inspect.Parameter(
            "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption
        )
        parameters.insert(parameters.index(formats[0]) + 1, as_json)

    @wraps(command)
    def run(**given: Any) -> None:
        for each in formats:
            if given.pop("as_json"):
                given[each.name] = _json_instead(given[each.name], each.default)
        folded = {
            name: kind(**{field: given.pop(field) for field in kind._fields}) for name, kind in groups.items()
        }
        command(**given, **folded)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _is_format(hint: Any) -> bool:
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return isinstance(kind, type) and issubclass(kind, StrEnum) and "JSON" in kind.__members__


def _json_instead(given: StrEnum, default: StrEnum) -> StrEnum:
    if given not in (default, "json"):
        raise typer.BadParameter(f"--json and --format {given.value} are two things")
    return type(given)("json")
