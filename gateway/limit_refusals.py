"""What a call is told of limits: the headers that OpenAI's clients read, and the errors by which it is refused.

Those clients try again after a 429, twice where nobody says otherwise, and when `retry-after-ms` or `retry-after` say so.
Where that cannot help, `x-should-retry` tells them not to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import ApiError
from gateway.output import usd
from gateway.windows import Window

if TYPE_CHECKING:
    from gateway.allowance import Slice

_NO_RETRY = (b"x-should-retry", b"false")
_LEAST_WAIT_NS = 10_000_000
_HELD_WAIT_NS = 1_000_000_000
"""When somebody else's call may have ended: nobody knows."""


def limit_lines(requests: Slice | None, tokens: Slice | None, now_ns: int) -> bytes:
    """Header lines for what is left of these."""
    lines = b""
    for each, what in ((requests, b"requests"), (tokens, b"tokens")):
        if each is not None:
            left, reset_ns = each.left_and_reset(now_ns)
            lines += b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
                what, each.limit, what, left, what, duration(reset_ns),
            )  # fmt: skip
    return lines


def duration(nanoseconds: int) -> bytes:
    """As OpenAI writes it: 6m0s, 1.5s, 120ms."""
    milliseconds = -(-nanoseconds // 1_000_000)
    if milliseconds < 1000:
        return b"%dms" % milliseconds if milliseconds else b"0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".").encode() + b"s"
    if hours:
        return b"%dh%dm%b" % (hours, minutes, seconds)
    return b"%dm%b" % (minutes, seconds) if minutes else seconds


def rate_exceeded(each: Slice, amount: int, now_ns: int) -> ApiError:
    subject, what = each.account.rsplit("/", 1)
    if amount > each.limit:
        message = f"Request too large: {subject} may use {each.limit} {what} per minute, and this call takes {amount}."
        return ApiError("rate_limit_exceeded", message, kind=what, headers=[_NO_RETRY])
    wait_ns = max(_LEAST_WAIT_NS, each.until_ns(amount, now_ns))
    message = (
        f"Rate limit reached: {subject} may use {each.limit} {what} per minute. This call takes {amount}, and "
        f"{each.left(now_ns)} are left. Please try again in {duration(wait_ns).decode()}."
    )
    return ApiError(
        "rate_limit_exceeded", message, kind=what, retry_after_s=wait_ns / 1e9, headers=_come_back(wait_ns)
    )


def too_many_at_once(each: Slice) -> ApiError:
    subject, _ = each.account.rsplit("/", 1)
    message = f"{subject} may have {each.limit} calls under way at once, and has."
    wait_ns = _HELD_WAIT_NS
    return ApiError(
        "rate_limit_exceeded",
        message,
        kind="requests",
        retry_after_s=wait_ns / 1e9,
        headers=_come_back(wait_ns),
    )


def budget_spent(each: Slice, amount: int, now_s: float) -> ApiError:
    """It is not there, and will not be before the next window."""
    window = Window.named(each.account)
    left = max(0, each.limit - each.spent - each.owed)
    message = (
        f"You exceeded your current quota: {window.subject} has a budget of {usd(each.limit)} USD {_PER[window.period]}, of which "
        f"{usd(left)} are left. This call may cost up to {usd(amount)}."
    )
    next_s = None if window.period == "total" or amount > each.limit else window.until_s - now_s
    return ApiError("insufficient_quota", message, retry_after_s=next_s, headers=[_NO_RETRY])


def budget_held(each: Slice, amount: int) -> ApiError:
    """Calls under way hold it, and may use less."""
    window = Window.named(each.account)
    message = (
        f"{window.subject} has a budget of {usd(each.limit)} USD {_PER[window.period]}, and calls under way may need what is "
        f"left of it. This call may cost up to {usd(amount)}. Please try again."
    )
    wait_ns = _HELD_WAIT_NS
    return ApiError("budget_held", message, retry_after_s=wait_ns / 1e9, headers=_come_back(wait_ns))


def limits_unavailable() -> ApiError:
    return ApiError("limits_unavailable", "Limits cannot be looked up just now.", retry_after_s=1.0)


def _come_back(wait_ns: int) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after-ms", b"%d" % -(-wait_ns // 1_000_000))]


_PER = {"day": "a day", "week": "a week", "month": "a month", "total": "in all"}
