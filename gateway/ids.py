"""Ids of calls: unique for ever, and in the order of time.

The order matters to the database: rows are then appended to the index of their primary key, where random ids would touch
a page of it each. Uniqueness comes from random bits drawn once a process and a counter, which is ten times cheaper than
random bits drawn once a call.
"""

from __future__ import annotations

import itertools
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def call_ids() -> Callable[[], str]:
    """A source of ids: 11 hex digits of milliseconds since 1970, 12 random ones of this source, 8 of a counter."""
    source, count = secrets.token_hex(6), itertools.count()

    def next_id() -> str:
        return f"{time.time_ns() // 1_000_000:011x}{source}{next(count):08x}"

    return next_id
