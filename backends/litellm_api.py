"""The way a call goes out to a provider that does not speak OpenAI's API: through litellm.

What comes back is put into OpenAI's wire format, whole or as server-sent events, so that metering, the model's name and
all else downstream is the same for every endpoint. The call runs in litellm's thread (`litellm_thread`); the reply here
is its end in the gateway's loop, with the deadlines and the brake of the lane.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, Self

from msgspec import Struct

from backends.base import (
    CallTimeout,
    FirstByteTimeout,
    ReplyBroken,
    ReplyOversized,
    Unsupported,
)
from backends.incoming import HIGH_WATER_BYTES, Incoming, Patience
from backends.litellm_errors import failure
from backends.litellm_wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.base import AttemptFailed, CallRejected, ReplyLate
    from backends.litellm_thread import LiteLLMThread
    from backends.worker import Outgoing

_SECRET_NAME = re.compile(r"key|secret|token|password|credential|authorization", re.IGNORECASE)
_LEAST_SECRET = 8
"""Characters: what is shorter is a placeholder, and may well be a word in a message."""


class LiteLLMAccess(Struct, frozen=True):
    """How an endpoint is reached through litellm."""

    model: str
    """As litellm names it, with the provider: "anthropic/claude-sonnet-4-5"."""
    api_keys: tuple[str, ...] = ()
    """One or none: without one, litellm looks for it in the environment."""
    params: dict[str, Any] = {}
    """Further arguments of litellm's: `aws_region_name`, `api_base`, `api_version`."""


class LiteLLMBackend:
    """One endpoint's API through litellm."""

    def __init__(self, access: LiteLLMAccess, thread: LiteLLMThread, patience: Patience) -> None:
        self.thread = thread
        self.patience = patience
        self.params = access.params
        """What the operator gives, over which the call's own arguments win."""
        key = {"api_key": access.api_keys[0]} if access.api_keys else {}
        # Its own retries off: failover is the gateway's.
        self.model = access.model
        self.fixed = {**key, "model": access.model, "num_retries": 0, "max_retries": 0}
        secrets = (*access.api_keys, *_secrets(access.params))
        self.secrets = tuple(secret for secret in secrets if len(secret) >= _LEAST_SECRET)
        self.connections = 0
        """Calls under way there: litellm's connections are its own business."""

    def open(self, outgoing: Outgoing) -> LiteLLMReply:
        """Send the call; the reply is open inside the block.

        Entering raises AttemptFailed or CallRejected.
        """
        return LiteLLMReply(self, outgoing)

    async def get(self, path: str, timeout_s: float, limit_bytes: int) -> tuple[int, bytes]:
        del timeout_s, limit_bytes
        raise Unsupported(f"there is no {path} at a provider")

    async def post(self, path: str, body: bytes, timeout_s: float, limit_bytes: int) -> tuple[int, bytes]:
        del body, timeout_s, limit_bytes
        raise Unsupported(f"there is no {path} at a provider")


class LiteLLMReply(Incoming):
    """The reply to one call, as bytes. Entered with the first of them, or with all where it is no stream."""

    def __init__(self, backend: LiteLLMBackend, outgoing: Outgoing) -> None:
        self._backend = backend
        self._patience = backend.patience
        self._thread = backend.thread
        self._outgoing = outgoing
        self._loop = asyncio.get_running_loop()
        self._ends_s = min(time.monotonic() + backend.patience.total_s, outgoing.ends_s)
        self._opened = False
        # Of the gateway's loop.
        self._reset()
        # Of litellm's thread.
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Event | None = None
        self._begun = False

    # The gateway's side

    async def __aenter__(self) -> Self:
        self._backend.connections += 1
        self._opened = True
        first_s = time.monotonic() + self._patience.first_byte_s
        try:
            self._thread.soon(self._begin)
            if not self._arrived:
                await self._wait(first_s if self._outgoing.stream else self._ends_s, FirstByteTimeout)
        except BaseException:
            self.release()
            raise
        if self._error is not None:
            self.release()
            raise self._error
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.release()

    async def read_whole(self, limit_bytes: int) -> bytes:
        """The rest of the reply.

        Raises AttemptFailed, of which ReplyOversized beyond `limit_bytes`, or CallRejected.
        """
        parts: list[bytes] = []
        left = limit_bytes
        while block := await self.read():
            left -= len(block)
            if left < 0:
                raise ReplyOversized(f"a reply of more than {limit_bytes} bytes")
            parts.append(block)
        return b"".join(parts)

    async def drain(self) -> None:
        """Nothing comes after the content: litellm has ended by itself."""

    def release(self) -> None:
        """Let go of it; a call that is not done is cancelled, and its connection closed."""
        if not self._opened:
            return
        self._opened = False
        self._backend.connections -= 1
        self._sink = None
        self._blocks.clear()
        if not self.complete:
            self._thread.soon(self._cancel)

    @property
    def _arrived(self) -> bool:
        return bool(self._blocks) or self.complete

    def _resume(self) -> None:
        self._thread.soon(self._go_on)

    async def _wait(self, until_s: float, late: type[ReplyLate]) -> None:
        if until_s >= self._ends_s:
            until_s, late = self._ends_s, CallTimeout
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(until_s - time.monotonic()):
                await self._waiter
        except TimeoutError:
            raise self._patience.failure(late) from None
        finally:
            self._waiter = None

    def _received(self, block: bytes) -> None:
        if not self._opened:
            return
        self._blocks.append(block)
        self._size += len(block)
        if self._sink is not None:
            self._pour(self._sink)
        elif self._size > HIGH_WATER_BYTES and not self._paused:
            self._paused = True
            self._thread.soon(self._pause)
        self._wake()

    def _ended(self, error: AttemptFailed | CallRejected | None) -> None:
        self.complete = True
        if self._error is None:
            self._error = error
        self._wake()

    # In litellm's thread

    def _begin(self) -> None:
        self._room = asyncio.Event()
        self._room.set()
        self._task = self._thread.start(self._call(), self._done)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _pause(self) -> None:
        if self._room is not None:
            self._room.clear()

    def _go_on(self) -> None:
        if self._room is not None:
            self._room.set()

    async def _call(self) -> None:
        wire = Wire(self._outgoing.api, self._outgoing.body, self._backend.model)
        function = getattr(self._thread.sdk, wire.function)
        given = {**self._backend.params, **wire.arguments, **self._backend.fixed}
        reply = await function(timeout=self._ends_s - time.monotonic(), **given)
        if not self._outgoing.stream:
            self._tell(self._received, wire.whole(reply))
            return
        try:
            async for block in wire.events(reply):
                self._begun = True
                self._tell(self._received, block)
                if self._room is not None:
                    await self._room.wait()
        finally:
            if hasattr(reply, "aclose"):  # it may have been left in its midst
                await reply.aclose()

    def _done(self, task: asyncio.Task[None]) -> None:
        failed: AttemptFailed | CallRejected | None = ReplyBroken("the call was cancelled")
        try:
            if not task.cancelled():
                error = task.exception()
                failed = None if error is None else failure(error, self._backend.secrets, begun=self._begun)
        finally:  # whatever a provider's error is like, nobody waits for it in vain
            self._tell(self._ended, failed)

    def _tell(self, what: Any, argument: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, argument)


def _secrets(params: Mapping[str, Any], inside: bool = False) -> Iterator[str]:  # noqa: FBT001, FBT002 - of itself only
    """All text below a name that sounds like a secret, or in headers."""
    for name, value in params.items():
        secret = inside or bool(_SECRET_NAME.search(name)) or "headers" in name
        if isinstance(value, dict):
            yield from _secrets(value, secret)
        elif secret and isinstance(value, str):
            yield value
