"""What each failure of an attempt means, in one table: whose fault it is, what becomes of the call, what of the endpoint.

The classes in backends/base.py take their row by their name; none can be defined without one. Nothing else decides: the
fleet ejects by it, the loop over attempts goes on or stops by it, the meter knows from it whether work was done, and the
README shows it. Which words of vLLM's are which failure stands in backends/refusal.py.

Whose fault:

    call      the request itself: every endpoint would say the same, so the client is told
    endpoint  this one only: it is down, sick, or set up so that it cannot do this
    model     its deployment there
    account   our key, our rate or our money with a provider
    gateway   a limit of ours

What becomes of the call:

    return    it is over, and the client is told
    next      the next endpoint of the plan is asked; where there is none, the client is told
    room      the same, and where everybody says so, the call waits for room and asks again
    able      the same, but those that would say so as well are passed over; where all have, the client gets it as its own
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from routing.ejection import FailureKind

Whose = Literal["call", "endpoint", "model", "account", "gateway"]
Then = Literal["return", "next", "room", "able"]
Wasted = Literal["broken", "late", "failed"]


class Sort(Struct, frozen=True):
    """One row."""

    shows: str
    """How it shows itself."""
    whose: Whose
    then: Then
    code: str
    """What the client is told where it is the last word; see gateway/errors.py."""
    leaves: FailureKind | Literal["pause"] | None = None
    """What the endpoint is left alone for, and how, by routing/ejection.py; `pause`: for as long as it asks."""
    wastes: Wasted | None = None
    """What work done in vain counts as. None: none was done, so it does not count towards `limits.attempts` either."""
    crash: bool = False
    """Whether a worker that was well seems to have gone down under the call: see routing/poison.py."""


FAILURES: dict[str, Sort] = {
    "LaneFull": Sort("no free connection to it", "gateway", "room", "upstream_busy", "pause"),
    "ConnectFailed": Sort("connection refused", "endpoint", "next", "upstream_connect_failed", "connect"),
    "ConnectTimeout": Sort("none within `connect_s`", "endpoint", "next", "upstream_connect_timeout", "connect_timeout"),
    "TlsFailed": Sort("certificate or handshake", "endpoint", "next", "upstream_tls_failed", "connect"),
    "ReplyBroken": Sort("reset, or end within the reply", "endpoint", "next", "upstream_broken", "reset", "broken", crash=True),
    "StreamTruncated": Sort("no finish_reason, `[DONE]` or not", "endpoint", "next", "upstream_truncated", "server_error", "broken"),
    "EndpointLeaves": Sort("cut off by us: it has said that it leaves", "endpoint", "next", "upstream_broken", None, "broken"),
    "FirstByteTimeout": Sort("nothing for `first_byte_s`", "endpoint", "next", "upstream_first_byte_timeout", "timeout", "late"),
    "SilenceTimeout": Sort("silence for `silence_s`", "endpoint", "next", "upstream_silence_timeout", "timeout", "late"),
    "RunsSlowly": Sort("taken from it by us: far below its speed", "endpoint", "next", "upstream_timeout", None, "late"),
    "ReplyLate": Sort("a timeout of litellm's", "endpoint", "next", "upstream_timeout", "timeout", "late"),
    "CallTimeout": Sort("not done within `total_s`", "call", "return", "call_timeout", None, "late"),
    "ReplyMalformed": Sort("no HTTP, JSON or events", "endpoint", "next", "upstream_malformed", "server_error", "failed"),
    "ReplyOversized": Sort("beyond `reply_bytes`, `event_bytes`", "call", "next", "upstream_oversized", None, "failed"),
    "EngineDead": Sort("`EngineCore encountered an issue`", "endpoint", "next", "upstream_error", "engine_dead", "failed", crash=True),
    "OutOfMemory": Sort("5xx or event: `out of memory`", "endpoint", "next", "upstream_error", "server_error", "failed", crash=True),
    "ServerFault": Sort("other 5xx, 408, 425, error event, `abort`", "endpoint", "next", "upstream_error", "server_error", "failed"),
    "Overloaded": Sort("503, such as vLLM's full queue", "endpoint", "room", "upstream_busy", "pause"),
    "Leaving": Sort("`cannot schedule new futures after shutdown`", "endpoint", "room", "upstream_busy", "pause"),
    "RateLimited": Sort("429", "account", "room", "upstream_busy", "pause"),
    "CallTooLarge": Sort("more than our rate ever allows", "account", "next", "upstream_busy"),
    "KeyRefused": Sort("401, 402, 403: key, account", "account", "next", "upstream_misconfigured", "server_error"),
    "ModelMissing": Sort("404 that names the model", "model", "next", "upstream_misconfigured", "model_missing"),
    "Misconfigured": Sort("405, 3xx, 501: no such API", "endpoint", "next", "upstream_misconfigured", "server_error"),
    "ContextTooShort": Sort("400: `maximum context length is ...`", "endpoint", "able", "invalid_request"),
    "Unable": Sort("400 that names a flag: `--tool-call-parser`", "endpoint", "able", "invalid_request"),
    "Unsupported": Sort("litellm cannot send it there", "endpoint", "next", "upstream_unsupported"),
    "CallRejected": Sort("any other 4xx", "call", "return", "invalid_request"),
    "Refused": Sort("any other reply that says no", "endpoint", "next", "upstream_failed", "server_error", "failed"),
    "AttemptFailed": Sort("anything else", "endpoint", "next", "upstream_failed", "server_error", "failed"),
}  # fmt: skip
"""By the name of the class. The README's table is made of it."""
