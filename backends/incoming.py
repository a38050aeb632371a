"""A reply on its way in: from whatever receives its blocks to the one task that wants them.

Receiving and reading go at different speeds. Blocks wait here until they are read, up to a mark beyond which no more
is taken in; or they are poured into a sink the moment they come.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from msgspec import Struct

from backends.base import AttemptFailed, CallTimeout, FirstByteTimeout, SilenceTimeout

if TYPE_CHECKING:
    import asyncio

    from backends.base import CallRejected, ReplyLate, Sink

HIGH_WATER_BYTES = 65_536
"""What a reply may run ahead of its reader; beyond it no more is taken in, and TCP slows the endpoint down."""


class Patience(Struct, frozen=True):
    """How long one reply may take, in seconds."""

    first_byte_s: float = 120.0
    silence_s: float = 30.0
    total_s: float = 600.0

    def failure(self, late: type[ReplyLate]) -> ReplyLate:
        """What is raised where it has come to an end."""
        if late is FirstByteTimeout:
            return late(f"no reply within {self.first_byte_s:g} s")
        if late is SilenceTimeout:
            return late(f"nothing came for {self.silence_s:g} s")
        return CallTimeout()


class Incoming(ABC):
    """What has come of a reply and was not taken yet, and who waits for more."""

    __slots__ = (
        "_blocks",
        "_error",
        "_patience",
        "_paused",
        "_sink",
        "_size",
        "_waiter",
        "complete",
    )

    _patience: Patience

    def _reset(self) -> None:
        self.complete = False
        self._blocks: list[bytes | bytearray] = []
        self._size = 0
        self._paused = False
        self._error: AttemptFailed | CallRejected | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None

    @abstractmethod
    async def _wait(self, until_s: float, late: type[ReplyLate]) -> None:
        """Until `_wake`; no longer than until then on the monotonic clock, nor than the call may take."""

    @abstractmethod
    def _resume(self) -> None:
        """Take in again what comes."""

    async def read(self) -> bytes:
        """What has come since the last read, at least a byte; b"" at the end of the reply.

        Raises AttemptFailed or CallRejected.
        """
        while not self._blocks:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._wait(time.monotonic() + self._patience.silence_s, SilenceTimeout)
        return self._take()

    async def pour(self, sink: Sink) -> bool:
        """Call `sink` with every block as it comes, until it says True, for enough; whether the reply is at its end.

        A block then goes from socket to socket without waking a task for it, which is half the cost of a slow stream.
        Raises what `read` and `sink` raise; of the latter it has to be an AttemptFailed.
        """
        if self._blocks and sink(self._take()):
            return False
        self._sink = sink
        try:
            while self._sink is not None and not self.complete and self._error is None:
                await self._wait(time.monotonic() + self._patience.silence_s, SilenceTimeout)
        finally:
            enough, self._sink = self._sink is None, None
        if self._error is not None:
            raise self._error
        return not enough

    def enough(self) -> None:
        """Whoever it is poured to wants no more for now."""
        self._sink = None
        self._wake()

    def _pour(self, sink: Sink) -> None:
        try:
            if sink(self._take()):
                self._sink = None
        except AttemptFailed as failure:
            self._error = failure

    def _take(self) -> bytes:
        blocks = self._blocks
        block = bytes(blocks[0]) if len(blocks) == 1 else b"".join(blocks)
        blocks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._resume()
        return block

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
