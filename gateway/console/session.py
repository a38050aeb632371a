"""Sessions of the console: a cookie in place of a key, so that no key stays in a browser.

The cookie names a key by its digest and says until when it is good, sealed with the database's secret: any process of any
replica reads it, and none keeps anything. It admits what its key admits, as long as that is in force: a key that is revoked
ends its sessions when the gateway sees that, within a second.

What a page of another origin has a browser send is refused: the cookie is `SameSite=Strict`, and whatever changes something
must come from our own origin and bring a token that only our own page could read.
"""

from __future__ import annotations

import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from hashlib import blake2b
from hmac import compare_digest
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec import Struct

from gateway.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

COOKIE = "tidegate-session"
LASTS_S = 12 * 3600
TOKEN_HEADER = b"x-console-token"
_DIGEST = 32
_SEAL = 32
_ENDS = 8
_NONCE = 8
_LENGTH = _DIGEST + _ENDS + _NONCE + _SEAL
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Session(Struct, frozen=True):
    """One that has not run out."""

    digest: bytes
    """Of the key's secret."""
    ends_s: float
    token: str
    """What changes are to bring as well."""


class Sessions:
    def __init__(self, key_secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._seal_key = blake2b(b"", key=key_secret, person=b"console session").digest()
        self._clock = clock

    def open(self, digest: bytes) -> str:
        """The cookie of a new one, for the key whose secret has this digest."""
        ends = (int(self._clock()) + LASTS_S).to_bytes(_ENDS)
        sealed = digest + ends + secrets.token_bytes(_NONCE)
        return urlsafe_b64encode(sealed + self._seal(sealed)).decode().rstrip("=")

    def read(self, cookie: str) -> Session | None:
        """That of a cookie; None where we have not made it, or it has run out."""
        try:
            found = urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
        except ValueError:
            return None
        sealed, seal = found[:-_SEAL], found[-_SEAL:]
        if len(found) != _LENGTH or not compare_digest(self._seal(sealed), seal):
            return None
        ends_s = int.from_bytes(sealed[_DIGEST : _DIGEST + _ENDS])
        if self._clock() >= ends_s:
            return None
        token = blake2b(sealed, digest_size=16, key=self._seal_key, person=b"console token").hexdigest()
        return Session(sealed[:_DIGEST], ends_s, token)

    def of(self, headers: Mapping[bytes, bytes]) -> Session | None:
        """That of a request, whatever it wants."""
        cookie = headers.get(b"cookie")
        if cookie is None or COOKIE.encode() not in cookie:
            return None
        try:
            found = SimpleCookie(cookie.decode("latin-1")).get(COOKIE)
        except CookieError:
            return None
        return None if found is None else self.read(found.value)

    def admit(self, method: str, headers: Mapping[bytes, bytes]) -> Session | None:
        """That of a request which brings no key. Raises ApiError where it is to change something, and may be somebody
        else's page's.
        """
        if b"authorization" in headers:
            return None
        session = self.of(headers)
        if session is not None and method not in _SAFE:
            expect_same_origin(headers)
            if not compare_digest(headers.get(TOKEN_HEADER, b""), session.token.encode()):
                raise ApiError("cross_site", "The request brings no token of the console's session.")
        return session

    def _seal(self, sealed: bytes) -> bytes:
        return blake2b(sealed, digest_size=_SEAL, key=self._seal_key).digest()


def expect_same_origin(headers: Mapping[bytes, bytes]) -> None:
    """Raises ApiError where a browser says that a page of another origin has sent it."""
    site = headers.get(b"sec-fetch-site")
    if site is None:
        origin = headers.get(b"origin")
        same = origin is None or _host_of(origin) == headers.get(b"host", b"")
    else:
        same = site in (b"same-origin", b"none")
    if not same:
        raise ApiError("cross_site", "The request comes from a page of another origin.")


def _host_of(origin: bytes) -> bytes | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


FAILURES = 10
"""From one address, before it has to wait."""
FORGIVEN_S = 6.0
"""After so long one of them is forgotten."""
_MOST_ADDRESSES = 10_000


class Guard:
    """Bounds how often keys are tried to log in with, by address."""

    def __init__(self) -> None:
        self._until_s: OrderedDict[str, float] = OrderedDict()
        """By when all failures of an address are forgotten."""

    def expect_room(self, source: str) -> None:
        """Raises ApiError where too many have failed from there."""
        wait_s = self._until_s.get(source, 0.0) - time.monotonic() - (FAILURES - 1) * FORGIVEN_S
        if wait_s > 0:
            raise ApiError("too_many_logins", "Too many logins from there have failed.", retry_after_s=wait_s)

    def failed(self, source: str) -> None:
        now_s = time.monotonic()
        self._until_s[source] = max(now_s, self._until_s.get(source, 0.0)) + FORGIVEN_S
        self._until_s.move_to_end(source)
        if len(self._until_s) > _MOST_ADDRESSES:
            self._until_s.popitem(last=False)
