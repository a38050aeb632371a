"""Following vLLM's KV events: what a worker itself says it has stored in its prefix cache, and removed.

A worker that publishes them (`--kv-events-config`, ZMQ) tells of every block. The gateway does not tokenize, so it cannot
match blocks with prompts; what it takes from events is how much of the cache is left after evictions, to which the index
of that worker is trimmed, and that the cache is empty. Every message has a number: where some are missing they are asked
for again, and where that is in vain, or the events do not match what was sent there (`kv_check`), they are not believed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct

from backends.kv_blocks import AllBlocksCleared, BlockStored, HeldBlocks, decode_batch
from backends.kv_check import SelfCheck, SentCalls
from backends.rounds import rounds

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

log = logging.getLogger(__name__)

JUDGE_S = 10.0
"""Between two judgements on whether events match."""
SETTLE_S = 5.0
"""From the start until a subscription has surely reached the publisher."""
RETRY_S = 2.0
"""After a failure that closed the sockets."""
REPLAY_S = 5.0
"""For the next of the messages asked for again."""
MOST_WAITING = 10_000
"""Messages not yet taken; those beyond are lost, which shows as a gap."""
MOST_BYTES = 64 * 1_048_576
"""Of one message."""
BURST = 64
"""Messages taken before the event loop has its turn."""
_HEARTBEAT_MS = 10_000
_END = (-1).to_bytes(8, "big", signed=True)
"""Number of the message that ends a replay."""


class KvSource(Struct, frozen=True):
    """Where a worker publishes, as ZMQ addresses."""

    events: str
    replay: str | None = None


class Cache(Protocol):
    """What is thought of a worker's cache, to be put right by its events."""

    def restarted(self) -> None: ...
    def trim(self, kv_tokens: int) -> None: ...
    @property
    def finds_cached(self) -> bool: ...


class KvEvents:
    """The events of one worker."""

    def __init__(
        self, name: str, source: KvSource, cache: Cache, sent: SentCalls, settle_s: float = SETTLE_S
    ) -> None:
        self.held = HeldBlocks()
        self.check = SelfCheck(source.events, sent)
        self.gaps = 0
        """Times that messages were missed and could not be had again."""
        self.name = name
        self._source = source
        self._cache = cache
        self._sent_calls = sent
        self._next: int | None = None
        """The number of the message to come; None before the first."""
        self._last_ts = 0.0
        self._following_since_s = float("inf")
        self._settle_s = settle_s
        self._suspected: str | None = None

    def sent(self, request_id: str) -> None:
        """A call goes there, with this as its session."""
        self._sent_calls.note(request_id, self._source.events)

    def used(self, prompt_tokens: int, cached_tokens: int) -> None:
        """A call there has ended, with so many tokens."""
        self.check.used(prompt_tokens, cached_tokens, self.held.block_tokens)

    @asynccontextmanager
    async def running(self, context: Any, judge_s: float) -> AsyncIterator[None]:
        """Follow them and judge them, as long as the block runs."""
        async with (
            rounds(lambda _: self.follow(context), RETRY_S, f"following KV events of {self.name}"),
            rounds(lambda _: self.judge(), judge_s, f"judging KV events of {self.name}"),
        ):
            yield

    async def follow(self, context: Any) -> None:
        """Take what is published, until a socket fails."""
        import zmq  # noqa: PLC0415 - an extra, loaded where events are followed

        with context.socket(zmq.SUB) as subscription:
            subscription.set(zmq.RCVHWM, MOST_WAITING)
            subscription.set(zmq.MAXMSGSIZE, MOST_BYTES)
            subscription.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
            subscription.set(zmq.HEARTBEAT_TIMEOUT, 3 * _HEARTBEAT_MS)
            subscription.set(zmq.SUBSCRIBE, b"")
            subscription.connect(self._source.events)
            self._following_since_s = time.monotonic()
            taken = 0
            while True:
                frames = await subscription.recv_multipart()
                if len(frames) >= 2:
                    await self._take(context, int.from_bytes(frames[-2], "big"), frames[-1])
                taken += 1
                if taken % BURST == 0:
                    await asyncio.sleep(0)

    async def judge(self) -> None:
        """Say aloud where events do not match what was sent there, and where they do again."""
        if time.monotonic() - self._following_since_s < self._settle_s:
            self.check.forget()
            return
        reason = self.check.judge(finds_cached=self._cache.finds_cached)
        if reason is not None and self._suspected is None:
            log.warning(
                "%s: KV events from %s do not match the prompts sent there: %s",
                self.name,
                self._source.events,
                reason,
            )
            self._suspected = reason
        elif self._suspected is not None and self.check.believed:
            log.info("%s: KV events match again", self.name)
            self._suspected = None

    async def _take(self, context: Any, number: int, payload: bytes) -> None:
        """A message has come. Whatever is missing before it is made good, or what was known is given up."""
        due = 0 if self._next is None else self._next
        if number > due:
            await self._replay(context, due, number)
        elif self._next is not None and number < due and not self._is_new_publisher(payload):
            return  # it came with a replay already
        elif number < due:
            self._restarted()
            if number > 0:
                await self._replay(context, 0, number)
        elif number == 0:
            self.held.emptied()
        self._apply(payload)
        self._next = number + 1

    async def _replay(self, context: Any, first: int, before: int) -> None:
        """Take the messages from `first` on and before `before`, or take note that they are lost."""
        due = first
        if self._source.replay is not None:
            async with aclosing(self._again(context, self._source.replay, first)) as messages:
                async for number, payload in messages:
                    if number != due or number >= before:
                        break
                    if number == 0:
                        self.held.emptied()
                    self._apply(payload)
                    due += 1
        if due < before:
            self.gaps += self._next is not None
            self.held.lost()
            self.check.forget()

    async def _again(self, context: Any, address: str, first: int) -> AsyncGenerator[tuple[int, bytes]]:
        import zmq  # noqa: PLC0415 - as above

        with context.socket(zmq.DEALER) as socket:
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.MAXMSGSIZE, MOST_BYTES)
            socket.connect(address)
            await socket.send_multipart((b"", first.to_bytes(8, "big")))
            while await socket.poll(int(REPLAY_S * 1000)):
                frames = await socket.recv_multipart()
                if len(frames) < 2 or frames[-2] == _END:
                    return
                yield int.from_bytes(frames[-2], "big"), frames[-1]
                await asyncio.sleep(0)

    def _apply(self, payload: bytes) -> None:
        try:
            batch = decode_batch(payload)
        except msgspec.DecodeError as error:
            if self.held.complete:
                log.warning("%s: KV events that are not understood: %s", self.name, error)
            self.held.lost()
            self.check.forget()
            return
        self._last_ts = batch.ts
        gone = False
        for event in batch.events:
            if isinstance(event, BlockStored):
                self.check.stored(self.held.stored(event), event.session_id)
            elif isinstance(event, AllBlocksCleared):
                self.held.emptied()
                self._cache.restarted()
            else:
                gone = self.held.removed(event) or gone
        tokens = self.held.tokens
        if gone and tokens is not None and self.check.believed:
            self._cache.trim(tokens)

    def _is_new_publisher(self, payload: bytes) -> bool:
        """Whether a message with a number that was had already is of a publisher that began anew: then it is younger."""
        try:
            return decode_batch(payload).ts > self._last_ts
        except msgspec.DecodeError:
            return True

    def _restarted(self) -> None:
        self.held.emptied()
        self.check.forget()
        self._cache.restarted()
