"""The way a call goes out to an endpoint that speaks OpenAI's API over HTTP: a vLLM worker or a hosted provider.

Both take the lane; what differs is the path in front of the API and the key. The body goes out as it was prepared and
the reply comes back as bytes.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

from msgspec import Struct

from backends.base import KeyRefused, RateLimited, ReplyMalformed, ReplyOversized
from backends.exchange import Exchange
from backends.incoming import Patience
from backends.keys import LONGEST_TRIES, Key, Keys
from backends.lane import Lane, LaneLimits, Origin
from backends.refusal import refusal

if TYPE_CHECKING:
    from backends.kv_events import KvSource
    from backends.member import Attempt

_ERROR_BODY_BYTES = 65_536


class Watch(Protocol):
    """Whoever wants to know what becomes of an attempt."""

    def begun(self) -> None: ...

    def ended(self, attempt: Attempt, error: BaseException | None) -> None: ...


class Outgoing(Struct, frozen=True, gc=False):
    """A call on its way to one endpoint."""

    api: str
    """Path below the API's root, such as "/chat/completions"."""
    body: bytes
    request_id: str
    stream: bool
    ends_s: float
    """When the call has to be done, on the monotonic clock."""
    trace: bytes = b""
    """Header lines with the trace context, or nothing."""
    watch: Watch | None = None


class Access(Struct, frozen=True):
    """How an endpoint is reached."""

    url: str
    """A worker's origin, or a provider's URL up to and with its /v1."""
    api_keys: tuple[str, ...] = ()
    """Used in turn."""
    ca_file: str | None = None
    """PEM file with the authority to trust in place of the system's."""
    kv_events: KvSource | None = None
    """Where a worker publishes what it stores in its prefix cache."""


def lane_to(access: Access, limits: LaneLimits) -> Lane:
    parts = urlsplit(access.url)
    tls = ssl.create_default_context(cafile=access.ca_file) if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    return Lane(Origin(parts.hostname or "", port, tls), limits)


class HttpBackend:
    """One endpoint's API over its lane."""

    def __init__(self, access: Access, lane: Lane, root: str, patience: Patience, keys: Keys) -> None:
        self.lane = lane
        self.keys = keys
        self._root = root
        self._patience = patience
        # A reply that is not streamed has its first byte at its end.
        self._whole_patience = Patience(patience.total_s, patience.silence_s, patience.total_s)
        self._fixed = (
            f"host: {urlsplit(access.url).netloc.rpartition('@')[2]}\r\n"
            "user-agent: tidegate\r\naccept: */*\r\naccept-encoding: identity\r\n"
            "content-type: application/json\r\n"
        ).encode()
        # By its session, an event says which call it is of.
        self._names_session = access.kv_events is not None
        self._starts: dict[str, bytes] = {}
        """What a request to each API begins with."""

    @property
    def connections(self) -> int:
        return self.lane.connections

    def open(self, outgoing: Outgoing) -> Opening:
        """Send the call; the reply is open inside the block.

        Entering raises AttemptFailed or CallRejected.
        """
        start = self._starts.get(outgoing.api)
        if start is None:
            line = f"POST {self._root}{outgoing.api} HTTP/1.1\r\n"
            start = self._starts[outgoing.api] = line.encode() + self._fixed
        head = b"%bx-request-id: %b\r\n%bcontent-length: %d\r\n" % (
            start,
            outgoing.request_id.encode(),
            outgoing.trace,
            len(outgoing.body),
        )
        if self._names_session:
            head += b"x-session-id: %b\r\n" % outgoing.request_id.encode()
        patience = self._patience if outgoing.stream else self._whole_patience
        return Opening(self.lane, head, outgoing, patience, self.keys)

    async def get(self, path: str, timeout_s: float, limit_bytes: int) -> tuple[int, bytes]:
        """Status and body of a GET below the worker's root. Raises AttemptFailed."""
        return await self._ask(b"GET " + path.encode(), b"", timeout_s, limit_bytes)

    async def post(self, path: str, body: bytes, timeout_s: float, limit_bytes: int) -> tuple[int, bytes]:
        """Status and body of a POST there. Raises AttemptFailed."""
        return await self._ask(b"POST " + path.encode(), body, timeout_s, limit_bytes)

    async def _ask(
        self, line: bytes, content: bytes, timeout_s: float, limit_bytes: int
    ) -> tuple[int, bytes]:
        head = b"%b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
            line,
            self._fixed,
            self.keys.first_line,
            len(content),
        )
        patience = Patience(timeout_s, timeout_s, timeout_s)
        async with self.lane.exchange(head, content, patience) as exchange:
            body = await exchange.read_whole(limit_bytes)
            return exchange.status, body


class Opening(Exchange):
    """An exchange whose block is entered only with a reply that says yes.

    Where it is our key that the endpoint refuses, it is asked again with another one.
    """

    is_call = True

    __slots__ = ("_keys", "_start", "_stream")

    def __init__(self, lane: Lane, start: bytes, outgoing: Outgoing, patience: Patience, keys: Keys) -> None:
        """`start` is the head without key and empty line."""
        super().__init__(lane, start + b"\r\n", outgoing.body, patience, outgoing.ends_s)
        self._stream = outgoing.stream
        self._start = start
        self._keys = keys

    async def __aenter__(self) -> Self:
        if not self._keys:
            await self._open()
            return self
        tried: list[Key] = []
        while (key := self._next_key(tried)) is not None:
            self._head = b"%b%b\r\n" % (self._start, key.line)
            try:
                await self._open()
            except (RateLimited, KeyRefused) as refused:
                self._keys.refused(key, refused, time.monotonic())
                tried.append(key)
                self._reset()
            else:
                self._keys.answered(key)
                return self
        raise self._keys.failure(time.monotonic())

    def _next_key(self, tried: list[Key]) -> Key | None:
        return self._keys.take(time.monotonic(), tried) if len(tried) < LONGEST_TRIES else None

    async def _open(self) -> None:
        await super().__aenter__()
        if self.status != 200 or self._stream:
            try:
                await self._judge()
            except BaseException:
                self.release()
                raise

    async def _judge(self) -> None:
        """Raises AttemptFailed or CallRejected where the reply is not what was asked for."""
        if self.status != 200:
            try:
                body = await self.read_whole(_ERROR_BODY_BYTES)
            except ReplyOversized:
                # The status alone says whose fault it is: a validation error may quote the whole call.
                body = b"an error of more than %d bytes" % _ERROR_BODY_BYTES
            raise refusal(self.status, self.headers, body)
        content_type = self.headers.get(b"content-type", b"")
        if self._stream and not content_type.lower().startswith(b"text/event-stream"):
            raise ReplyMalformed(f"asked for a stream and got {content_type[:80].decode(errors='replace')!r}")
