"""One connection to the gateway, byte for byte, for what no client library can be brought to send."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from pool import LIMIT_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pool import Gateway

CHAT = "/v1/chat/completions"
HELLO = b'{"model":"llama","messages":[{"role":"user","content":"High water?"}],"max_tokens":2}'
STREAMED = HELLO[:-1] + b',"stream":true}'
LIVE = "GET /health/live HTTP/1.1"


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return json.loads(self.body)["error"]["code"]


class Wire:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._key = key

    def request(
        self, body: bytes = b"", *more: str, line: str = f"POST {CHAT} HTTP/1.1", key: str = ""
    ) -> bytes:
        """The bytes of a request with a good key, or another, and `content-length` unless `more` has other ideas."""
        length = () if any(header.startswith(("content-l", "transfer-e")) for header in more) else (
            f"content-length: {len(body)}",
        )  # fmt: skip
        lines = (line, "host: tidegate", f"authorization: Bearer {key or self._key}", *length, *more, "", "")
        return "\r\n".join(lines).encode("latin-1") + body

    async def send(self, *pieces: bytes) -> None:
        """Each piece by itself, with time for the gateway to read it before the next one follows."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    async def read_until(self, end: bytes) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            return await self._reader.readuntil(end)

    async def rest(self) -> bytes:
        """All that comes until the gateway closes the connection."""
        async with asyncio.timeout(LIMIT_S):
            return await self._reader.read()

    async def reply(self, within_s: float = LIMIT_S) -> Reply:
        """The next one. A body that only the end of the connection ends is read until then."""
        async with asyncio.timeout(within_s):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head.rstrip("\r\n").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            return Reply(int(status_line.split()[1]), headers, await self._body(status_line, headers))

    async def _body(self, status_line: str, headers: dict[str, str]) -> bytes:
        if status_line.split()[1] == "100":
            return b""
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
            return body
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        return await self._reader.read()


@asynccontextmanager
async def wire(gw: Gateway) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection(*gw.address)
    try:
        yield Wire(reader, writer, gw.key)
    finally:
        writer.close()


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailer + b"\r\n"
