"""Who is calling: the keys that admit calls, in memory, and kept in step with the database.

Looking a key up is on the path of every call, so it neither waits nor does I/O. A key created or revoked by another
process (the command line, another gateway) is seen within a second, and while the database is away the last known
keys go on admitting calls.
"""

from __future__ import annotations

import asyncio
import logging
from hmac import compare_digest
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.database import StoreAway
from gateway.errors import ApiError
from gateway.policy import UNBOUNDED
from gateway.store import MASTER, ActiveKeys, digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from gateway.policy import Policies, Policy
    from gateway.store import KeyRecord, Store

log = logging.getLogger(__name__)

ANYONE = "anonymous"
"""The tenant of calls where the configuration asks for no keys."""

_INDEXED_BYTES = 16


class Key(Struct, frozen=True):
    """What admits a call, and whose it is."""

    id: str
    tenant: str
    name: str | None = None
    policy: Policy | None = None
    """What bounds each of its calls: its own, its project's and its tenant's in one; None where nothing does."""
    project: str | None = None
    bounds: tuple[tuple[str, Policy], ...] = ()
    """What bounds how much of them there may be, by subject; see gateway.policy.InForce. Empty where nothing does."""


class Keyring:
    """All keys that admit calls."""

    def __init__(
        self, key_secret: bytes, master_key: str | None = None, policies: Policies = UNBOUNDED
    ) -> None:
        self._key_secret = key_secret
        self._policies = policies
        self._master_digest = digest_of(master_key.encode(), key_secret) if master_key else None
        self._revision: int | None = None
        self._by_digest: dict[bytes, tuple[bytes, Key]] = {}
        self._hold(self._master())

    @classmethod
    def read(cls, store: Store, master_key: str | None = None, policies: Policies = UNBOUNDED) -> Self:
        """The keyring of a database as it is now. Blocks."""
        keyring = cls(store.key_secret(), master_key, policies)
        keyring.refresh(store)
        return keyring

    def find(self, secret: bytes) -> Key | None:
        """Whose key this is, or None. Takes the same time however much of a wrong key is right.

        The index is over half the digest, the comparison in constant time over the whole: what the dict may let slip
        is about a keyed hash, which whoever guesses cannot compute.
        """
        digest = digest_of(secret, self._key_secret)
        found = self._by_digest.get(digest[:_INDEXED_BYTES])
        if found is None or not compare_digest(found[0], digest):
            return None
        return found[1]

    def identified(self, id_or_start: str) -> Key:
        """The key with this id, or whose id alone starts so. Raises ApiError."""
        found = [key for _, key in self._by_digest.values() if key.id.startswith(id_or_start)]
        if len(found) != 1:
            which = f"{len(found) or 'no'} keys in force have an id starting with {id_or_start[:100]!r}"
            raise ApiError("invalid_value", which, param="key")
        return found[0]

    def admit(self, headers: Mapping[bytes, bytes]) -> Key:
        """Whose key a request with these headers brings. Raises ApiError."""
        scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
        if (scheme != b"Bearer" and scheme.lower() != b"bearer") or not secret:
            raise ApiError(
                "invalid_api_key",
                "No API key was given. Send it as `Authorization: Bearer KEY`.",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        key = self.find(secret.strip())
        if key is None:
            raise ApiError(
                "invalid_api_key",
                "The API key is unknown or has been revoked.",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        return key

    def refresh(self, store: Store) -> bool:
        """Take over what has changed in the database, and say whether anything had. Blocks."""
        active = store.active_keys(since_revision=self._revision)
        if active is None:
            return False
        self._take(active)
        return True

    def read_again(self, store: Store) -> None:
        """Work out anew what is in force for every key: the policies of tenants have changed. Blocks."""
        self._revision = None
        self.refresh(store)

    def __len__(self) -> int:
        return len(self._by_digest)

    def _master(self) -> tuple[tuple[bytes, Key], ...]:
        if self._master_digest is None:
            return ()
        held_to = self._policies.in_force(MASTER)
        return ((self._master_digest, Key(MASTER, MASTER, policy=held_to.policy, bounds=held_to.bounds)),)

    def _take(self, active: ActiveKeys) -> None:
        stored = ((digest, self._key(record)) for digest, record in active.keys)
        self._hold((*stored, *self._master()))
        self._revision = active.revision

    def _key(self, record: KeyRecord) -> Key:
        held_to = self._policies.in_force(record.tenant, None, (f"key:{record.id}", record.policy))
        return Key(record.id, record.tenant, record.name, held_to.policy, bounds=held_to.bounds)

    def _hold(self, keys: tuple[tuple[bytes, Key], ...]) -> None:
        # One assignment of a whole new dict: a lookup in another thread sees the old keys or the new, never a mixture.
        self._by_digest = {digest[:_INDEXED_BYTES]: (digest, key) for digest, key in keys}


async def follow(keyring: Keyring, store: Store, every_s: float = 1.0) -> None:
    """Keep `keyring` in step with `store` until cancelled."""
    away = False
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(keyring.refresh, store)
        except StoreAway as failure:
            if not away:
                log.warning("the database is away, the keys known so far stay in force: %s", failure)
            away = True
        except Exception:  # a loop that must outlive anything: calls are admitted by what it last read
            log.exception("keys could not be read again")
        else:
            if away:
                log.info("the database is back, keys are up to date")
            away = False
