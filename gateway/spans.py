"""Spans of time as people write them: dates, date-times, or so far back from now."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class BadSpan(ValueError):
    """What cannot be understood; `end` is `from` or `to`."""

    def __init__(self, message: str, end: str) -> None:
        super().__init__(message)
        self.end = end


def span(since: str | None, until: str | None, now: datetime) -> tuple[datetime, datetime]:
    """From when, and until before when: the month of the end where no start is given, until now where no end is.

    Raises BadSpan.
    """
    end = now if until is None else _moment(until, now, "to")
    start = _month(end) if since is None else _moment(since, now, "from")
    if until is None and since is None:
        end = _month(start + timedelta(days=31))
    if until is not None and _is_date(until):
        end += timedelta(days=1)
    if start >= end:
        raise BadSpan(f"begins at {start:%Y-%m-%d %H:%M}, after its end", "from")
    return start, end


def span_ms(since: str | None, until: str | None) -> tuple[int, int]:
    """The same as seen now, in milliseconds since 1970."""
    start, end = span(since, until, datetime.now(UTC))
    return ms(start), ms(end)


def month_ms(month: str) -> tuple[int, int]:
    """The first moment of a month like 2026-01, and that of the next. Raises ValueError."""
    if not re.fullmatch(r"\d{4}-\d{2}", month):
        raise ValueError(f"{month!r} is no month such as 2026-01")
    start = datetime.fromisoformat(f"{month}-01T00:00+00:00")
    return ms(start), ms(_month(start + timedelta(days=31)))


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _month(moment: datetime) -> datetime:
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def _is_date(value: str) -> bool:
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is not None


def _moment(value: str, now: datetime, end: str) -> datetime:
    try:
        if relative := re.fullmatch(r"(\d+)([mhdw])", value):
            return now - timedelta(**{_SPANS[relative[2]]: int(relative[1])})
        if _is_date(value):
            return datetime.combine(date.fromisoformat(value), time.min, UTC)
        moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise BadSpan(
            f"{value!r} is neither a date (2026-01-31), a date-time (2026-01-31T12:00) nor a span (7d)", end
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
