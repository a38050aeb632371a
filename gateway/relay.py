"""A stream on its way to its client, block by block; where it breaks, it goes on elsewhere, and the client sees one stream.

Whether a stream has broken is seen by its bytes (the connection lost, an end without a finish, an error in its midst), by a
silence that is longer than it should ever be, or told by whoever knows that its endpoint is going to leave. One that runs
far below its speed is moved, but stays where it is until somebody else has begun to go on with it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from backends.base import AttemptFailed, SilenceTimeout
from backends.continuation import Continued, chunk_of
from backends.exchange import Exchange
from gateway.resuming import Resume
from routing.resume import stall_s
from routing.types import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.member import Attempt
    from backends.sse import CompletionStream
    from gateway.answer import Answer
    from gateway.broken import Move
    from gateway.openai import Request
    from gateway.resuming import Resuming
    from gateway.serving import Serving

UNHEARD_S = 1.0
"""A stream that has stood still for so long, at a worker of which nothing is heard, has broken."""


class Sink(Protocol):
    """Where a stream goes: its client, or whatever stands in its place."""

    def write(self, block: bytes) -> None: ...

    @property
    def full(self) -> bool:
        """Whether it wants no more for now."""
        ...

    async def drain(self) -> None:
        """Wait until it is not full."""
        ...


class Relay:
    """One stream, from its first block to its last."""

    def __init__(self, resuming: Resuming, serving: Serving, request: Request) -> None:
        """`request` is the call's as the worker was asked it: for a stream."""
        self._resuming = resuming
        self._serving = serving
        self._request = request
        self._meter = serving.meter
        self._resume: Resume | None = None
        self._move: Move | None = None
        self._answer: Answer
        self._is_slow_client = False
        """Whether it has ever been the client that was waited for: then the stream's speed says nothing."""
        self._seen_tokens = 0
        """Of this piece of the answer, when it was last looked at."""
        self._seen_s = 0.0
        """When they were found to be more than before."""

    async def run(self, answer: Answer, stream: CompletionStream, sink: Sink) -> bytes:
        """Write all of it to `sink` but the last block, which is for when the call is accounted for.

        Raises AttemptFailed where it has broken for good.
        """
        self._answer = answer
        while True:
            try:
                last_block = await self._pour(answer, stream, sink)
                if self._move is None:
                    break
                await self._moves(answer, self._move)
                stream = answer.stream or stream
            except AttemptFailed as failure:
                if stream.before_failure:
                    sink.write(stream.before_failure)
                call = answer.attempt.call
                answer.end(failure)
                if stream.finished:  # all that the client waits for is there
                    return self._unreported_usage(stream)
                if (end := await self._resumed().end(stream, call, failure, answer.endpoint)) is not None:
                    return end
                await self._resumed().go_on(answer, stream, call, failure)
                stream = answer.stream or stream
        if isinstance(stream, Continued):
            self._meter.usage = stream.told
        return last_block if stream.usage is not None else last_block + self._unreported_usage(stream)

    async def _pour(self, answer: Answer, stream: CompletionStream, sink: Sink) -> bytes:
        attempt, last_block = answer.attempt, b""
        noted, kept_tokens = self._meter.noted, self._meter.kept_tokens

        def forward(raw: bytes) -> bool:
            """Send on what is to be seen of a block; True where no more is wanted, for now or at all."""
            nonlocal last_block
            block = stream.feed(raw)
            if noted is not None:
                noted[0][noted[1]] = kept_tokens + stream.tokens
            if stream.whole:
                last_block = block
                return True
            if block:
                sink.write(block)
            return sink.full

        try:
            if stream.whole:
                return answer.first_block
            if noted is not None:
                noted[0][noted[1]] = kept_tokens + stream.tokens
            sink.write(answer.first_block)
            answer.first_block = b""
            if answer.failure is not None:
                raise answer.failure
            self._watch(attempt, stream)
            await self._pour_on(attempt, stream, sink, forward)
            if self._move is None:
                stream.end()
            return last_block
        finally:
            self._resuming.lookout.streams.pop(self, None)
            attempt.completion_tokens = stream.tokens
            if stream.usage is not None and stream.leaves_nothing:
                attempt.used(stream.usage)

    async def _pour_on(
        self, attempt: Attempt, stream: CompletionStream, sink: Sink, forward: Callable[[bytes], bool]
    ) -> None:
        """Until it is whole, or at its end, or is to be moved."""
        while not stream.whole:
            if sink.full:
                self._is_slow_client = True
                await sink.drain()
            if await attempt.reply.pour(forward):
                break
            if self._move is not None and not stream.finished:
                return
        self._move = None

    def _watch(self, attempt: Attempt, stream: CompletionStream) -> None:
        """Find a stream dead sooner, where it could go on elsewhere."""
        reply, said, lookout = attempt.reply, stream.said, self._resuming.lookout
        if said is None or not isinstance(reply, Exchange):
            return
        begun = attempt.member.endpoint
        self._seen_tokens, self._seen_s = 0, time.monotonic()
        self._resuming.fleet.pool(begun.model).hedging.moves.call()
        lookout.streams[self] = None
        if not lookout.ticking:
            lookout.begin()

        def could_go_on() -> bool:
            return not stream.finished and self._resumed().has_somebody(said, begun)

        reply.watch(stall_s(attempt.candidate.estimate.itl_s, self._resuming.silence_s), could_go_on)

    def look(self, now_s: float) -> None:
        """See whether it runs as it should: called now and then while it does."""
        attempt, stream = self._answer.attempt, self._answer.stream
        reply = attempt.reply
        if self._move is not None or self._is_slow_client or stream is None or stream.finished:
            return
        tokens = stream.tokens
        if tokens > self._seen_tokens:
            self._seen_tokens, self._seen_s = tokens, now_s
            attempt.progress(now_s, tokens)
        elif now_s - self._seen_s >= UNHEARD_S and attempt.member.ejection.unheard(now_s):
            if isinstance(reply, Exchange) and self._resumed().has_somebody(
                stream.said, self._answer.endpoint
            ):
                reply.break_off(SilenceTimeout("it stands still, and the worker is not heard of any more"))
            return
        self._move = self._resumed().elsewhere(attempt, stream, now_s)
        if self._move is not None and isinstance(reply, Exchange):
            reply.enough()

    async def _moves(self, answer: Answer, move: Move) -> None:
        """It goes on elsewhere, or where it is if that cannot be."""
        try:
            await self._resumed().move(answer, move)
        finally:
            self._move = None

    def _resumed(self) -> Resume:
        if self._resume is None:
            self._resume = Resume(self._resuming, self._serving, self._request)
        return self._resume

    def _unreported_usage(self, stream: CompletionStream) -> bytes:
        """The chunk that a client has asked for and an endpoint did not come to send."""
        said = stream.said
        if said is None or stream.usage is not None or not self._request.shows_usage:
            return b""
        known = said.prompt_tokens
        prompt_tokens = self._request.prompt_tokens if known is None else known
        tokens = stream.tokens + (stream.own_tokens if isinstance(stream, Continued) else 0)
        usage = self._meter.usage = Usage(prompt_tokens, 0, tokens, estimated=known is None)
        return chunk_of(said, [], usage)
