"""The keys that an endpoint takes, used in turn.

A provider counts rates, quotas and rights by key, so what it refuses for one key says nothing of the others: a key
whose rate is used up pauses for as long as was asked, one that is not accepted or has no money left is set aside for
longer, and the endpoint serves on as long as one is left. Time is an argument.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backends.base import KeyRefused, RateLimited, Refused, conceal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 600.0
"""Providers ask for up to a day; limits are raised and days begin sooner, and to look again costs one refused try."""
SET_ASIDE_S = 300.0
"""For a key that is not accepted or has no money left: a person has to act first. Twice as long each time in a row."""
LONGEST_SET_ASIDE_S = 3600.0
DOUBTFUL_STATUS = 403
"""It may be about the call (a web firewall, a content filter) rather than the key: only two in a row count, ..."""
DOUBTFUL_S = 5.0
"""...and at first for no longer than this, so that a tenant who asks what is filtered takes no key from the others."""
LONGEST_TRIES = 3
"""Keys tried for one call before another endpoint is: each takes a round trip."""
_LEAST_SECRET = 8
"""Characters of a key. What is shorter is a placeholder, such as "none", and may well be a word in a message."""
_LAST_SHOWN = 4
_LEAST_SHOWN = 16
"""Characters of a key of which the last four may be shown: of a short one they would be too much."""


class Key:
    __slots__ = (
        "_secret",
        "doubts",
        "line",
        "paused_until_s",
        "set_aside_until_s",
        "shown",
        "times_set_aside",
    )

    def __init__(self, secret: str, number: int) -> None:
        self._secret = secret
        self.line = f"authorization: Bearer {secret}\r\n".encode()
        """As a header."""
        self.shown = f"key {number}" + (
            f" (...{secret[-_LAST_SHOWN:]})" if len(secret) >= _LEAST_SHOWN else ""
        )
        """For logs."""
        self.paused_until_s = self.set_aside_until_s = float("-inf")
        self.times_set_aside = self.doubts = 0
        """In a row."""

    def back_s(self) -> float:
        """When it can be used, on the caller's clock."""
        return max(self.paused_until_s, self.set_aside_until_s)


class Keys:
    def __init__(self, secrets: Sequence[str], endpoint: str) -> None:
        self._endpoint = endpoint
        self._keys = [Key(secret, number) for number, secret in enumerate(secrets, start=1)]
        self._next = 0
        self.secrets = tuple(secret for secret in secrets if len(secret) >= _LEAST_SECRET)
        """To be taken out of whatever the endpoint says."""

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def first_line(self) -> bytes:
        """A header with a key for what is not a call."""
        return self._keys[0].line if self._keys else b""

    def take(self, now_s: float, tried: Collection[Key] = ()) -> Key | None:
        """The next key in turn that can be used now and has not been tried, or None."""
        keys = self._keys
        for step in range(len(keys)):
            place = (self._next + step) % len(keys)
            key = keys[place]
            if key.back_s() <= now_s and key not in tried:
                self._next = place + 1
                return key
        return None

    def answered(self, key: Key) -> None:
        """The endpoint has answered a call with it."""
        key.times_set_aside = key.doubts = 0

    def refused(self, key: Key, failure: Refused, now_s: float) -> None:
        """The endpoint has refused it: for its rate, or for good as far as can be seen."""
        if now_s < key.set_aside_until_s:
            return  # calls sent before fail after, as one event
        conceal(self.secrets, failure)
        if isinstance(failure, RateLimited):
            pause_s = min(failure.retry_after_s or 0.0, LONGEST_PAUSE_S)
            key.paused_until_s = max(key.paused_until_s, now_s + pause_s)
            log.info("%s: %s pauses for %.3g s: %s", self._endpoint, key.shown, pause_s, failure)
            return
        key.doubts += 1
        doubtful = failure.status == DOUBTFUL_STATUS
        if doubtful and key.doubts == 1:
            log.info("%s: %s was refused once: %s", self._endpoint, key.shown, failure)
            return
        seconds = min(
            LONGEST_SET_ASIDE_S, (DOUBTFUL_S if doubtful else SET_ASIDE_S) * 2.0**key.times_set_aside
        )
        key.times_set_aside = min(key.times_set_aside + 1, 10)
        key.set_aside_until_s = now_s + seconds
        log.warning("%s: %s is set aside for %.0f s: %s", self._endpoint, key.shown, seconds, failure)

    def failure(self, now_s: float) -> Refused:
        """What a call fails with that has found no key to be used. It tells a tenant nothing of our account."""
        wait_s = max(0.0, min(key.back_s() for key in self._keys) - now_s)
        failure: Refused
        if all(key.set_aside_until_s > now_s or key.doubts for key in self._keys):
            failure = KeyRefused("the endpoint takes none of our keys", 401)
        else:
            failure = RateLimited("the endpoint limits the rate of our keys", 429, wait_s or None)
        failure.of_key = True
        return failure

    def state(self, now_s: float) -> tuple[str | None, float | None]:
        """Why no key can be used now, and in how many seconds the first can; (None, None) where one can, or needs none."""
        if not self._keys:
            return None, None
        back_s = min(key.back_s() for key in self._keys)
        if back_s <= now_s:
            return None, None
        if all(key.set_aside_until_s > now_s for key in self._keys):
            return "takes none of our keys", back_s - now_s
        return "limits the rate of our keys", back_s - now_s

    def counts(self, now_s: float) -> dict[str, int]:
        """How many keys are in each state, for metrics."""
        counts = {"usable": 0, "paused": 0, "set_aside": 0}
        for key in self._keys:
            if key.set_aside_until_s > now_s:
                counts["set_aside"] += 1
            else:
                counts["paused" if key.paused_until_s > now_s else "usable"] += 1
        return counts
