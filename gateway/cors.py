"""Browsers: whether a page from another origin may call, and what it may read of the replies.

Preflights, and the replies of the control routes, are Starlette's middleware's; calls do not pass through ASGI's
messages, so the header lines for their replies are made here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.datastructures import Headers
    from starlette.types import ASGIApp

_READABLE = (
    "x-request-id",
    "x-tidegate-model",
    "x-tidegate-endpoint",
    "x-tidegate-tier",
    "x-tidegate-attempts",
    "x-tidegate-hedged",
    "x-tidegate-overhead-ms",
    "x-tidegate-cost-usd",
    "x-tidegate-plan",
    "retry-after",
)
"""What a page from an allowed origin may read of a reply's headers."""


class Origins:
    """The origins from which pages may call; `*` is any."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = tuple(allowed)
        self._any = "*" in allowed
        self._exposed = f"access-control-expose-headers: {', '.join(_READABLE)}\r\n".encode()

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def lines(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Header lines for the reply to a call with these headers."""
        if not self._allowed or (origin := headers.get(b"origin")) is None:
            return b""
        if self._any:
            return b"access-control-allow-origin: *\r\n" + self._exposed
        if origin.decode("latin-1") in self._allowed:
            return b"access-control-allow-origin: %b\r\nvary: Origin\r\n%b" % (origin, self._exposed)
        return b""

    def around(self, app: ASGIApp) -> ASGIApp:
        """`app` with such headers on its replies, and with answers to preflights for every path, where there are any."""
        if not self._allowed:
            return app
        return _Preflights(
            app,
            allow_origins=self._allowed,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_READABLE,
        )


class _Preflights(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """A refusal in the shape of every other error."""
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            error = ApiError("cors_not_allowed", bytes(response.body).decode())
            return Response(error.body(), error.status, media_type="application/json")
        return response
