"""The spans of time that budgets are for, and their accounts by name: `project:acme/web/usd/month/2026-11-01`,
`tenant:acme/usd/total/ever`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Self, cast

from msgspec import Struct

if TYPE_CHECKING:
    from gateway.policy import Period

_EVER = "ever"
_NEVER_S = 253_402_300_800.0
"""The year 10000."""


class Window(Struct, frozen=True):
    """A budget of one subject in one span of time."""

    subject: str
    period: Period
    since_s: float
    until_s: float

    @classmethod
    def at(cls, subject: str, period: Period, now_s: float) -> Self:
        """The one that `now_s` falls into."""
        if period == "total":
            return cls(subject, period, 0.0, _NEVER_S)
        # Whole seconds: what is rounded to microseconds may fall into the next day.
        day = datetime.fromtimestamp(math.floor(now_s), UTC).replace(hour=0, minute=0, second=0)
        match period:
            case "day":
                began, ends = day, day + timedelta(days=1)
            case "week":
                began = day - timedelta(days=day.weekday())
                ends = began + timedelta(days=7)
            case "month":
                began = day.replace(day=1)
                ends = (began + timedelta(days=31)).replace(day=1)
        return cls(subject, period, began.timestamp(), ends.timestamp())

    @classmethod
    def named(cls, account: str) -> Self:
        """That of the account with this name."""
        subject, _, period, began = account.rsplit("/", 3)
        at_s = 0.0 if began == _EVER else datetime.fromisoformat(began).replace(tzinfo=UTC).timestamp()
        return cls.at(subject, cast("Period", period), at_s)

    @property
    def account(self) -> str:
        began = (
            _EVER if self.period == "total" else datetime.fromtimestamp(self.since_s, UTC).date().isoformat()
        )
        return f"{self.subject}/usd/{self.period}/{began}"
