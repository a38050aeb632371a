"""An answer that has broken, or is to be moved before it does: what there is of it, and how it can be gone on with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from msgspec import Struct

from backends.base import EndpointLeaves, RunsSlowly
from backends.continuation import Continued

if TYPE_CHECKING:
    from backends.base import AttemptFailed
    from backends.said import Said
    from backends.sse import CompletionStream
    from gateway.ledger import Waste
    from gateway.planning import Decided
    from routing.resume import Way
    from routing.types import Call, Candidate, Endpoint


class Broken(Struct, frozen=True):
    """What has broken, and how it can be gone on with."""

    stream: CompletionStream
    said: Said
    begun: Endpoint
    failure: AttemptFailed
    ways: tuple[Way, ...]
    tokens: int
    """Written in all, by then, but for what has been held back: whoever goes on adds to the same account."""

    @classmethod
    def now(
        cls,
        stream: CompletionStream,
        said: Said,
        begun: Endpoint,
        failure: AttemptFailed,
        ways: tuple[Way, ...],
    ) -> Self:
        """As it is now."""
        own_tokens = stream.own_tokens if isinstance(stream, Continued) else 0
        return cls(stream, said, begun, failure, ways, own_tokens + stream.tokens - stream.held_tokens)

    @property
    def own_tokens(self) -> int:
        """Written before this piece of the answer."""
        return self.stream.own_tokens if isinstance(self.stream, Continued) else 0

    @property
    def cause(self) -> Waste:
        """Why what the client has not got of it was in vain."""
        failure = self.failure
        moved = isinstance(failure, EndpointLeaves | RunsSlowly)
        return "moved" if moved else failure.sort.wastes or "broken"


class Move(Struct, frozen=True):
    """What is to go on elsewhere though it has not broken, and where."""

    broken: Broken
    call: Call
    candidate: Candidate
    decided: Decided
