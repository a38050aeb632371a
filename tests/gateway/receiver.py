"""A receiver of webhooks on a real socket, which answers as a test says and keeps what it got."""

from __future__ import annotations

import asyncio
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Received(NamedTuple):
    headers: dict[str, str]
    body: bytes
    began_s: float
    """By the event loop's clock."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        """Of its CloudEvents."""
        events = self.json
        return [event["id"] for event in (events if isinstance(events, list) else [events])]


class Answer(NamedTuple):
    status: int = 204
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    after_s: float = 0.0


class Receiver:
    """Answers 204 unless told otherwise."""

    def __init__(self, answer: Callable[[Received], Answer] = lambda _: Answer()) -> None:
        self.received: list[Received] = []
        self.answer = answer
        self.url = ""
        self.at_once = 0
        """Most requests that were under way beside each other."""
        self._now = 0
        self._running: set[asyncio.Task[None]] = set()

    @property
    def ids(self) -> list[str]:
        """Of all CloudEvents received, in order, each as often as it came."""
        return [one for received in self.received for one in received.ids]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/events"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            while True:
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client has gone, or the test has ended
        finally:
            self._running.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert lines[0] == "POST /events HTTP/1.1"
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        body = await reader.readexactly(int(headers["content-length"]))
        received = Received(headers, body, asyncio.get_running_loop().time())
        self.received.append(received)
        answer = self.answer(received)
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            await asyncio.sleep(answer.after_s)
        finally:
            self._now -= 1
        head = [f"HTTP/1.1 {answer.status} Said", f"content-length: {len(answer.body)}"]
        head += [f"{name}: {value}" for name, value in answer.headers.items()]
        if answer.status == 204:
            del head[1]
        writer.write("\r\n".join([*head, "", ""]).encode() + answer.body)
        await writer.drain()
