"""The edge: from an HTTP request to a call, and from whatever goes wrong to an error in OpenAI's shape.

The paths that carry calls are served here as plain ASGI; all others are the control routes' (FastAPI), where a few more
microseconds do not matter.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Any

from gateway.client import CONNECTION, Client
from gateway.errors import ApiError
from gateway.ids import call_ids
from gateway.meter import Arrival, Caller
from gateway.openai import PATHS, Api, parse

if TYPE_CHECKING:
    from gateway.auth import Keyring
    from gateway.catalog import Catalog
    from gateway.client import Message, Receive, Send
    from gateway.dispatch import Dispatch
    from gateway.telemetry import Telemetry

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_TRACE = re.compile(rb"[\x20-\x7e]{1,512}")
_ANYONE = Caller("anonymous", "")
"""Who pays where the configuration asks for no keys."""
_OVERDUE_S = 2.0
"""After a call's deadline, by when its endpoint has been given up: what still runs then waits for its client."""


class Edge:
    """The ASGI application."""

    def __init__(
        self, dispatch: Dispatch, catalog: Catalog, keyring: Keyring | None, telemetry: Telemetry
    ) -> None:
        self._dispatch = dispatch
        self._catalog = catalog
        self._keyring = keyring
        self._telemetry = telemetry
        self._new_id = call_ids()
        self.control: Any = None
        """The ASGI application for all other paths. It authenticates through this one, so it is made after it."""
        self._running: dict[Client, float] = {}
        """By when each call has to be over."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        call_id = self._new_id()
        given_id = headers.get(b"x-request-id", b"")
        request_id = given_id.decode() if _REQUEST_ID.fullmatch(given_id) else f"req_{call_id}"
        client = Client(receive, send, request_id)
        api = PATHS.get(scope["path"])
        try:
            if api is None:
                await self.control(scope, receive, _with_request_id(send, request_id))
            else:
                await self._call(api, scope, headers, call_id, client)
        except ApiError as error:
            await client.reply(error.status, error.headers(), error.body())
        except asyncio.CancelledError:
            if not client.left:
                await self._say_goodbye(client)
        except Exception:
            log.exception("call %s failed in the gateway itself", call_id)
            await _apologise(client)

    async def _call(
        self, api: Api, scope: Any, headers: dict[bytes, bytes], call_id: str, client: Client
    ) -> None:
        try:
            _expect_post(scope["method"])
            caller = self.authenticate(headers)
            body = await self._body(headers, client)
            request = parse(api, body, headers)
            model = self._catalog.model(request.model)
        except ApiError as error:
            self._telemetry.refused[error.code] += 1
            raise
        arrival = Arrival(call_id, client.request_id, caller, time.monotonic(), _trace_lines(headers))
        self._running[client] = arrival.started_s + self._catalog.total_s + _OVERDUE_S
        try:
            with client.present(scope["extensions"][CONNECTION]):
                await self._dispatch.serve(request, model, arrival, client)
        finally:
            del self._running[client]

    @property
    def running(self) -> int:
        """Calls under way."""
        return len(self._running)

    def authenticate(self, headers: dict[bytes, bytes]) -> Caller:
        """Who calls. Raises ApiError."""
        if self._keyring is None:
            return _ANYONE
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not secret:
            raise ApiError(
                "invalid_api_key",
                "No API key was given. Send it as `Authorization: Bearer KEY`.",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        key = self._keyring.find(secret.strip())
        if key is None:
            raise ApiError(
                "invalid_api_key",
                "The API key is unknown or has been revoked.",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        return Caller(key.tenant, key.id)

    async def _body(self, headers: dict[bytes, bytes], client: Client) -> bytes:
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            raise ApiError(
                "unsupported_content_encoding",
                f"content-encoding {encoding[:40].decode('latin-1')!r} is not supported; send the body plain",
            )
        return await client.body(self._catalog.limits.body_bytes, headers.get(b"content-length"))

    async def cancel_overdue(self) -> None:
        """For ever: cancel the calls whose client reads so slowly that their time has run out."""
        while True:
            await asyncio.sleep(_OVERDUE_S / 2)
            now_s = time.monotonic()
            for client, until_s in list(self._running.items()):
                if now_s >= until_s:
                    client.gone("the call's time has run out")

    async def _say_goodbye(self, client: Client) -> None:
        """The server is shutting down and has waited long enough for this call."""
        error = ApiError("shutting_down", "the gateway is shutting down", retry_after_s=1.0)
        if not client.begun:
            await client.reply(error.status, error.headers(), error.body())
        elif not client.finished:
            await client.end_with(error)


async def _apologise(client: Client) -> None:
    error = ApiError("internal_error", f"the gateway failed; its log says why, under {client.request_id}")
    if not client.begun:
        await client.reply(error.status, error.headers(), error.body())
    elif not client.finished:
        await client.end_with(error)


def _expect_post(method: str) -> None:
    if method != "POST":
        raise ApiError("method_not_allowed", f"use POST, not {method}", headers=[(b"allow", b"POST")])


def _trace_lines(headers: dict[bytes, bytes]) -> bytes:
    """The client's trace context as header lines for the endpoint."""
    lines = b""
    for name in (b"traceparent", b"tracestate"):
        value = headers.get(name)
        if value is not None and _TRACE.fullmatch(value):
            lines += b"%b: %b\r\n" % (name, value)
    return lines


def _with_request_id(send: Send, request_id: str) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
        await send(message)

    return send_with_id
