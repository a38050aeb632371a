"""All endpoints as they are now: what is under way at each, how fast it has been, whether it is to be left alone.

Routing decides on a snapshot, an immutable copy taken without waiting; everything that happens to an endpoint comes
back here through an `Attempt`, which is counted from the moment it is sent until its block is left.
"""

from __future__ import annotations

import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from backends.base import AttemptFailed, CallRejected, Overloaded, Refused, conceal
from backends.health import watch
from backends.keys import Keys
from backends.lane import Exchange, LaneLimits, Patience, Sweep
from backends.scrape import scraping
from backends.worker import Access, HttpBackend, Outgoing, lane_to
from routing.ejection import Ejection
from routing.speed import Peers, Speed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.scrape import Scraped
    from routing.types import Endpoint, Load


LOAD_HOLDS_S = 0.005
"""For so long the passing of time alone changes no decision: rates are learned over seconds."""


class FleetSettings(Struct, frozen=True):
    lane: LaneLimits = LaneLimits()
    patience: Patience = Patience()
    health_interval_s: float = 5.0
    health_timeout_s: float = 2.0
    scrape_interval_s: float = 5.0


class Pool:
    """The members of one model, and what routing last saw of each."""

    __slots__ = ("_all_seen_until_s", "_seen", "changed", "members", "peers")

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        """By the name of the endpoint."""
        self.peers = Peers()
        self.changed: set[Member] = set()
        """Those at which something has happened since they were last seen."""
        self._seen: dict[str, tuple[Endpoint, Load]] = {}
        self._all_seen_until_s = 0.0

    def add(self, member: Member) -> None:
        self.members[member.endpoint.name] = member

    def snapshot(self, now_s: float) -> tuple[tuple[Endpoint, Load], ...]:
        """All of them with their load now. Where nothing has happened, what was worked out a moment ago still holds."""
        if now_s >= self._all_seen_until_s:
            self.changed.update(self.members.values())
            self._all_seen_until_s = now_s + LOAD_HOLDS_S
        for member in self.changed:
            self._seen[member.endpoint.name] = (member.endpoint, member.load(now_s))
        self.changed.clear()
        return tuple(self._seen.values())


class Member:
    """One endpoint of the fleet, alive."""

    def __init__(
        self, endpoint: Endpoint, access: Access, settings: FleetSettings, pool: Pool | None = None
    ) -> None:
        self.endpoint = endpoint
        self.lane = lane_to(access, settings.lane)
        root = "/v1" if endpoint.kind == "worker" else access.url.partition("://")[2].partition("/")[2]
        self.keys = Keys(access.api_keys, endpoint.name)
        self.backend = HttpBackend(access, self.lane, "/" + root.strip("/"), settings.patience, self.keys)
        self._pool = Pool() if pool is None else pool
        self.speed = Speed(endpoint.gpu, self._pool.peers)
        self.ejection = Ejection()
        self.header_name = endpoint.name.encode()
        self.inflight = 0
        self.attempts: dict[str, int] = {}
        """How many ended, by outcome: ok, a failure's code, rejected (a 4xx of the call's own), abandoned (by us)."""
        self.checked = endpoint.kind != "worker"
        """Whether its health is known. A provider is not asked: that would cost money, and calls tell."""
        self.scraped: Scraped | None = None
        """What it last said of itself."""
        self.changed()

    def looked_at(self, scraped: Scraped) -> None:
        """It has said this of itself."""
        self.scraped = scraped

    def foreign_running(self, now_s: float) -> int:
        """Calls there that did not come from here, as far as is known."""
        scraped = self.scraped
        return scraped.foreign_running if scraped is not None and scraped.fresh(now_s) else 0

    def changed(self) -> None:
        """Something has happened there: what was seen of it does not hold any more."""
        self._pool.changed.add(self)

    def ended(self, outcome: str) -> None:
        """An attempt there has ended so."""
        self.attempts[outcome] = self.attempts.get(outcome, 0) + 1

    def load(self, now_s: float) -> Load:
        """Its load now."""
        unavailable, retry_after_s = self.ejection.state(now_s)
        if unavailable is None:
            unavailable, retry_after_s = self.keys.state(now_s)
        if unavailable is None and self.inflight >= self.lane.limits.connections:
            unavailable, retry_after_s = f"busy with {self.inflight} calls", 1.0
        return self.speed.load(now_s, self.inflight, unavailable, retry_after_s)

    def attempt(self, outgoing: Outgoing, work: float) -> Attempt:
        return Attempt(self, outgoing, work)


class Attempt:
    """One try of a call at one endpoint: counted there, judged there, and its reply open inside the block.

    Entering raises AttemptFailed or CallRejected.
    """

    __slots__ = ("_ticket", "_watched", "_work", "completion_tokens", "member", "reply")

    def __init__(self, member: Member, outgoing: Outgoing, work: float) -> None:
        self.member = member
        self.reply: Exchange = member.backend.open(outgoing)
        self.completion_tokens = 0
        """Told by whoever counts them, so that the endpoint's speed can be learned."""
        self._work = work
        # A reply that is not streamed shows no first token.
        self._watched = outgoing.stream

    async def __aenter__(self) -> Self:
        member = self.member
        member.inflight += 1
        member.changed()
        self._ticket = member.speed.start(time.monotonic(), self._work, watched=self._watched)
        try:
            await self.reply.__aenter__()
        except BaseException as error:
            self._end(error)
            raise
        return self

    def first_token(self) -> None:
        self.member.speed.first_token(self._ticket, time.monotonic())
        self.member.changed()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.reply.release()
        finally:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Judge the endpoint by how the attempt ended. A client that left or a call that was wrong says nothing."""
        member, now_s = self.member, time.monotonic()
        if error is not None:
            conceal(member.keys.secrets, error)
        member.inflight -= 1
        member.changed()
        member.speed.finish(self._ticket, now_s, self.completion_tokens)
        if error is None:
            member.ended("ok")
            member.ejection.succeeded(now_s)
        elif isinstance(error, AttemptFailed):
            member.ended(error.code)
            if isinstance(error, Refused) and error.of_key:
                return
            if isinstance(error, Overloaded):
                member.ejection.cool_down(now_s, error.retry_after_s or 1.0)
            elif error.ejects is not None:
                member.ejection.failed(now_s, error.ejects, random.random())  # noqa: S311 - jitter
        else:
            member.ended("rejected" if isinstance(error, CallRejected) else "abandoned")


class Fleet:
    """The members, by model; inside its block they are watched, and after it their connections are closed."""

    def __init__(
        self, endpoints: Mapping[str, Sequence[tuple[Endpoint, Access]]], settings: FleetSettings
    ) -> None:
        self._settings = settings
        self._pools: dict[str, Pool] = {}
        for model, listed in endpoints.items():
            pool = self._pools[model] = Pool()
            for endpoint, access in listed:
                pool.add(Member(endpoint, access, settings, pool))
        self._all = [member for pool in self._pools.values() for member in pool.members.values()]

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(Sweep(lambda: [member.lane for member in self._all]))
        for member in self._all:
            self._stack.push_async_callback(member.lane.close)
            if member.endpoint.kind == "worker":
                settings = self._settings
                watching = watch(member, settings.health_interval_s, settings.health_timeout_s)
                await self._stack.enter_async_context(watching)
                await self._stack.enter_async_context(
                    scraping(member, settings.scrape_interval_s, settings.health_timeout_s)
                )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._pools)

    @property
    def members(self) -> Sequence[Member]:
        return self._all

    def member(self, endpoint: Endpoint) -> Member:
        return self._pools[endpoint.model].members[endpoint.name]

    def attempt(self, endpoint: Endpoint, outgoing: Outgoing, work: float) -> Attempt:
        """An attempt at `endpoint`, which carries `work`, in token-equivalents of prefill."""
        return Attempt(self._pools[endpoint.model].members[endpoint.name], outgoing, work)

    def snapshot(self, model: str) -> tuple[tuple[Endpoint, Load], ...]:
        """The endpoints of a model with their load now. Raises KeyError where there is no such model."""
        return self._pools[model].snapshot(time.monotonic())

    @property
    def ready(self) -> bool:
        """Whether any endpoint is known to be able to serve."""
        now_s = time.monotonic()
        return any(member.checked and member.load(now_s).unavailable is None for member in self._all)
