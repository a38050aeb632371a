"""The client's side of one call: what it has been sent so far, and whether it is still there.

Plain ASGI, with nothing between this and the server. A client that leaves is noticed inside `present`, where the call is
then cancelled: everything that the call holds is released where it is held.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

CONNECTION = "tidegate.connection"
"""Where the ASGI scope's extensions hold the connection."""


class Connection(Protocol):
    """What a client needs of its connection: to be told, by `gone`, when that is closed.

    ASGI would have a task wait for `http.disconnect` beside every call, which costs a tenth of what a call may cost.
    """

    def watch(self, client: Client) -> None: ...
    def unwatch(self, client: Client) -> None: ...


Headers = list[tuple[bytes, bytes]]


class Client:
    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.begun = False
        """The status line has gone out."""
        self.finished = False
        """The last byte has gone out, or the client has left."""
        self.left = False
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[Any] | None = None

    async def body(self, limit_bytes: int, announced: bytes | None) -> bytes:
        """The request's body. Raises ApiError where it exceeds the limit, and CancelledError where the client leaves."""
        if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
            raise _too_large(limit_bytes)
        blocks: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.left = self.finished = True
                raise asyncio.CancelledError("the client left")
            block = message.get("body", b"")
            size += len(block)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            blocks.append(block)
            if not message.get("more_body"):
                return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def present(self, connection: Connection) -> _Presence:
        """Inside the block, the current task is cancelled as soon as the client closes its connection."""
        self._task = asyncio.current_task()
        return _Presence(self, connection)

    def gone(self, why: str = "the client left") -> None:
        """Nobody will read what is still to come: cancel the call."""
        if not self.finished:
            self.left = self.finished = True
            if self._task is not None:
                self._task.cancel(why)

    async def reply(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole reply."""
        headers.append((b"content-length", b"%d" % len(body)))
        await self.start(status, headers)
        await self.finish(body)

    async def start(self, status: int, headers: Headers) -> None:
        self.begun = True
        headers.append((b"x-request-id", self.request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, block: bytes) -> None:
        """Part of a reply; waits while the client is slow."""
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def finish(self, block: bytes) -> None:
        """The last part of a reply."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": block})

    async def end_with(self, error: ApiError) -> None:
        """End a stream that has begun: an event with the error, and no `[DONE]`."""
        await self.finish(b"data: " + error.body() + b"\n\n")


class _Presence:
    def __init__(self, client: Client, connection: Connection) -> None:
        self._client = client
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.watch(self._client)

    def __exit__(self, *exc_info: object) -> None:
        self._connection.unwatch(self._client)


def _too_large(limit_bytes: int) -> ApiError:
    # What is left of the body is not read, so the connection cannot be used again.
    return ApiError(
        "request_too_large",
        f"the body is larger than {limit_bytes} bytes",
        headers=[(b"connection", b"close")],
    )
