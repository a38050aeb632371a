"""Who calls: by the key that a request brings, and from where that may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth import Key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import Request

    from gateway.auth import Keyring
    from gateway.console.session import Sessions
    from gateway.source import Sources


class Callers:
    def __init__(self, keys: Keyring | Key, sources: Sources, sessions: Sessions) -> None:
        self._keys = keys
        """The one key is everybody's, where the configuration asks for none."""
        self._sources = sources
        self._sessions = sessions

    def of(self, headers: Mapping[bytes, bytes], peer: Callable[[], str | None]) -> Key:
        """Who sends a request with these headers over a connection from `peer`. Raises ApiError."""
        keys = self._keys
        key = keys if isinstance(keys, Key) else keys.admit(headers)
        if key.networks is not None:
            self._sources.expect(key.networks, peer(), headers)
        return key

    def asking(self, request: Request) -> Key:
        """The same of a request to the control routes, which may be the console's and bring no key but its session."""
        peer = request.client and request.client.host
        headers, keys = dict(request.scope["headers"]), self._keys
        session = None if isinstance(keys, Key) else self._sessions.admit(request.method, headers)
        if session is None or isinstance(keys, Key):
            return self.of(headers, lambda: peer)
        key = keys.admit_digest(session.digest)
        if key.networks is not None:
            self._sources.expect(key.networks, peer, headers)
        return key

    def take_key(self, key: Key) -> None:
        """From now on this is everybody's, where the configuration asks for none."""
        self._keys = key
