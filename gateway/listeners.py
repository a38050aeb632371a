"""The sockets that the gateway listens on, taken before anything else is started.

Several processes have one each on the same address, among which the kernel spreads connections evenly by their
addresses (SO_REUSEPORT, on Linux). One that all share would give them to whoever is idle: while there is little to do that
is always the same one, and clients keep their connections when there is much. Where the kernel does not spread, they share
one all the same.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.config_listen import Address

_SPREADS = sys.platform == "linux"
"""Elsewhere SO_REUSEPORT gives all connections to the last that asked, or is missing."""


class CannotListen(Exception):
    """The address is taken, or not ours."""


class Listeners(NamedTuple):
    """A socket of each process, or none where there is no such address."""

    calls: list[socket.socket]
    admin: list[socket.socket]
    """For administration, where that has an address of its own."""

    @property
    def all(self) -> list[socket.socket]:
        return self.calls + self.admin


def listeners_of(config: Config, count: int = 1) -> Listeners:
    """For so many processes. Raises CannotListen."""
    calls = listeners_on(config.listen, count)
    try:
        admin = [] if config.admin.listen is None else listeners_on(config.admin.listen, count)
    except CannotListen:
        for listener in calls:
            listener.close()
        raise
    return Listeners(calls, admin)


def listeners_on(listen: Address, count: int = 1) -> list[socket.socket]:
    """So many on one address, listening only once somebody serves there. Raises CannotListen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        first = _bound(family, kind, address)
        if count == 1:
            return [first]
        if not _SPREADS:
            return [first] * count
        # Bound by itself first: with SO_REUSEPORT alone, a second gateway on the same address would share it unnoticed.
        address = first.getsockname()
        first.close()
        return [_bound(family, kind, address, shared=True) for _ in range(count)]
    except OSError as error:
        raise CannotListen(f"cannot listen on {listen.host}:{listen.port}: {error.strerror}") from None


def _bound(family: int, kind: int, address: object, *, shared: bool = False) -> socket.socket:
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
    except OSError:
        listener.close()
        raise
    return listener
