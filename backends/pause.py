"""How long an endpoint asks to be left alone: the headers in which model servers and providers say so.

OpenAI, Azure and those who imitate them send `retry-after` (seconds or a date), `retry-after-ms`, and the times at which
their limits are whole again, as `6m0s`, `12ms` or plain seconds. The clock is the reply's own `date`, so that a clock
here that is wrong does no harm.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime

_NUMBER = re.compile(rb"[0-9]{1,9}(\.[0-9]{1,12})?")
_SPANS = re.compile(rb"(?:[0-9]{1,9}(?:\.[0-9]{1,12})?(?:h|ms|us|m|s))+")
_SPAN = re.compile(rb"([0-9.]+)(h|ms|us|m|s)")
_UNIT_S = {b"h": 3600.0, b"m": 60.0, b"s": 1.0, b"ms": 1e-3, b"us": 1e-6}
_LIMITS = (b"requests", b"tokens")
LEAST_RESET_S = 1.0
"""A limit that is whole again in a moment says nothing of the one that was met, which a refusal need not name."""

Headers = dict[bytes, bytes]


def asked_pause_s(headers: Headers) -> float | None:
    """Seconds until it may be asked again, or None where it does not say."""
    pause_s = _seconds(headers.get(b"retry-after-ms", b""))
    if pause_s is not None:
        return pause_s / 1000.0
    retry_after = headers.get(b"retry-after", b"").strip()
    pause_s = _seconds(retry_after)
    if pause_s is None and retry_after:
        pause_s = _until_s(retry_after, headers.get(b"date", b""))
    return _reset_s(headers) if pause_s is None else pause_s


def _reset_s(headers: Headers) -> float | None:
    """Until the limits that are used up are whole again; where none says that it is, until the first is."""
    resets = {limit: _span_s(headers.get(b"x-ratelimit-reset-" + limit, b"")) for limit in _LIMITS}
    known = {limit: reset_s for limit, reset_s in resets.items() if reset_s}  # Azure sends 0 for not known
    if not known:
        return None
    used_up = [s for limit, s in known.items() if headers.get(b"x-ratelimit-remaining-" + limit) == b"0"]
    return max(LEAST_RESET_S, max(used_up) if used_up else min(known.values()))


def _seconds(text: bytes) -> float | None:
    text = text.strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _span_s(text: bytes) -> float | None:
    """Seconds of a span as Go writes it, or plain seconds."""
    text = text.strip()
    if _SPANS.fullmatch(text):
        return sum(float(count) * _UNIT_S[unit] for count, unit in _SPAN.findall(text))
    return _seconds(text)


def _until_s(text: bytes, date: bytes) -> float | None:
    """Seconds from one HTTP date to another."""
    try:
        then, now = (parsedate_to_datetime(each.decode("latin-1")) for each in (text, date))
        return max(0.0, (then - now).total_seconds())
    except (ValueError, TypeError):  # no dates, or only one of them with a zone
        return None
