"""The client's side of one call: what it has been sent so far, and whether it is still there.

Plain ASGI, with nothing between this and the server. A client that leaves is noticed by `present`, which then cancels
the call: everything that the call holds is released where it is held.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

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

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """Inside the block, the current task is cancelled as soon as the client closes its connection."""
        task = asyncio.current_task()
        watching = asyncio.create_task(self._watch(task))
        try:
            yield
        finally:
            # Where the reply is finished the server ends the watch itself, which is cheaper than to cancel it.
            if not self.finished:
                watching.cancel()

    async def _watch(self, task: asyncio.Task[Any] | None) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.finished:
            self.left = self.finished = True
            if task is not None:
                task.cancel("the client left")

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


def _too_large(limit_bytes: int) -> ApiError:
    # What is left of the body is not read, so the connection cannot be used again.
    return ApiError(
        "request_too_large",
        f"the body is larger than {limit_bytes} bytes",
        headers=[(b"connection", b"close")],
    )
