"""What every backend promises, and every way in which an attempt can fail.

The failures form one tree, so that the edge translates them once and the fleet draws its conclusions once:

    AttemptFailed                   one attempt at one endpoint brought no whole reply
    ├── LaneFull                    no free connection to the endpoint
    ├── Unsupported                 the endpoint cannot be asked this; another one may
    ├── ConnectFailed               no connection could be made
    │   ├── ConnectTimeout
    │   └── TlsFailed               certificate or handshake
    ├── ReplyBroken                 the connection ended before the reply did
    │   ├── StreamTruncated         the stream ended without a finish_reason on every choice
    │   └── EndpointLeaves          it has to leave, and the call was taken from it before it did
    ├── ReplyLate
    │   ├── FirstByteTimeout        nothing came
    │   ├── SilenceTimeout          it began, then fell silent
    │   └── CallTimeout             the whole call took too long
    ├── ReplyMalformed              not HTTP, not JSON, not server-sent events
    │   └── ReplyOversized
    └── Refused                     a whole reply that says no
        ├── Overloaded              503: come back later
        │   └── RateLimited         429: our rate there, or our key's, is used up
        ├── CallTooLarge            more than our rate there would ever allow
        ├── Misconfigured           404, 405: the endpoint does not take what it was configured for
        │   └── KeyRefused          401, 402, 403: it does not take our key, or our account has no money left
        └── ServerFault             any other 5xx, or an error event in a stream

    CallRejected                    the endpoint says that the call itself is wrong; no other endpoint is asked
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from backends.worker import Outgoing
    from routing.ejection import FailureKind


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


class AttemptFailed(Exception):
    """One attempt at one endpoint brought no whole reply."""

    code = "upstream_failed"
    ejects: FailureKind | None = "server_error"
    """What this failure says of the endpoint's health; None: nothing."""
    wastes: Literal["broken", "late", "failed"] | None = "failed"
    """As what the work counts that was done in vain; None: none was done."""


class LaneFull(AttemptFailed):
    wastes = None
    code = "upstream_busy"
    ejects = None


class Unsupported(AttemptFailed):
    wastes = None
    code = "upstream_unsupported"
    ejects = None


class ConnectFailed(AttemptFailed):
    code = "upstream_connect_failed"
    ejects = "connect"
    wastes = None


class ConnectTimeout(ConnectFailed):
    code = "upstream_connect_timeout"


class TlsFailed(ConnectFailed):
    code = "upstream_tls_failed"


class ReplyBroken(AttemptFailed):
    code = "upstream_broken"
    ejects: FailureKind | None = "reset"
    wastes = "broken"


class StreamTruncated(ReplyBroken):
    code = "upstream_truncated"
    ejects = "server_error"


class EndpointLeaves(ReplyBroken):
    ejects = None  # it has said so


class ReplyLate(AttemptFailed):
    code = "upstream_timeout"
    ejects: FailureKind | None = "timeout"
    wastes = "late"


class FirstByteTimeout(ReplyLate):
    code = "upstream_first_byte_timeout"


class SilenceTimeout(ReplyLate):
    code = "upstream_silence_timeout"


class CallTimeout(ReplyLate):
    code = "call_timeout"
    ejects = None  # a long answer is no sign of a sick worker

    def __init__(self) -> None:
        super().__init__("not done within the call's time")


class ReplyMalformed(AttemptFailed):
    code = "upstream_malformed"


class ReplyOversized(ReplyMalformed):
    code = "upstream_oversized"
    ejects = None


class Refused(AttemptFailed):
    """A whole reply that says no."""

    def __init__(self, message: str, status: int = 500, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.of_key = False
        """Whether it was only the key that was refused, which is counted with the key: the endpoint is well."""


class Overloaded(Refused):
    code = "upstream_busy"
    wastes = None
    ejects = None  # it cools down for as long as it asked instead


class RateLimited(Overloaded):
    pass


class CallTooLarge(Refused):
    code = "upstream_busy"
    wastes = None
    ejects = None  # smaller calls are served


class Misconfigured(Refused):
    code = "upstream_misconfigured"
    wastes = None


class KeyRefused(Misconfigured):
    pass


class ServerFault(Refused):
    code = "upstream_error"


class CallRejected(Exception):
    """The endpoint says that the call itself is wrong (a 4xx of the client's own); no other endpoint is asked."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def message(self) -> str:
        return str(self)


def conceal(secrets: Iterable[str], error: BaseException) -> None:
    """Take secrets out of what an error says: endpoints may repeat the key that they were sent."""
    for secret in secrets:
        error.args = tuple(
            part.replace(secret, "***") if isinstance(part, str) else part for part in error.args
        )
