"""What a client says of its trace, as the W3C standard has it, and as strangers write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.trace_context import Parent, parent_of, trace_lines

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),  # other flags stand beside
        (f"cc-{TRACE}-{SPAN}-01-what-comes", True),  # a later version
    ],
)
def test_a_parent_is_known_by_its_ids_and_says_whether_it_is_sampled(given: str, *, sampled: bool):
    expected = Parent(int(TRACE, 16), int(SPAN, 16), sampled)
    assert parent_of({b"traceparent": given.encode()}) == expected


@pytest.mark.parametrize(
    "given",
    [
        "",
        "00-1-2-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_no_trace_context_is_none(given: str):
    assert parent_of({b"traceparent": given.encode()}) is None
    assert parent_of({}) is None


@given(st.binary(max_size=80), st.binary(max_size=600))
def test_whatever_is_sent_the_lines_for_the_endpoint_are_at_most_two_headers(parent: bytes, state: bytes):
    headers = {b"traceparent": parent, b"tracestate": state}
    parent_of(headers)
    lines = trace_lines(headers).split(b"\r\n")
    assert lines.pop() == b""
    assert {line.partition(b":")[0] for line in lines} <= {b"traceparent", b"tracestate"}
    assert not any(b"\n" in line or b"\r" in line for line in lines)
