"""Browsers: whether a page from another origin may call, and what it may read of the replies.

Starlette's middleware, whose answers to preflights are made to look like all our other replies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from gateway.errors import ApiError
from gateway.ids import call_ids

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.datastructures import Headers
    from starlette.types import ASGIApp

_READABLE = [
    "x-request-id",
    "x-tidegate-endpoint",
    "x-tidegate-tier",
    "x-tidegate-attempts",
    "x-tidegate-hedged",
    "x-tidegate-overhead-ms",
    "x-tidegate-cost-usd",
    "retry-after",
]
"""What a page from an allowed origin may read of a reply's headers."""


class CrossOrigin(CORSMiddleware):
    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=_READABLE,
        )
        self._new_id = call_ids()

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code != 200:
            error = ApiError("cors_not_allowed", bytes(response.body).decode())
            response = Response(error.body(), error.status, media_type="application/json")
        response.headers["x-request-id"] = f"req_{self._new_id()}"
        return response
