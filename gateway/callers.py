"""Who calls: by the key that a request brings, and from where that may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth import Key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastapi import Request

    from gateway.auth import Keyring
    from gateway.source import Sources


class Callers:
    def __init__(self, keys: Keyring | Key, sources: Sources) -> None:
        self._keys = keys
        """The one key is everybody's, where the configuration asks for none."""
        self._sources = sources

    def of(self, headers: Mapping[bytes, bytes], peer: Callable[[], str | None]) -> Key:
        """Who sends a request with these headers over a connection from `peer`. Raises ApiError."""
        keys = self._keys
        key = keys if isinstance(keys, Key) else keys.admit(headers)
        if key.networks is not None:
            self._sources.expect(key.networks, peer(), headers)
        return key

    def asking(self, request: Request) -> Key:
        """The same of a request to the control routes."""
        peer = request.client and request.client.host
        return self.of(dict(request.scope["headers"]), lambda: peer)

    def take_key(self, key: Key) -> None:
        """From now on this is everybody's, where the configuration asks for none."""
        self._keys = key
