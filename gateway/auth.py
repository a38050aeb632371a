"""Who is calling: the keys that admit calls, in memory, and kept in step with the database.

Looking a key up is on the path of every call, so it neither waits nor does I/O. What another process has changed (the
command line, another gateway) is seen within a second, and while the database is away the last known keys go on admitting
calls. A key that ends does so by itself, by one comparison.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from hmac import compare_digest
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from gateway.active_keys import Active, ActiveKey, active_keys
from gateway.billing import paid_in_nano_usd
from gateway.database import StoreAway
from gateway.errors import ApiError
from gateway.policy import UNBOUNDED, Policy
from gateway.store import MASTER, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from pydantic import SecretStr

    from gateway.policy import InForce, Network, Policies
    from gateway.store import Store

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
    networks: tuple[Network, ...] | None = None
    """Where its calls may come from; None where it does not matter."""
    ends_s: float = math.inf
    """From when on it admits nothing, seconds since 1970; 0 where its tenant or project has been suspended."""


def bearer(headers: Mapping[bytes, bytes]) -> bytes:
    """The secret that a request with these headers brings. Raises ApiError where there is none."""
    scheme, _, secret = headers.get(b"authorization", b"").partition(b" ")
    if (scheme != b"Bearer" and scheme.lower() != b"bearer") or not secret:
        raise _unauthorized("No API key was given. Send it as `Authorization: Bearer KEY`.")
    return secret.strip()


def unknown_key() -> ApiError:
    return _unauthorized("The API key is unknown or has been revoked.")


def _unauthorized(message: str) -> ApiError:
    return ApiError("invalid_api_key", message, headers=[(b"www-authenticate", b"Bearer")])


class Keyring:
    """All keys that admit calls."""

    def __init__(
        self, key_secret: bytes, master_key: str | None = None, policies: Policies = UNBOUNDED
    ) -> None:
        self._key_secret = key_secret
        self._policies = policies
        self._master_digest = self._digest_of_master(master_key)
        self._revision: int | None = None
        self._active = Active(0, {}, {}, ())
        self._paid_in: dict[str, int] = {}
        """By prepaid tenants, in nano-USD: a budget for ever."""
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

    def digest(self, secret: bytes) -> bytes:
        return digest_of(secret, self._key_secret)

    def admit_digest(self, digest: bytes) -> Key:
        """Whose key it is whose secret has this digest. Raises ApiError."""
        found = self._by_digest.get(digest[:_INDEXED_BYTES])
        if found is None or not compare_digest(found[0], digest):
            raise unknown_key()
        return _in_force(found[1])

    def identified(self, id_or_start: str) -> Key:
        """The key with this id, or whose id alone starts so. Raises ApiError."""
        # A key that has been rotated is there with each of its secrets.
        found = {key.id: key for _, key in self._by_digest.values() if key.id.startswith(id_or_start)}
        if len(found) != 1:
            which = f"{len(found) or 'no'} keys in force have an id starting with {id_or_start[:100]!r}"
            raise ApiError("invalid_value", which, param="key")
        return found.popitem()[1]

    def of_tenant(self, tenant: str) -> Key:
        """A key as a tenant may have it that bounds its keys by nothing of their own."""
        held_to = self._held_to(tenant, None)
        return Key("", tenant, policy=held_to.policy, bounds=held_to.bounds)

    def admit(self, headers: Mapping[bytes, bytes]) -> Key:
        """Whose key a request with these headers brings. Raises ApiError."""
        key = self.find(bearer(headers))
        if key is None:
            raise unknown_key()
        return _in_force(key)

    def refresh(self, store: Store) -> bool:
        """Take over what has changed in the database, and say whether anything had. Blocks."""
        active = active_keys(store, self._revision)
        if active is None:
            return False
        self._paid_in = paid_in_nano_usd(store, self._policies.prepaid)
        self._take(active)
        return True

    def read_again(self, store: Store) -> None:
        """Work out anew what is in force for every key: the policies of tenants have changed. Blocks."""
        self._revision = None
        self.refresh(store)

    def take_master(self, master_key: SecretStr | None) -> None:
        """From the next reading on, this is the master key."""
        self._master_digest = self._digest_of_master(
            None if master_key is None else master_key.get_secret_value()
        )

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[Key]:
        return iter([key for _, key in self._by_digest.values()])

    def _digest_of_master(self, master_key: str | None) -> bytes | None:
        return digest_of(master_key.encode(), self._key_secret) if master_key else None

    def _master(self) -> tuple[tuple[bytes, Key], ...]:
        if self._master_digest is None:
            return ()
        held_to = self._policies.in_force(MASTER)
        return ((self._master_digest, Key(MASTER, MASTER, policy=held_to.policy, bounds=held_to.bounds)),)

    def _take(self, active: Active) -> None:
        self._active = active
        self._hold((*((each.digest, self._key(each)) for each in active.keys), *self._master()))
        self._revision = active.revision

    def _key(self, active: ActiveKey) -> Key:
        record = active.record
        tenant = self._active.tenants.get(record.tenant)
        project = self._active.projects.get((record.tenant, record.project or ""))
        suspended = any(each is not None and each.suspended_ms is not None for each in (tenant, project))
        held_to = self._held_to(record.tenant, record.project, (f"key:{record.id}", record.policy))
        ends_s = math.inf if active.ends_ms is None else active.ends_ms / 1000
        return Key(
            record.id,
            record.tenant,
            record.name,
            held_to.policy,
            record.project,
            held_to.bounds,
            networks=None if held_to.policy is None else held_to.policy.source_networks,
            ends_s=0.0 if suspended else ends_s,
        )

    def _held_to(self, tenant: str, project: str | None, *below: tuple[str, Policy | None]) -> InForce:
        stored = self._active.tenants.get(tenant)
        of_project = self._active.projects.get((tenant, project or ""))
        if of_project is not None:
            below = ((f"project:{tenant}/{project}", of_project.policy), *below)
        policy = None if stored is None else stored.policy
        if tenant in self._policies.prepaid:
            paid_in = Policy(budgets={"total": max(0, self._paid_in.get(tenant, 0))})
            policy = paid_in if policy is None else policy.narrowed(paid_in)
        return self._policies.in_force(tenant, policy, *below)

    def _hold(self, keys: tuple[tuple[bytes, Key], ...]) -> None:
        # One assignment of a whole new dict: a lookup in another thread sees the old keys or the new, never a mixture.
        self._by_digest = {digest[:_INDEXED_BYTES]: (digest, key) for digest, key in keys}


def _in_force(key: Key) -> Key:
    if key.ends_s <= time.time():
        raise _ended(key)
    return key


def _ended(key: Key) -> ApiError:
    if key.ends_s == 0:
        return ApiError("tenant_suspended", "The tenant of this API key, or its project, has been suspended.")
    return ApiError("invalid_api_key", "The API key has expired.", headers=[(b"www-authenticate", b"Bearer")])


class Ring(Protocol):
    """Keys in memory."""

    def refresh(self, store: Store) -> bool: ...


def refresh(store: Store, *rings: Ring) -> None:
    for ring in rings:
        ring.refresh(store)


async def follow(store: Store, *rings: Ring, every_s: float = 0.5) -> None:
    """Keep `rings` in step with `store` until cancelled."""
    away = False
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(refresh, store, *rings)
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
