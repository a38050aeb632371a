"""What every backend promises, and every way in which an attempt can fail.

The failures form one tree, so that the edge translates them once and the fleet draws its conclusions once. What each of
them means stands in one table, routing/failure.py.

    AttemptFailed                   one attempt at one endpoint brought no whole reply
    ├── LaneFull                    no free connection to the endpoint
    ├── Unsupported                 the endpoint cannot be asked this; another one may
    ├── Unable                      the endpoint says that it cannot do this; another one may
    │   └── ContextTooShort
    ├── ConnectFailed               no connection could be made
    │   ├── ConnectTimeout
    │   └── TlsFailed               certificate or handshake
    ├── ReplyBroken                 the connection ended before the reply did
    │   ├── StreamTruncated         the stream ended without a finish_reason on every choice
    │   └── EndpointLeaves          it has to leave, and the call was taken from it before it did
    ├── ReplyLate
    │   ├── FirstByteTimeout        nothing came
    │   ├── SilenceTimeout          it began, then fell silent
    │   ├── RunsSlowly              it runs far below its speed, and was taken from it
    │   └── CallTimeout             the whole call took too long
    ├── ReplyMalformed              not HTTP, not JSON, not server-sent events
    │   └── ReplyOversized
    └── Refused                     a whole reply that says no
        ├── Overloaded              503: come back later
        │   ├── Leaving             it is shutting down
        │   └── RateLimited         429: our rate there, or our key's, is used up
        ├── CallTooLarge            more than our rate there would ever allow
        ├── Misconfigured           405: the endpoint does not take what it was configured for
        │   ├── ModelMissing        404: it does not have the model
        │   └── KeyRefused          401, 402, 403: it does not take our key, or our account has no money left
        └── ServerFault             any other 5xx, or an error event in a stream
            ├── EngineDead          vLLM's engine has crashed
            └── OutOfMemory

    CallRejected                    the endpoint says that the call itself is wrong; no other endpoint is asked
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol, Self

import msgspec

from routing.failure import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from backends.worker import Outgoing
    from routing.failure import Sort


Sink = Callable[[bytes], bool]
"""Takes a block of a reply; True: no more for now."""


class Reply(Protocol):
    """What an endpoint answers, as bytes of OpenAI's wire format; open inside its block.

    Entering, and all that reads, raises AttemptFailed or CallRejected.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

    async def read(self) -> bytes:
        """What has come since the last read, at least a byte; b"" at the end of the reply."""
        ...

    async def read_whole(self, limit_bytes: int) -> bytes:
        """The rest of the reply."""
        ...

    async def pour(self, sink: Sink) -> bool:
        """Call `sink` with every block as it comes, until it says True, for enough; whether the reply is at its end."""
        ...

    async def drain(self) -> None:
        """Wait for what may still come after the content."""
        ...

    def release(self) -> None:
        """Let go of it, and end the call there if it is not done."""
        ...


class Backend(Protocol):
    """The way to one endpoint."""

    @property
    def connections(self) -> int:
        """Open connections, and those being opened."""
        ...

    def open(self, outgoing: Outgoing) -> Reply:
        """Send a call; the reply is open inside the block."""
        ...

    async def get(self, path: str, timeout_s: float, limit_bytes: int) -> tuple[int, bytes]:
        """Status and body of a GET below a worker's root. Raises AttemptFailed."""
        ...

    async def post(self, path: str, body: bytes, timeout_s: float, limit_bytes: int) -> tuple[int, bytes]:
        """Status and body of a POST there. Raises AttemptFailed."""
        ...


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding strangers' bytes with msgspec raises: of text that is no UTF-8, and of what is nested too deeply, too."""


class AttemptFailed(Exception):
    """One attempt at one endpoint brought no whole reply."""

    sort: ClassVar[Sort] = FAILURES["AttemptFailed"]
    """What that means. Each class has its own row in the table."""
    crashed = False
    """Whether a worker that was well when the call came seems to have gone down under it. Told by the fleet."""

    def __init_subclass__(cls) -> None:
        cls.sort = FAILURES[cls.__name__]

    @property
    def code(self) -> str:
        return self.sort.code


class LaneFull(AttemptFailed):
    pass


class Unsupported(AttemptFailed):
    pass


class ConnectFailed(AttemptFailed):
    pass


class ConnectTimeout(ConnectFailed):
    pass


class TlsFailed(ConnectFailed):
    pass


class ReplyBroken(AttemptFailed):
    pass


class StreamTruncated(ReplyBroken):
    pass


class EndpointLeaves(ReplyBroken):
    pass


class ReplyLate(AttemptFailed):
    pass


class FirstByteTimeout(ReplyLate):
    pass


class SilenceTimeout(ReplyLate):
    pass


class RunsSlowly(ReplyLate):
    pass


class CallTimeout(ReplyLate):
    def __init__(self) -> None:
        super().__init__("not done within the call's time")


class ReplyMalformed(AttemptFailed):
    pass


class ReplyOversized(ReplyMalformed):
    pass


class Refused(AttemptFailed):
    """A whole reply that says no."""

    def __init__(self, message: str, status: int = 500, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.of_key = False
        """Whether it was only the key that was refused, which is counted with the key: the endpoint is well."""


class Overloaded(Refused):
    pass


class Leaving(Overloaded):
    pass


class RateLimited(Overloaded):
    pass


class CallTooLarge(Refused):
    pass


class Misconfigured(Refused):
    pass


class ModelMissing(Misconfigured):
    pass


class KeyRefused(Misconfigured):
    pass


class ServerFault(Refused):
    pass


class EngineDead(ServerFault):
    pass


class OutOfMemory(ServerFault):
    pass


class CallRejected(Exception):
    """The endpoint says that the call itself is wrong (a 4xx of the client's own); no other endpoint is asked."""

    sort = FAILURES["CallRejected"]

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def message(self) -> str:
        return str(self)


class Unable(AttemptFailed):
    """A 4xx that is this endpoint's own: another one may take the call. Where none does, it is the client's after all."""

    def __init__(self, rejected: CallRejected) -> None:
        super().__init__(rejected.message)
        self.rejected = rejected


class ContextTooShort(Unable):
    def __init__(self, rejected: CallRejected, context_tokens: int | None) -> None:
        """`context_tokens` is how many it takes, where it said so."""
        super().__init__(rejected)
        self.context_tokens = context_tokens


def conceal(secrets: Iterable[str], error: BaseException) -> None:
    """Take secrets out of what an error says: endpoints may repeat the key that they were sent."""
    if isinstance(error, Unable):
        conceal(secrets, error.rejected)
    for secret in secrets:
        error.args = tuple(
            part.replace(secret, "***") if isinstance(part, str) else part for part in error.args
        )
