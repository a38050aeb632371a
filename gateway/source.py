"""Where a request comes from: the address of its connection, or what a proxy that is trusted says of it.

`x-forwarded-for` is believed only as far as trusted proxies have written it: read from its end, the first address that
is none of theirs is the client's. Whatever a client has put before that is its own invention.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from ipaddress import IPv4Address

    from gateway.policy import Network

    Address = IPv4Address | IPv6Address


class Sources:
    def __init__(self, trusted_proxies: Iterable[str] = ()) -> None:
        self._trusted = tuple(map(ip_network, sorted(trusted_proxies)))

    def of(self, peer: str | None, headers: Mapping[bytes, bytes]) -> Address | None:
        """Whose request it is that a connection from `peer` has brought; None where that cannot be told."""
        address = _address(peer or "")
        forwarded = headers.get(b"x-forwarded-for")
        if forwarded is None or address is None or not _within(address, self._trusted):
            return address
        for hop in reversed(forwarded.decode("latin-1").split(",")):
            address = _address(hop)
            if address is None or not _within(address, self._trusted):
                break
        return address

    def expect(self, networks: Iterable[Network], peer: str | None, headers: Mapping[bytes, bytes]) -> None:
        """Raises ApiError where it comes from none of `networks`."""
        address = self.of(peer, headers)
        if address is None or not _within(address, networks):
            raise ApiError("network_not_allowed", f"This key may not be used from {address or 'there'}.")


def _address(text: str) -> Address | None:
    """As proxies write it: perhaps with brackets and a port. An IPv4 address in IPv6 clothes is what it is underneath."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
