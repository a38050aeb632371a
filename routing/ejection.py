"""When an endpoint that fails is left alone, and when it gets another chance.

Calls themselves are the best probe of an endpoint, so failures of calls take it out (passive ejection) and time brings
it back, later each time it fails again. An active health check can take it out as well, but its success is no promise:
a worker may answer /health while every completion fails. One object for each endpoint; clock and dice are arguments.
"""

from __future__ import annotations

from typing import Literal

FailureKind = Literal["connect", "reset", "timeout", "server_error"]
"""What a failed attempt says of an endpoint. connect: no connection. reset: closed before any byte of the reply.
timeout: no reply in time. server_error: a 5xx, or a reply that breaks off."""

AT_ONCE: frozenset[FailureKind] = frozenset({"connect", "reset"})
"""Kinds of which one is enough: nobody is there. The others can lie in the call itself."""

FAILURES_IN_A_ROW = 2
"""How many failures eject: one may be one bad call, two in a row rarely are."""

FIRST_EJECTION_S = 1.0
"""Seconds: a worker that only restarted its server is back about then, and one call more costs a failover."""

LONGEST_EJECTION_S = 60.0
"""Seconds, before jitter; also the longest pause granted to a Retry-After."""

JITTER = 0.2
"""Ejections last up to this share shorter or longer, so that replicas do not come back to a worker all at once."""

QUIET_S = 300.0
"""Seconds without a failure after which past ejections are forgotten."""

SUCCESSES_TO_FORGET = 10
"""Successes in a row that make past ejections forgotten as well."""

NEXT_CHECK_S = 5.0
"""Seconds to the next active check, where the caller does not say."""

_EJECTED: dict[FailureKind, str] = {
    "connect": "ejected: it could not be reached",
    "reset": "ejected: it closed the connection",
    "timeout": "ejected: it did not answer in time",
    "server_error": "ejected: it answered with errors",
}


class Ejection:
    """The health of one endpoint as learned from calls and checks.

    Serving, until failures eject it for a while; then half open: calls are sent, one failure ejects it for twice as
    long, one success closes it. Beside that it may be cooling down (it asked for a pause) or unhealthy (its check
    failed); it is available when none of the three holds.
    """

    __slots__ = (
        "_check_reason",
        "_cool_until_s",
        "_doublings",
        "_ejected_by",
        "_ejected_until_s",
        "_failures",
        "_half_open",
        "_last_failure_s",
        "_next_check_s",
        "_successes",
        "cool_downs",
        "ejections",
        "failed_checks",
    )

    def __init__(self) -> None:
        self._failures = 0
        """In a row."""
        self._successes = 0
        """In a row."""
        self._doublings = 0
        self._half_open = False
        self._ejected_by: FailureKind = "connect"
        self._ejected_until_s = self._cool_until_s = self._last_failure_s = float("-inf")
        self._check_reason: str | None = None
        self._next_check_s = 0.0
        self.ejections = 0
        """So far, for metrics; likewise the next two."""
        self.cool_downs = 0
        self.failed_checks = 0

    def failed(self, now_s: float, kind: FailureKind, roll: float) -> None:
        """A call failed there before any byte of its reply. `roll`, uniform in [0, 1), is the jitter."""
        if now_s < self._ejected_until_s:
            # Calls sent before the ejection fail after it, as one event: they neither extend nor double it.
            return
        if now_s - max(self._last_failure_s, self._ejected_until_s) >= QUIET_S:
            self._doublings = self._failures = 0
            self._half_open = False
        self._last_failure_s = now_s
        self._successes = 0
        self._failures += 1
        if self._half_open or kind in AT_ONCE or self._failures >= FAILURES_IN_A_ROW:
            self._eject(now_s, kind, roll)

    def succeeded(self, now_s: float) -> None:
        """A call was answered there."""
        if now_s < self._ejected_until_s:
            # It was sent before the ejection and tells nothing of what came after.
            return
        self._failures = 0
        self._half_open = False
        self._successes += 1
        if self._successes >= SUCCESSES_TO_FORGET:
            self._doublings = 0

    def cool_down(self, now_s: float, seconds: float) -> None:
        """It asked for a pause: 429 or 503 with Retry-After. That is no failure, and it is never longer than a minute."""
        self.cool_downs += 1
        self._cool_until_s = max(self._cool_until_s, now_s + min(max(seconds, 0.0), LONGEST_EJECTION_S))

    def health(self, now_s: float, ok: bool, detail: str = "", next_check_s: float = NEXT_CHECK_S) -> None:  # noqa: FBT001 - the outcome of a check is the one thing this is told
        """An active check ended; the next comes in `next_check_s`."""
        self._next_check_s = now_s + next_check_s
        if not ok:
            self.failed_checks += 1
            self._check_reason = f"health check failed: {detail}" if detail else "health check failed"
            return
        self._check_reason = None
        if self._ejected_by == "connect":
            # Somebody is there again, which is all that a refused connection had put in doubt.
            self._ejected_until_s = min(self._ejected_until_s, now_s)

    def state(self, now_s: float) -> tuple[str | None, float | None]:
        """Why it gets no call now, and in how many seconds it may again; (None, None) where it gets calls."""
        reason: str | None = None
        wait_s = 0.0
        if now_s < self._cool_until_s:
            reason, wait_s = "asked for a pause", self._cool_until_s - now_s
        if now_s < self._ejected_until_s:
            reason = _EJECTED[self._ejected_by]
            wait_s = max(wait_s, self._ejected_until_s - now_s)
        if self._check_reason is not None:
            reason = self._check_reason
            wait_s = max(wait_s, self._next_check_s - now_s)
        return (None, None) if reason is None else (reason, wait_s)

    def out(self, now_s: float) -> bool:
        """Whether it has failed, calls or checks, rather than only asked for a pause."""
        return now_s < self._ejected_until_s or self._check_reason is not None

    def _eject(self, now_s: float, kind: FailureKind, roll: float) -> None:
        seconds = min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2.0**self._doublings)
        self._ejected_until_s = now_s + seconds * (1.0 - JITTER + 2.0 * JITTER * roll)
        self._ejected_by = kind
        self._doublings = min(self._doublings + 1, 10)
        self._half_open = True
        self.ejections += 1
