"""The routes below /console: its page and what that is made of, logging in and out, and what happens, live.

All else that the console shows comes from the routes of administration, and of a tenant's own usage, that anybody may use.
"""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from gateway.admin_models import KeyShown
from gateway.auth import Key
from gateway.beside import TICK_S
from gateway.console.assets import ROOT, SAFE, Asset, Assets
from gateway.console.session import COOKIE, LASTS_S, Guard, Session, expect_same_origin
from gateway.errors import ApiError
from gateway.output import iso
from gateway.store import MASTER
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.admin import Administration, Administrators
    from gateway.callers import Callers
    from gateway.console.session import Sessions
    from gateway.source import Sources
    from gateway.watch import Watch

Role = Literal["admin", "read", "tenant"]

_TICKS_OF_FLEET = 4
_ENDPOINTS_PER_TICK = 50
"""Larger fleets are sent less often: the browser is to keep up, and so is the gateway."""
MOST_LOOKERS = 50


class Login(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str = Field(min_length=1, max_length=512, description="An admin key, the master key, or a tenant's.")


class SessionShown(BaseModel):
    """Who looks at the console. Nobody yet: the role is null."""

    role: Role | None
    name: str | None = None
    tenant: str | None = Field(None, description="Of a tenant's key, whose pages alone it sees.")
    token: str = Field("", description="To be sent with changes, as `x-console-token`.")
    ends: str | None = None
    asks_for_keys: bool = Field(True, description="False: this gateway asks nobody for a key.")
    version: str
    models: list[str] = []


class OwnKeys(BaseModel):
    data: list[KeyShown]


ADMINISTRATORS: frozenset[Role] = frozenset({"admin", "read"})
TENANTS: frozenset[Role] = frozenset({"tenant"})


class ConsoleParts(Struct, frozen=True):
    """What the console stands on."""

    about: Administration
    sessions: Sessions
    sources: Sources
    watch: Watch
    callers: Callers
    roles: frozenset[Role] = ADMINISTRATORS | TENANTS
    """Whom it is for: where administration has an address of its own, administrators there and tenants where calls are."""

    @property
    def administrators(self) -> Administrators:
        return self.about.administrators

    def source_of(self, request: Request) -> str:
        """The network address that a request comes from."""
        headers = dict(request.scope["headers"])
        return str(self.sources.of(request.client and request.client.host, headers) or "")


def console_routes(parts: ConsoleParts) -> APIRouter:
    routes = APIRouter(prefix=ROOT)
    _add_sessions(routes, parts)
    if ADMINISTRATORS & parts.roles:
        _add_events(routes, parts)
    if TENANTS & parts.roles:
        _add_own(routes, parts)
    _add_files(routes, Assets())  # last: its page is there for any path
    return routes


def _add_sessions(routes: APIRouter, parts: ConsoleParts) -> None:
    guard = Guard()

    @routes.post("/login")
    async def login(body: Login, request: Request, response: Response) -> SessionShown:
        """A session for whoever has a key, as a cookie."""
        headers = dict(request.scope["headers"])
        expect_same_origin(headers)
        source = parts.source_of(request)
        guard.expect_room(source)
        digest = parts.administrators.keyring.digest(body.key.strip().encode())
        try:
            found = _found(parts, digest, request)
        except ApiError:
            guard.failed(source)
            raise
        cookie = parts.sessions.open(digest)
        session = parts.sessions.read(cookie)
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=LASTS_S,
            path="/",
            secure=_secure(request),
            httponly=True,
            samesite="strict",
        )
        response.headers["cache-control"] = "no-store"
        return _shown(parts, found, session)

    @routes.post("/logout")
    async def logout(request: Request, response: Response) -> SessionShown:
        expect_same_origin(dict(request.scope["headers"]))
        response.delete_cookie(COOKIE, path="/", secure=_secure(request), httponly=True, samesite="strict")
        return _shown(parts)

    @routes.get("/session")
    async def session(request: Request, response: Response) -> SessionShown:
        """Who is logged in."""
        response.headers["cache-control"] = "no-store"
        known = parts.sessions.of(dict(request.scope["headers"]))
        if known is None:
            return _shown(parts)
        try:
            return _shown(parts, _found(parts, known.digest, request), known)
        except ApiError:
            return _shown(parts)


class _Found(Struct, frozen=True):
    role: Role
    name: str | None
    tenant: str | None


def _found(parts: ConsoleParts, digest: bytes, request: Request) -> _Found:
    """Who has the key of this digest. Raises ApiError where nobody has, or it is for another address."""
    found = _anywhere(parts, digest, request)
    if found.role in parts.roles:
        return found
    if found.role == "tenant":
        raise ApiError(
            "admin_key_required", "This address is for administrators: log in where calls are made."
        )
    raise ApiError("invalid_api_key", "This address is for tenants: administration has one of its own.")


def _anywhere(parts: ConsoleParts, digest: bytes, request: Request) -> _Found:
    key = parts.administrators.of_digest(digest)
    if not isinstance(key, Key):
        return _Found(key.role, key.name or key.id, None)
    if key.id == MASTER:
        return _Found("admin", "master key", None)
    if key.networks is not None:
        peer = request.client and request.client.host
        parts.sources.expect(key.networks, peer, dict(request.scope["headers"]))
    return _Found("tenant", key.name or key.id, key.tenant)


def _shown(parts: ConsoleParts, found: _Found | None = None, session: Session | None = None) -> SessionShown:
    shown = SessionShown(role=None, version=version("tidegate"))
    if found is not None and session is not None:
        shown.role, shown.name, shown.tenant = found.role, found.name, found.tenant
        shown.token, shown.ends = session.token, iso(round(session.ends_s * 1000))
    elif parts.administrators.anyone and ADMINISTRATORS & parts.roles:
        shown.role, shown.asks_for_keys = "admin", False
    if shown.role in ("admin", "read"):
        shown.models = list(parts.about.catalog.names)
    return shown


def _secure(request: Request) -> bool:
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


def _add_own(routes: APIRouter, parts: ConsoleParts) -> None:
    @routes.get("/own/keys")
    async def own_keys(request: Request) -> OwnKeys:
        """The keys of the tenant whose key has logged in, or of its project; without their secrets."""
        key = parts.callers.asking(request)
        subjects = Subjects(parts.about.desk.store)
        found = await asyncio.to_thread(subjects.list_keys, key.tenant, key.project, None, 1000)
        return OwnKeys(data=[KeyShown.of(each) for each in found])


def _add_events(routes: APIRouter, parts: ConsoleParts) -> None:
    @routes.get("/events")
    async def events(
        request: Request,
        fleet: Annotated[bool, Query()] = False,  # noqa: FBT002 - as a query has it
        calls: Annotated[bool, Query()] = False,  # noqa: FBT002
    ) -> StreamingResponse:
        """Server-sent events: `fleet`, as /admin/fleet; `calls`, those that have changed; `tick`, once a second, with
        the tokens `written` so far of the answers under way.
        """
        parts.administrators.admit(request, looks=True)
        if parts.watch.lookers >= MOST_LOOKERS:
            raise ApiError("overloaded", "As many look already as may.", retry_after_s=5.0)
        stream = _events(request, parts, fleet=fleet, calls=calls)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _events(request: Request, parts: ConsoleParts, *, fleet: bool, calls: bool) -> AsyncIterator[bytes]:
    """Until the client leaves, its session ends, or the gateway does."""
    watch, board, encode = parts.watch, parts.about.board, msgspec.json.encode
    async with board.beside.followed():
        yield b"retry: 2000\n\n"
        seq, tick = 0, 0
        while not request.state.stopping():
            shown = await board.look() if fleet or not tick else None
            every = _TICKS_OF_FLEET + (len(shown.endpoints) // _ENDPOINTS_PER_TICK if shown else 0)
            if fleet and shown is not None and tick % every == 0:
                yield b"event: fleet\ndata: %b\n\n" % shown.model_dump_json().encode()
            if calls and (changed := watch.since(seq)):
                seq = watch.seq
                yield b"event: calls\ndata: %b\n\n" % encode(changed)
            if tick % _TICKS_OF_FLEET == 0:
                try:
                    parts.administrators.admit(request, looks=True)
                except ApiError as over:
                    yield b"event: over\ndata: %b\n\n" % over.body()
                    return
                about = {
                    "now_ms": time.time_ns() // 1_000_000,
                    "processes": board.beside.processes,
                    "running": board.beside.running,
                    "unseen": board.beside.unseen,
                    "written": board.beside.written() if calls else {},
                }
                yield b"event: tick\ndata: %b\n\n" % encode(about)
            tick += 1
            await asyncio.sleep(TICK_S)


def _add_files(routes: APIRouter, assets: Assets) -> None:
    for_ever = {**SAFE, "cache-control": "public, max-age=31536000, immutable"}
    anew = {**SAFE, "cache-control": "no-cache"}

    def sent(asset: Asset, request: Request, headers: dict[str, str]) -> Response:
        headers = {**headers, "etag": asset.etag}
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)

    @routes.api_route("/assets/{of_version}/{name:path}", methods=["GET", "HEAD"])
    async def asset(of_version: str, name: str, request: Request) -> Response:
        found = assets.find(name) if of_version == assets.version else None
        if found is None:
            raise ApiError("unknown_url", f"there is no {request.url.path[:200]}; load the page again")
        return sent(found, request, for_ever)

    @routes.api_route("", methods=["GET", "HEAD"])
    @routes.api_route("/{_page:path}", methods=["GET", "HEAD"])
    async def page(request: Request, _page: str = "") -> Response:
        return sent(assets.page, request, anew)
