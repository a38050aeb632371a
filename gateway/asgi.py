"""From a request on our server to an ASGI application and back: for the control routes, whose replies are small.

Streams do not pass here; calls, which have them, do not go through ASGI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gateway.client import Client


async def answer(app: ASGIApp, client: Client, body_limit_bytes: int) -> None:
    """Reply with what `app` says. Where it reads a body that exceeds the limit, it gets an ApiError."""
    path, _, query = client.target.partition(b"?")
    status, lines, body = 500, b"", b""

    async def receive() -> dict[str, Any]:
        content = await client.body(body_limit_bytes)
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, lines, body
        if message["type"] == "http.response.start":
            status = message["status"]
            lines += b"".join(
                [b"%b: %b\r\n" % field for field in message["headers"] if field[0] != b"content-length"]
            )
        else:
            body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": client.method.decode(),
        "scheme": client.scheme,
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(client.headers.items()),
        "client": None if (peer := client.peer()) is None else (peer, 0),
    }
    await app(scope, receive, send)
    client.reply(status, lines, body)
