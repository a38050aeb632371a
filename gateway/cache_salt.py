"""Keeps the prefix caches of tenants apart where they must not be shared.

A prompt that is found in a worker's cache is answered sooner, so whoever may send prompts to a shared cache can find out
by the clock what others have sent. vLLM keeps prefixes of different `cache_salt` apart. A tenant's salt is made here from
a secret, so that no other tenant can send the same.
"""

from __future__ import annotations

from hashlib import blake2b

_SALT_BYTES = 16


class CacheSalts:
    def __init__(self, secret: bytes) -> None:
        """`secret`, at most 64 bytes, has to be the same for all gateways before one pool, or they part its caches."""
        self._secret = secret

    def of(self, tenant: str, given: bytes) -> bytes:
        """The salt of a tenant, in hex; `given` is what the client sent as `cache_salt`, to part its own calls further."""
        name = tenant.encode()
        salt = blake2b(key=self._secret, digest_size=_SALT_BYTES, person=b"cache salt")
        salt.update(b"%d:%b%b" % (len(name), name, given))
        return salt.hexdigest().encode()
