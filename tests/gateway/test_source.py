from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.source import Sources

PROXIES = Sources(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "203.0.113.9", "192.0.2.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.7, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.7, 203.0.113.9, 10.2.2.2", "203.0.113.9"),
        ("10.0.0.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("10.0.0.1", "203.0.113.9:4711", "203.0.113.9"),
        ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("fd00::1", "::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("fe80::1%eth0", None, "fe80::1"),
        ("10.0.0.1", "203.0.113.9, unknown", None),
        ("10.0.0.1", "", None),
        (None, "203.0.113.9", None),
        ("", None, None),
    ],
)
def test_a_proxy_is_believed_where_it_is_trusted_and_only_what_it_has_written_itself(
    peer: str | None, forwarded: str | None, address: str | None
):
    headers = {} if forwarded is None else {b"x-forwarded-for": forwarded.encode()}
    found = PROXIES.of(peer, headers)
    assert (found and str(found)) == address


@given(st.text(max_size=40), st.sampled_from(["203.0.113.9", "198.51.100.7"]))
def test_nothing_that_a_client_writes_ahead_of_its_proxy_moves_it_elsewhere(invented: str, client: str):
    forwarded = f"{invented}, {client}".encode("latin-1", "replace")
    assert str(PROXIES.of("10.0.0.1", {b"x-forwarded-for": forwarded})) == client


def test_who_comes_from_elsewhere_or_cannot_be_placed_is_refused():
    networks = (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    Sources().expect(networks, "192.0.2.200", {})
    Sources().expect(networks, "2001:db8::1", {})
    for peer in ("198.51.100.7", None):
        with pytest.raises(ApiError) as refused:
            Sources().expect(networks, peer, {})
        assert refused.value.code == "network_not_allowed"
    with pytest.raises(ApiError):
        Sources().expect((), "192.0.2.200", {})
