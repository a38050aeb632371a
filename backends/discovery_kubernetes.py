"""Workers of a Kubernetes service, by list and watch of its EndpointSlices.

What is listed once is kept up by events of the watch, from the version of the list on. A watch that ends is begun again where
it ended; where that version is too old (410 Gone), or an event makes no sense, all is listed again. A pod that terminates
but still serves is draining; one that is not ready, or is gone from the slices, is none. See
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes and .../endpoint-slice-v1/.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
from msgspec import Raw, Struct

from backends.base import UNREADABLE
from backends.discovery import Found, url_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends.discovery import Listener

log = logging.getLogger(__name__)

SERVICE_LABEL = "kubernetes.io/service-name"
LIST_S = 30.0
WATCH_S = 300
"""After which the server ends a watch; a silent one is dead some seconds later."""
LONGEST_BACKOFF_S = 30.0


class ApiServer(Struct, frozen=True):
    """Where it is, and what it takes to be let in."""

    url: str
    token_file: Path | None = None
    """Read anew for each request: tokens are replaced every hour or so."""
    ca_file: Path | None = None


class SliceQuery(Struct, frozen=True):
    """Which slices, and what of them."""

    namespace: str
    selector: str
    """Of labels, as the API takes it."""
    port: str | int | None = None
    """Name or number; None: the first."""
    scheme: str = "http"


class _Meta(Struct, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _Conditions(Struct):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None

    @property
    def is_ready(self) -> bool:
        return self.ready is not False

    @property
    def is_draining(self) -> bool:
        serving = self.is_ready if self.serving is None else self.serving
        return bool(self.terminating) and serving


class _Target(Struct):
    name: str = ""


class _Endpoint(Struct, rename="camel"):
    addresses: list[str] = []
    conditions: _Conditions | None = None
    target_ref: _Target | None = None


class _Port(Struct):
    name: str | None = None
    port: int | None = None


class _Slice(Struct):
    metadata: _Meta
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _List(Struct):
    metadata: _Meta
    items: list[_Slice] | None = None


class _Event(Struct):
    type: str
    object: Raw


class _Status(Struct):
    code: int = 0
    message: str = ""


class _StartAgain(Exception):
    """What is known is out of date: list all of it."""


class _Refused(Exception):
    """The API server says no."""


class EndpointSlices:
    """Those of one query, followed for ever by `run`."""

    def __init__(self, server: ApiServer, query: SliceQuery, listener: Listener) -> None:
        self.name = f"endpoint slices of {query.selector} in {query.namespace}"
        self._server = server
        self._query = query
        self._listener = listener
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{query.namespace}/endpointslices"
        self._slices: dict[str, _Slice] = {}
        self._version: str | None = None
        """From which the watch goes on; None: list first."""
        self._told: tuple[Found, ...] | None = None
        self._failures = 0

    async def run(self) -> None:
        """Until cancelled."""
        said = ""
        ca_file = self._server.ca_file
        verify = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        async with httpx2.AsyncClient(base_url=self._server.url, verify=verify, timeout=LIST_S) as client:
            while True:
                try:
                    if self._version is None:
                        await self._list(client)
                    await self._watch(client)
                except _StartAgain as stale:
                    log.info("%s: listed again: %s", self.name, stale)
                    self._version = None
                except (httpx2.HTTPError, *UNREADABLE, OSError, _Refused) as failure:
                    if said != str(failure):
                        said = str(failure)
                        log.warning("%s cannot be followed: %s", self.name, said or repr(failure))
                    self._failures += 1
                    self._version = None if isinstance(failure, UNREADABLE) else self._version
                else:
                    said = ""
                await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        """Twice as long after each failure in a row; a moment even after none, for a server that ends every watch at once."""
        seconds = min(LONGEST_BACKOFF_S, 0.5 * 2.0 ** min(self._failures, 10))
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    def _headers(self) -> dict[str, str]:
        file = self._server.token_file
        return {} if file is None else {"authorization": f"Bearer {file.read_text().strip()}"}

    async def _list(self, client: httpx2.AsyncClient) -> None:
        selected = {"labelSelector": self._query.selector}
        reply = await client.get(self._path, params=selected, headers=self._headers())
        if reply.status_code != 200:
            raise _Refused(_said(reply.status_code, reply.content))
        listed = msgspec.json.decode(reply.content, type=_List)
        self._slices = {each.metadata.name: each for each in listed.items or ()}
        self._version = listed.metadata.resource_version
        self._failures = 0
        self._tell()

    async def _watch(self, client: httpx2.AsyncClient) -> None:
        params: dict[str, Any] = {
            "labelSelector": self._query.selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": WATCH_S,
        }
        timeout = httpx2.Timeout(LIST_S, read=WATCH_S + LIST_S)
        async with client.stream(
            "GET", self._path, params=params, headers=self._headers(), timeout=timeout
        ) as reply:
            if reply.status_code == 410:
                raise _StartAgain("the version is too old")
            if reply.status_code != 200:
                raise _Refused(_said(reply.status_code, await reply.aread()))
            async for line in reply.aiter_lines():
                if line:
                    self._take(msgspec.json.decode(line, type=_Event))
                    self._failures = 0

    def _take(self, event: _Event) -> None:
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=_Status)
            raise _StartAgain(status.message or f"an error event with code {status.code}")
        if event.type not in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK"}:
            raise _StartAgain(f"an event of the unknown type {event.type[:40]}")
        changed = msgspec.json.decode(event.object, type=_Slice)
        self._version = changed.metadata.resource_version
        if event.type in {"ADDED", "MODIFIED"}:
            self._slices[changed.metadata.name] = changed
        elif event.type == "DELETED":
            self._slices.pop(changed.metadata.name, None)
        self._tell()

    def _tell(self) -> None:
        found: dict[str, Found] = {}
        for name in sorted(self._slices):
            for each in self._workers(self._slices[name]):
                # While it moves, an endpoint may stand in two slices for a moment: one that is ready counts.
                if each.name not in found or found[each.name].draining:
                    found[each.name] = each
        told = tuple(found.values())
        if told != self._told:
            self._told = told
            self._listener(told)

    def _workers(self, of: _Slice) -> Iterator[Found]:
        port = self._port_of(of)
        if port is None:
            return
        for endpoint in of.endpoints or ():
            conditions = endpoint.conditions or _Conditions()
            draining = conditions.is_draining
            if endpoint.addresses and (draining or conditions.is_ready):
                url = url_at(self._query.scheme, endpoint.addresses[0], port)
                pod = "" if endpoint.target_ref is None else endpoint.target_ref.name
                yield Found(pod or url.partition("://")[2], url, draining)

    def _port_of(self, of: _Slice) -> int | None:
        wanted = self._query.port
        for port in of.ports or ():
            if port.port is not None and (wanted is None or wanted in (port.name, port.port)):
                return port.port
        return None


def _said(status: int, body: bytes) -> str:
    try:
        message = msgspec.json.decode(body, type=_Status).message
    except UNREADABLE:
        message = body[:200].decode(errors="replace")
    return f"the API server answered {status}: {message}"
