"""Workers that are found rather than listed: what a discovery finds, and names that are resolved again and again.

A discovery tells whoever listens of all workers there are now, each time that has changed. While it cannot ask, what it found
last stands: that nobody can be asked says nothing of the workers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from backends.lane import Lane

log = logging.getLogger(__name__)

RESOLVE_S = 30.0
"""Between two looks at a name. How long an answer holds, getaddrinfo does not say; this is what zones of changing hosts use."""


MOST_ADDRESSES = 1000
"""Of one name. More is no fleet but a mistake, or somebody's answer who wants the gateway busy: each would be probed."""


class Found(Struct, frozen=True):
    """One worker."""

    name: str
    url: str
    draining: bool = False
    """Whether it finishes what it has and is to get nothing new."""


Listener = Callable[[tuple[Found, ...]], None]


def url_at(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def addresses_of(host: str) -> frozenset[str]:
    """All that a name stands for now. Raises OSError."""
    loop = asyncio.get_running_loop()
    try:
        infos = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"no host can have this name: {error}") from None
    return frozenset(str(info[4][0]) for info in infos)


class DnsNames:
    """A name whose addresses are a worker each."""

    def __init__(
        self,
        host: str,
        port: int,
        scheme: str,
        listener: Listener,
        resolve: Callable[[str], Awaitable[frozenset[str]]] = addresses_of,
    ) -> None:
        self.name = f"the addresses of {host}"
        self._host = host
        self._port = port
        self._scheme = scheme
        self._listener = listener
        self._resolve = resolve
        self._known: frozenset[str] | None = None
        self._said = ""

    async def look(self) -> None:
        """Resolve it once."""
        try:
            found = await self._resolve(self._host)
        except OSError as error:
            if self._said != str(error):
                self._said = str(error)
                log.warning("%s cannot be resolved: %s", self._host, error)
            return
        if len(found) > MOST_ADDRESSES:
            log.error("%s has %d addresses, which is more than is believed", self._host, len(found))
            return
        self._said = ""
        if found != self._known:
            self._known = found
            urls = [url_at(self._scheme, address, self._port) for address in sorted(found)]
            self._listener(tuple(Found(url.partition("://")[2], url) for url in urls))


async def follow_name(lane: Lane) -> None:
    """See where the name of one endpoint leads now: connections to where it led before are used no more.

    A new connection asks anew by itself; it is those that are kept that would stay for ever.
    """
    try:
        lane.keep_only(await addresses_of(lane.origin.host))
    except OSError:
        return  # whoever connects is told
