"""The edge: from a request to a call, and from whatever goes wrong to an error in OpenAI's shape.

Calls are served here; all other paths are the control routes' (FastAPI), where a few more microseconds do not matter.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import re
import time
from typing import TYPE_CHECKING, Any

from gateway.arrival import Arrival
from gateway.asgi import answer
from gateway.catalog import charged_within
from gateway.errors import ApiError, shutting_down
from gateway.ids import call_ids
from gateway.limits import NO_HOLD
from gateway.openai import PATHS, Api, parse
from gateway.trace_context import trace_lines
from gateway.vocabulary import Vocabularies
from routing.types import NO_DEMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.auth import Key
    from gateway.callers import Callers
    from gateway.catalog import Catalog
    from gateway.client import Client
    from gateway.cors import Origins
    from gateway.dispatch import Dispatch
    from gateway.limiting import Limiter
    from gateway.telemetry import Telemetry
    from gateway.tracing import Tracing

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_OVERDUE_S = 2.0
"""After a call's deadline, by when its endpoint has been given up: what still runs then waits for its client."""


class Edge:
    """Answers every request."""

    def __init__(
        self,
        dispatch: Dispatch,
        catalog: Catalog,
        callers: Callers,
        origins: Origins,
        telemetry: Telemetry,
        limiter: Limiter,
        admit_to_plans: Callable[[Key], None],
    ) -> None:
        """`admit_to_plans` raises ApiError for those whose calls may not ask for their plan."""
        self._dispatch = dispatch
        self._catalog = catalog
        self._callers = callers
        self._origins = origins
        self._telemetry = telemetry
        self._limiter = limiter
        self._admit_to_plans = admit_to_plans
        self._new_id = call_ids()
        self._vocabularies = Vocabularies()
        self.control: Any = None
        """The ASGI application for all other paths. It shows how many calls run here, so it is made after this."""
        self.for_admins: Edge | None = None
        """What answers where administration has an address of its own."""
        self.tracing: Tracing | None = None
        """Where calls are traced."""
        self._calls = PATHS
        self._running: dict[Client, float] = {}
        """By when each call has to be over."""

    def without_calls(self, control: Any) -> Edge:
        """The same for another address, where this application answers everything."""
        edge = copy.copy(self)
        edge.control, edge._calls = control, {}  # noqa: SLF001 - our own
        return edge

    async def __call__(self, client: Client) -> None:
        headers = client.headers
        call_id = self._new_id()
        given_id = headers.get(b"x-request-id")
        request_id = b"req_%b" % call_id.encode()
        if given_id is not None and _REQUEST_ID.fullmatch(given_id):
            request_id = given_id
        client.lines = b"x-request-id: %b\r\n" % request_id
        try:
            api = self._calls.get(client.target) or self._calls.get(client.target.partition(b"?")[0])
            if api is None or (client.method == b"OPTIONS" and self._origins):
                await answer(self.control, client, self._catalog.limits.body_bytes)
            else:
                client.lines += self._origins.lines(headers)
                await self._call(api, client, call_id, request_id.decode())
        except ApiError as error:
            client.fail(error)
        except asyncio.CancelledError:
            if not client.gone:
                client.fail(shutting_down())
        except Exception:
            log.exception("call %s, request %s: a defect of the gateway", call_id, request_id.decode())
            message = f"the gateway failed; its log says why, under {request_id.decode()}"
            client.fail(ApiError("internal_error", message))

    async def _call(self, api: Api, client: Client, call_id: str, request_id: str) -> None:
        headers = client.headers
        try:
            _expect_post(client.method)
            caller = self._callers.of(headers, client.peer)
            _expect_plain(headers)
            body = await client.body(self._catalog.limits.body_bytes)
            request = parse(api, body, headers)
            if request.explain:
                self._admit_to_plans(caller)
            policy, asked = caller.policy, request.demands
            if policy is not None:
                policy.bind(request)
            offer = self._catalog.offer(request.model, request.tier, policy)
            if asked is not NO_DEMANDS:
                offer = charged_within(offer, asked, request, caller.tenant)
            hosted_as = offer.models[0].hosted_as
            if hosted_as is not None:
                self._vocabularies.count(request, hosted_as)
            hold = NO_HOLD
            if caller.bounds:
                hold = await self._limiter.hold(caller, request, offer, call_id)
                client.lines += hold.lines
        except ApiError as error:
            self._telemetry.refused[error.code] += 1
            raise
        traced = None
        try:
            if caller.tenant in self._catalog.prompts_logged:
                self._telemetry.prompts.log(request, caller.tenant, call_id)
            if self.tracing is not None:
                traced = self.tracing.begin(request, client)
            trace = trace_lines(headers)
            arrival = Arrival(call_id, request_id, caller, time.monotonic(), trace, hold, traced)
            self._running[client] = arrival.started_s + self._catalog.total_s + _OVERDUE_S
            await self._dispatch.serve(request, offer, arrival, client)
        finally:
            self._running.pop(client, None)
            hold.settle()
            if traced is not None:
                traced.end()

    @property
    def running(self) -> int:
        """Calls under way."""
        return len(self._running)

    async def cancel_overdue(self) -> None:
        """For ever: cancel the calls whose client reads so slowly that their time has run out."""
        while True:
            await asyncio.sleep(_OVERDUE_S / 2)
            now_s = time.monotonic()
            for client, until_s in list(self._running.items()):
                if now_s >= until_s:
                    client.cut_off()


def _expect_post(method: bytes) -> None:
    if method != b"POST":
        raise ApiError(
            "method_not_allowed", f"use POST, not {method.decode()}", headers=[(b"allow", b"POST")]
        )


def _expect_plain(headers: dict[bytes, bytes]) -> None:
    encoding = headers.get(b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in (b"identity", b""):
        raise ApiError(
            "unsupported_content_encoding",
            f"content-encoding {encoding[:40].decode('latin-1')!r} is not supported; send the body plain",
        )
