"""From a request on our server to an ASGI application and back: for the control routes.

Calls, which have the streams that matter, do not go through ASGI; the console's events do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from gateway.client import Client


async def answer(app: ASGIApp, client: Client, body_limit_bytes: int) -> None:
    """Reply with what `app` says, in parts where it gives parts. Where it reads a body that exceeds the limit, it gets an ApiError."""
    path, _, query = client.target.partition(b"?")
    status, lines, body, streams = 500, b"", b"", False

    async def receive() -> dict[str, Any]:
        content = await client.body(body_limit_bytes)
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, lines, body, streams
        if message["type"] == "http.response.start":
            status = message["status"]
            lines += b"".join(
                [b"%b: %b\r\n" % field for field in message["headers"] if field[0] != b"content-length"]
            )
            return
        body += message.get("body", b"")
        if message.get("more_body") and body:
            if not streams:
                streams = True
                client.start(status, lines)
            client.write(body)
            body = b""
            await client.drain()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": client.method.decode(),
        "scheme": client.scheme,
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(client.headers.items()),
        "state": {"leaving": lambda: client.leaving, "stopping": lambda: client.stopping},
        "client": None if (peer := client.peer()) is None else (peer, 0),
    }
    await app(scope, receive, send)
    if streams:
        client.finish(body)
    else:
        client.reply(status, lines, body)
