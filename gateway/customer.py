"""Whom a tenant makes a call for: one of its own customers, in the tenant's own words, kept with the call's usage."""

from __future__ import annotations

import re

from gateway.errors import ApiError

HEADER_PREFIX = b"x-tidegate-"
CUSTOMER = HEADER_PREFIX + b"customer"

_MOST_BYTES = 128
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
"""And what stands for bytes that are no text."""


def customer(headers: dict[bytes, bytes], safety_identifier: str | None, user: str | None) -> str:
    """By the header, or else by these fields of the body. Raises ApiError for what could not be kept as it is."""
    if CUSTOMER in headers:
        name, param = headers[CUSTOMER].decode("utf-8", "replace").strip(), CUSTOMER.decode()
    elif safety_identifier:
        name, param = safety_identifier, "safety_identifier"
    else:
        name, param = user or "", "user"
    if len(name.encode("utf-8", "replace")) > _MOST_BYTES or _CONTROL.search(name):
        message = f"{param}: expected at most {_MOST_BYTES} bytes without control characters"
        raise ApiError("invalid_value", message, param=param)
    return name
