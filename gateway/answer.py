"""What a call is answered with: a whole reply, or a stream, from one endpoint after another where that breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from backends.base import AttemptFailed
    from backends.member import Attempt
    from backends.sse import CompletionStream
    from backends.usage import WholeReply
    from routing.types import Endpoint


class Answer:
    """What the first endpoint to answer has sent so far: a whole reply, or a stream that has begun.

    The attempt ends with its block.
    """

    __slots__ = ("_over", "attempt", "failure", "first_block", "stream", "whole")

    def __init__(
        self,
        attempt: Attempt,
        whole: WholeReply | None = None,
        stream: CompletionStream | None = None,
        first_block: bytes = b"",
    ) -> None:
        self.attempt = attempt
        self.whole = whole
        self.stream = stream
        self.first_block = first_block
        self.failure: AttemptFailed | None = None
        """With what the stream has broken right behind its first block."""
        self._over = False

    @property
    def endpoint(self) -> Endpoint:
        """Whose it is now."""
        return self.attempt.candidate.endpoint

    def end(self, error: BaseException | None) -> None:
        """Its attempt is over, with this error or whole."""
        if not self._over:
            self._over = True
            self.attempt.end(error)

    def goes_on(
        self, attempt: Attempt, stream: CompletionStream, first_block: bytes, failure: AttemptFailed | None
    ) -> None:
        """Elsewhere."""
        self.attempt, self.stream, self.first_block, self.failure = attempt, stream, first_block, failure
        self._over = False

    async def drain(self) -> None:
        """Wait for what comes after the content of a stream that has come to its end, which frees its connection."""
        if not self._over and (self.stream is None or self.stream.leaves_nothing):
            await self.attempt.reply.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.end(error)
