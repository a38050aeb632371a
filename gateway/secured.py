"""Headers by which a browser keeps a control page to itself: not framed, not sniffed, not cached, telling nobody where it was.

They are set where a route has not said otherwise, so that a page which needs more (the console its own scripts) says so
itself. Calls do not pass here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    Fields = tuple[tuple[bytes, bytes], ...]

EVERYWHERE: Fields = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
ON_PAGES: Fields = (
    *EVERYWHERE,
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"cache-control", b"no-store"),
)
"""What administrators see."""
WITH_TLS: Fields = ((b"strict-transport-security", b"max-age=31536000"),)
PAGES = ("/admin", "/console")


class Secured:
    """An ASGI application with these headers on its replies."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        headers = ON_PAGES if path.startswith(PAGES) else EVERYWHERE
        if scope.get("scheme") == "https":
            headers += WITH_TLS

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                missing = [field for field in headers if field[0] not in given]
                message = {**message, "headers": [*message["headers"], *missing]}
            await send(message)

        await self._app(scope, receive, secured)
