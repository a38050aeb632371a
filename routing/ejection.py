"""When an endpoint that fails is left alone, and when it gets another chance.

Calls themselves are the best probe of an endpoint, so failures of calls take it out (passive ejection) and time brings
it back, later each time it fails again. An active health check can take it out as well, but its success is no promise:
a worker may answer /health while every completion fails. One object for each endpoint; clock and dice are arguments.

One that joins is on probation first: it gets calls once a probe has succeeded, and then one failure takes it out. One
that goes and comes back again and again is kept out for longer each time.

An ejection is there to choose better endpoints. Where none is left it would only make a failure of a pause: a machine that
stands still for a moment makes all workers look late at once. So one that was ejected for what may have been a moment's is
soon asked again where nobody else could serve a call, as a last resort.
"""

from __future__ import annotations

from typing import Literal

from routing.trial import TRIAL_RETRY_S, Trial

FailureKind = Literal[
    "connect", "connect_timeout", "reset", "engine_dead", "model_missing", "timeout", "server_error"
]
"""What a failed attempt says of an endpoint; routing/failure.py says which failure says what. connect: no connection.
connect_timeout: none in time. reset: closed before the end of its reply. engine_dead: it says that it is going down. model_missing: it has another one.
timeout: no reply in time. server_error: a 5xx, or a reply that breaks off."""

AT_ONCE: frozenset[FailureKind] = frozenset(
    {"connect", "connect_timeout", "reset", "engine_dead", "model_missing"}
)
"""Kinds of which one is enough: nobody is there, or not the model. The others can lie in the call itself."""

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

FALLS_TO_FLAP = 2
"""How often it has to go, each time within QUIET_S of the last, to be kept out when it is back."""

LONGEST_PROBE_PAUSE_S = 10.0
"""Seconds, before jitter, between two probes of one that is on probation: a server that still loads its model is soon found
to be ready, and a probe costs next to nothing."""

BELIEVED_S = 5.0
"""Seconds for which the word of another gateway is taken that an endpoint has failed."""

NEXT_CHECK_S = 5.0
"""Seconds to the next active check, where the caller does not say."""

PASSING: frozenset[FailureKind] = frozenset({"connect_timeout", "reset", "timeout", "server_error"})
"""Kinds that may be a moment's. Where nobody listens, the engine is dead or the model is another, that takes longer."""

RESORT_SHARE = 0.25
"""Share of its ejection after which such an endpoint is asked where nobody else is left."""

HOPE_S = 10.0
"""For so long after it began to fail, without an answer since, that it fails may be a moment's."""

_EJECTED: dict[FailureKind, str] = {
    "connect": "ejected: it could not be reached",
    "connect_timeout": "ejected: it could not be reached",
    "reset": "ejected: it closed the connection",
    "engine_dead": "ejected: its engine crashed",
    "model_missing": "ejected: it does not have the model",
    "timeout": "ejected: it did not answer in time",
    "server_error": "ejected: it answered with errors",
}


_UNHEARD: frozenset[FailureKind] = frozenset({"connect", "connect_timeout", "timeout", "engine_dead"})

_FLAPS = "kept out: it comes and goes"


class Ejection:
    """The health of one endpoint as learned from calls and checks.

    Serving, until failures eject it for a while; then half open: calls are sent, one failure ejects it for twice as
    long, one success closes it. Beside that it may be cooling down (it asked for a pause), unhealthy (its check failed)
    or on probation (it has joined, and no probe has succeeded yet); it is available when none of the four holds.
    """

    __slots__ = (
        "_answered_s",
        "_back_s",
        "_check_reason",
        "_cool_until_s",
        "_doublings",
        "_ejected_by",
        "_ejected_s",
        "_ejected_until_s",
        "_failing_since_s",
        "_failures",
        "_falls",
        "_flaps",
        "_half_open",
        "_last_failure_s",
        "_last_fall_s",
        "_next_check_s",
        "_next_probe_s",
        "_probation",
        "_probes",
        "_successes",
        "_told",
        "cool_downs",
        "ejections",
        "failed_checks",
        "trial",
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
        self._ejected_s = float("-inf")
        """When it was ejected last."""
        self._failing_since_s: float | None = None
        """When it was ejected first after its last answer."""
        self._falls = 0
        """Times that it went, each soon after the one before."""
        self._flaps = False
        """Whether it is for these that it is ejected."""
        self._told = False
        """Whether it is for what another gateway says that it is ejected."""
        self._answered_s = self._last_fall_s = self._back_s = float("-inf")
        self._probation: str | None = None
        self._probes = 0
        self._check_reason: str | None = None
        self._next_check_s = self._next_probe_s = 0.0
        self.trial: Trial | None = None
        """From an ejection that may be a moment's until it answers, or gets calls like any other."""
        self.ejections = 0
        """So far, for metrics; likewise the next two."""
        self.cool_downs = 0
        self.failed_checks = 0

    def failed(self, now_s: float, kind: FailureKind, roll: float, sent_s: float = float("-inf")) -> None:
        """A call failed there before any byte of its reply. `roll`, uniform in [0, 1), is the jitter."""
        if now_s < self._ejected_until_s:
            # Calls sent before the ejection fail after it, as one event: they neither extend nor double it.
            if self._may_tell(sent_s):
                self._eject_anew(now_s, kind, roll)
            return
        if now_s - max(self._last_failure_s, self._ejected_until_s, self._back_s) >= QUIET_S:
            self._doublings = self._failures = 0
            self._half_open = False
            self._failing_since_s = None
        self._last_failure_s = now_s
        self._successes = 0
        self._failures += 1
        if self._half_open or kind in AT_ONCE or self._failures >= FAILURES_IN_A_ROW:
            self._eject(now_s, kind, roll)

    def ejected(self, now_s: float) -> tuple[float, FailureKind | None]:
        """For how long it is ejected for what calls of ours met with, and for what."""
        left_s = self._ejected_until_s - now_s
        if left_s <= 0.0 or self._flaps or self._told:
            return 0.0, None
        return left_s, self._ejected_by

    def warned(self, now_s: float, kind: FailureKind, seconds: float) -> bool:
        """Another gateway has ejected it for so long. That is believed for a moment, unless a call was answered here just now;
        whether it is believed now, and was not before. It is never told to others, or it would go round for ever.
        """
        if now_s < self._ejected_until_s or now_s - self._answered_s < BELIEVED_S:
            return False
        self._ejected_until_s = now_s + min(max(seconds, 0.0), BELIEVED_S)
        self._ejected_by, self._flaps, self._told, self._half_open = kind, False, True, True
        self._begins_to_fail(now_s)
        return True

    def succeeded(self, now_s: float, sent_s: float = float("-inf")) -> None:
        """A call was answered there."""
        if not self.answers(now_s, sent_s):
            return
        self._failures = 0
        self._half_open = False
        self._answered_s = now_s
        self._successes += 1
        if self._successes >= SUCCESSES_TO_FORGET:
            self._doublings = 0

    def answers(self, now_s: float, sent_s: float) -> bool:
        """It answers a call that was sent then, or has begun to; whether that tells anything."""
        if now_s < self._ejected_until_s:
            if not self._may_tell(sent_s):
                # It was sent before the ejection and tells nothing of what came after.
                return False
            self._ejected_until_s = now_s
        self._failing_since_s = self.trial = None
        return True

    @property
    def well(self) -> bool:
        """Whether nothing has gone wrong since it last answered a call."""
        return not (self._failures or self._half_open)

    def pardon(self, now_s: float) -> None:
        """What it was last ejected for was not its fault: as if that had not been. Calls will tell whether it is there."""
        self._ejected_until_s = min(self._ejected_until_s, now_s)
        self._doublings = max(0, self._doublings - 1)
        self._failures = self._falls = 0
        self._half_open = False
        self._failing_since_s = self.trial = None

    def cool_down(self, now_s: float, seconds: float) -> None:
        """It asked for a pause: 429 or 503 with Retry-After. That is no failure, and it is never longer than a minute."""
        self.cool_downs += 1
        self._cool_until_s = max(self._cool_until_s, now_s + min(max(seconds, 0.0), LONGEST_EJECTION_S))

    def join(self, now_s: float) -> None:
        """It joins, perhaps again: no calls before a probe has succeeded."""
        self._probation, self._probes, self._next_probe_s = "it is being probed", 0, now_s
        self._check_reason = None

    def probed(self, now_s: float, failure: str | None, roll: float) -> float:
        """A probe ended, with this failure or none; in how many seconds the next is due if it failed."""
        if failure is None:
            self._probation = None
            self._returned(now_s, roll)
            return 0.0
        pause_s = _jittered(min(LONGEST_PROBE_PAUSE_S, FIRST_EJECTION_S * 2.0**self._probes), roll)
        self._probes = min(self._probes + 1, 10)
        self._probation, self._next_probe_s = f"probe failed: {failure}", now_s + pause_s
        return pause_s

    def fell(self, now_s: float) -> None:
        """It has gone without a word: its check fails, or its lease was not renewed."""
        if now_s - self._last_fall_s >= QUIET_S:
            self._falls = 0
        self._falls = min(self._falls + 1, 10)
        self._last_fall_s = now_s

    def health(
        self,
        now_s: float,
        ok: bool,  # noqa: FBT001 - the outcome of a check is the one thing this is told
        detail: str = "",
        next_check_s: float = NEXT_CHECK_S,
        roll: float = 0.5,
    ) -> None:
        """An active check ended; the next comes in `next_check_s`."""
        self._next_check_s = now_s + next_check_s
        if not ok:
            self.failed_checks += 1
            if self._check_reason is None and self._probation is None:
                self.fell(now_s)
            self._check_reason = f"health check failed: {detail}" if detail else "health check failed"
            return
        if self._check_reason is not None:
            self._check_reason = None
            self._returned(now_s, roll)
        if self._ejected_by in ("connect", "connect_timeout") and not self._flaps:
            # Somebody is there again, which is all that a refused connection had put in doubt.
            self._ejected_until_s = min(self._ejected_until_s, now_s)

    def state(self, now_s: float) -> tuple[str | None, float | None]:
        """Why it gets no call now, and in how many seconds it may again; (None, None) where it gets calls."""
        reason: str | None = None
        wait_s = 0.0
        if now_s < self._cool_until_s:
            reason, wait_s = "asked for a pause", self._cool_until_s - now_s
        if now_s < self._ejected_until_s:
            reason = _FLAPS if self._flaps else _EJECTED[self._ejected_by]
            wait_s = max(wait_s, self._ejected_until_s - now_s)
        if self._check_reason is not None:
            reason = self._check_reason
            wait_s = max(wait_s, self._next_check_s - now_s)
        if self._probation is not None:
            reason = self._probation
            wait_s = max(wait_s, self._next_probe_s - now_s)
        if reason is None and self.trial is not None:
            return self._tried(self.trial, now_s)
        return (None, None) if reason is None else (reason, wait_s)

    def _tried(self, trial: Trial, now_s: float) -> tuple[str | None, float | None]:
        """The same for one that is back, and has not answered yet."""
        if trial.has_room(now_s):
            return None, None
        return "is back, and has not answered yet", TRIAL_RETRY_S

    def out(self, now_s: float) -> bool:
        """Whether it has failed, calls or checks, rather than only asked for a pause."""
        return now_s < self._ejected_until_s or self._check_reason is not None or self._probation is not None

    def is_passing(self, now_s: float) -> bool:
        """Whether it is ejected, and nothing else, and that may be a moment's: worth waiting for where nobody else is left."""
        return (
            now_s < self._ejected_until_s
            and self._ejected_by in PASSING
            and not self._flaps
            and self._check_reason is None
            and self._probation is None
            and now_s >= self._cool_until_s
            and self._failing_since_s is not None
            and now_s - self._failing_since_s < HOPE_S
        )

    def resort_s(self, now_s: float) -> float | None:
        """In how many seconds it may be asked where nobody else is left; None: not before it is back."""
        if self.trial is None or not self.is_passing(now_s):
            return None
        wait_s = self._ejected_s + RESORT_SHARE * (self._ejected_until_s - self._ejected_s) - now_s
        return max(0.0 if self.trial.has_room(now_s) else TRIAL_RETRY_S, wait_s)

    def unheard(self, now_s: float) -> bool:
        """Whether it is out for want of an answer: nobody need wait for what it was asked before."""
        ejected = now_s < self._ejected_until_s and not self._flaps and self._ejected_by in _UNHEARD
        return ejected or self._check_reason is not None

    @property
    def unhealthy(self) -> bool:
        """Whether its last check failed."""
        return self._check_reason is not None

    @property
    def on_probation(self) -> bool:
        """Whether it has joined and no probe has succeeded yet."""
        return self._probation is not None

    def _returned(self, now_s: float, roll: float) -> None:
        """It is there, and one failure is enough to doubt it. Having gone once is no reason to wait, having done so again is."""
        self._half_open = True
        self._back_s = now_s
        if self._falls < FALLS_TO_FLAP or now_s - self._last_fall_s >= QUIET_S:
            return
        seconds = _pause_s(self._falls - FALLS_TO_FLAP + 1)
        self._ejected_until_s = max(self._ejected_until_s, now_s + _jittered(seconds, roll))
        self._flaps, self._told = True, False

    def _may_tell(self, sent_s: float) -> bool:
        """Whether a call sent then tells how it is after the ejection: one that was asked as a last resort."""
        return sent_s > self._ejected_s and self._ejected_by in PASSING and not self._flaps

    def _begins_to_fail(self, now_s: float) -> None:
        self._ejected_s = now_s
        self.trial = Trial() if self._ejected_by in PASSING else None
        if self._failing_since_s is None:
            self._failing_since_s = now_s

    def _eject_anew(self, now_s: float, kind: FailureKind, roll: float) -> None:
        """It was asked before its time, and failed: that is no reason to leave it alone for twice as long."""
        self._doublings = max(0, self._doublings - 1)
        self._eject(now_s, kind, roll)

    def _eject(self, now_s: float, kind: FailureKind, roll: float) -> None:
        self._ejected_until_s = now_s + _jittered(_pause_s(self._doublings), roll)
        self._ejected_by = kind
        self._begins_to_fail(now_s)
        self._flaps = self._told = False
        self._doublings = min(self._doublings + 1, 10)
        self._half_open = True
        self.ejections += 1


def _pause_s(doublings: int) -> float:
    return min(LONGEST_EJECTION_S, FIRST_EJECTION_S * 2.0**doublings)


def _jittered(seconds: float, roll: float) -> float:
    return seconds * (1.0 - JITTER + 2.0 * JITTER * roll)
