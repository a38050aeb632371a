"""W3C trace context: what a client says of the trace that its call belongs to, and what endpoints are told of it."""

from __future__ import annotations

import re

from msgspec import Struct

_TRACE = re.compile(rb"[\x20-\x7e]{1,512}")
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01


class Parent(Struct, frozen=True):
    """The client's span."""

    trace_id: int
    span_id: int
    sampled: bool


def parent_of(headers: dict[bytes, bytes]) -> Parent | None:
    """None where there is none, or none that can be understood, which the standard wants treated alike."""
    given = headers.get(b"traceparent")
    found = None if given is None else _PARENT.fullmatch(given)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    trace_id, span_id = int(found[2], 16), int(found[3], 16)
    if not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, bool(int(found[4], 16) & _SAMPLED))


def state_line(headers: dict[bytes, bytes]) -> bytes:
    """The client's `tracestate` as a header line for the endpoint, or nothing."""
    value = headers.get(b"tracestate")
    return b"tracestate: %b\r\n" % value if value is not None and _TRACE.fullmatch(value) else b""


def trace_lines(headers: dict[bytes, bytes]) -> bytes:
    """The client's trace context as header lines for the endpoint, where no span of ours stands between."""
    value = headers.get(b"traceparent")
    if value is None:
        return b""
    line = b"traceparent: %b\r\n" % value if _TRACE.fullmatch(value) else b""
    return line + state_line(headers)
