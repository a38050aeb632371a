"""Nodes that register over HTTP, and how any node leaves: by its own word, by an operator's, or without one.

A node is there for as long as its heartbeats renew its lease. While it is, its workers are endpoints of the fleet like those
of the configuration; the registry is one more source of them. What the database keeps of it, and why, says `node_store`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from msgspec import Struct
from pydantic import ValidationError

from backends.rounds import rounds
from gateway.config_file import Problem
from gateway.config_node import NodeSection, invalid
from gateway.config_policy import no_such_model
from gateway.database import StoreAway
from gateway.errors import ApiError
from gateway.fleet import access_of
from gateway.node_store import SavedDeparture

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from backends.fleet import Fleet, Listed
    from backends.member import Member
    from gateway.config import Config
    from gateway.node_store import NodeStore, Session

log = logging.getLogger(__name__)

REGISTERED = "registered"
"""The source of nodes that have registered."""
TICK_S = 0.5
"""Between two looks at leases and departures."""


class Node(Struct):
    """One that has registered."""

    section: NodeSection
    lease_until_s: float
    """On the monotonic clock."""
    registered_ms: int
    ending: str | None = None
    """What its stay will have ended by, where that is known already."""


class Leaving(Struct, frozen=True):
    """That a node leaves, whether it has registered or not."""

    at_s: float
    """On the monotonic clock."""
    draining: bool
    """Whether it gets nothing new until then."""

    @property
    def ending(self) -> str:
        return "drained" if self.draining else "preempted"


class Nodes:
    def __init__(self, fleet: Fleet, config: Config, store: NodeStore) -> None:
        self._fleet = fleet
        self._store = store
        self._nodes: dict[str, Node] = {}
        self._leaving: dict[str, Leaving] = {}
        """By name: also of those that are not there now."""
        self._writing = asyncio.Lock()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """These are the models now. A node stays registered for one that is gone, should it be back."""
        self._models = config.models
        self._lease_s = float(config.nodes.lease_s)
        self._drain_s = float(config.timeouts.total_s)
        self._agree()

    async def restore(self) -> None:
        """Take in again those that were there when the gateway was last up, for one lease. Who was leaving leaves."""
        for departure in await asyncio.to_thread(self._store.departures):
            at_s = time.monotonic() + (departure.leaves_ms - _now_ms()) / 1000
            self._leaving[departure.name] = Leaving(at_s, departure.draining)
        for saved in await asyncio.to_thread(self._store.restore, _now_ms()):
            try:
                section = NodeSection.model_validate_json(saved.section)
            except ValidationError as error:
                log.warning("the node %s has to register again: %s", saved.name, error)
                continue
            until_s = time.monotonic() + self.lease_s(section)
            leaving = self._leaving.get(saved.name)
            ending = None if leaving is None else leaving.ending
            self._nodes[saved.name] = Node(section, until_s, saved.registered_ms, ending)
        self._agree()
        self._announce()

    def watched(self) -> AbstractAsyncContextManager[None]:
        """See who has gone, as long as the block runs."""
        return rounds(lambda _: self._look(), TICK_S, "looking at leases of nodes")

    async def _look(self) -> None:
        if self._leaving:
            self._announce()
        for name, ending in self._gone(time.monotonic()):
            await self._remove(name, ending)

    def _announce(self) -> None:
        """Tell it to those that do not know yet that they leave: found, configured or registered since it was said."""
        now_s = time.monotonic()
        for member in self.members():
            leaving = self._leaving.get(member.endpoint.name)
            if leaving is not None and member.departs_s is None:
                member.departure.announce(max(0.0, leaving.at_s - now_s), draining=leaving.draining)

    def find(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def members(self, name: str | None = None) -> list[Member]:
        """The workers of the fleet, or those of one node, whether it has registered or is configured."""
        workers = [member for member in self._fleet.members if member.endpoint.kind == "worker"]
        if name is None:
            return workers
        found = [member for member in workers if member.endpoint.name == name]
        if not found and name not in self._nodes:
            raise _not_found(name)
        return found

    def lease_s(self, section: NodeSection) -> float:
        return self._lease_s if section.lease_s is None else section.lease_s

    async def register(self, section: NodeSection) -> bool:
        """It is there, and is as it says; whether it was not there before. Raises ApiError."""
        self._check(section)
        known, now_ms = self._nodes.get(section.name), _now_ms()
        until_s = time.monotonic() + self.lease_s(section)
        if known is not None:
            await self._stays(section.name)
        leaving = self._leaving.get(
            section.name
        )  # said before the gateway was restarted, of a node with a key
        self._nodes[section.name] = Node(
            section,
            until_s,
            now_ms if known is None else known.registered_ms,
            None if leaving is None else leaving.ending,
        )
        self._agree()
        self._announce()
        if known is None or known.section != section:
            text = None if section.api_key else section.model_dump_json(exclude_none=True)
            await self._write(self._store.joined, section.name, text, now_ms, new=known is None)
        if known is None:
            log.info("the node %s has registered for %s", section.name, ", ".join(section.models))
        return known is None

    def heartbeat(self, name: str) -> Node:
        """It is still there. Raises ApiError where it has to register."""
        node = self._nodes.get(name)
        if node is None:
            raise _not_found(name)
        node.lease_until_s = time.monotonic() + self.lease_s(node.section)
        return node

    async def leave_in(self, name: str, seconds: float | None, *, draining: bool) -> None:
        """It is going to leave. Raises ApiError."""
        seconds = self._drain_s if seconds is None else seconds
        members = self.members(name)
        leaving = self._leaving[name] = Leaving(time.monotonic() + seconds, draining)
        for member in members:
            member.departure.announce(seconds, draining=draining)
        if name in self._nodes:
            self._nodes[name].ending = leaving.ending
        log.info("the node %s leaves within %g s%s", name, seconds, ", and drains" if draining else "")
        leaves_ms = _now_ms() + round(seconds * 1000)
        await self._write(self._store.leaves, SavedDeparture(name, leaves_ms, draining))

    async def stay(self, name: str) -> None:
        """It is not going to leave after all. Raises ApiError."""
        self.members(name)
        await self._stays(name)

    async def _stays(self, name: str) -> None:
        known = self._leaving.pop(name, None) is not None
        for member in self._fleet.members:
            if member.endpoint.name == name:
                member.departure.cancel()
        if name in self._nodes:
            self._nodes[name].ending = None
        if known:
            await self._write(self._store.stays, name)

    async def remove(self, name: str) -> None:
        """It leaves now: its running calls finish. Raises ApiError where it is not one that has registered."""
        if name not in self._nodes:
            if self.members(name):
                raise ApiError(
                    "node_conflict", f"{name} is not registered: it is taken out where it is known from"
                )
            raise _not_found(name)
        await self._remove(name, self._nodes[name].ending or "left")

    async def sessions(self, since_ms: int, name: str | None = None) -> dict[str, list[Session]]:
        """The stays on record, by name; none where the database is away."""
        try:
            return await asyncio.to_thread(self._store.sessions, since_ms, name)
        except StoreAway as failure:
            log.warning("the stays of nodes cannot be read: %s", failure)
            return {}

    def _check(self, section: NodeSection) -> None:
        problems = [
            Problem(f"models.{name}", no_such_model(name, self._models))
            for name in section.models
            if name not in self._models
        ]
        if problems:
            raise invalid(*problems)
        for member in self._fleet.members:
            same = member.endpoint.name == section.name and member.endpoint.model in section.models
            if same and member.source != REGISTERED:
                where = f"an endpoint of {member.endpoint.model}, known by {member.source}"
                raise ApiError("node_conflict", f"{section.name} is the name of {where}", param="name")

    def _gone(self, now_s: float) -> list[tuple[str, str]]:
        """Those that have to be removed, and for what.

        One that drains stays for as long as it is heard of: were it removed, it would register again.
        """
        found = []
        for name, node in self._nodes.items():
            members = self._registered(name)
            if now_s >= node.lease_until_s:
                if node.ending is None:
                    for member in members:
                        member.ejection.fell(now_s)
                found.append((name, node.ending or "lease_lost"))
            elif node.ending == "preempted" and all(_time_is_up(member, now_s) for member in members):
                found.append((name, node.ending))
        return found

    def _registered(self, name: str) -> list[Member]:
        return [
            member
            for member in self._fleet.members
            if member.endpoint.name == name and member.source == REGISTERED
        ]

    async def _remove(self, name: str, ending: str) -> None:
        if self._nodes.pop(name, None) is None:
            return
        log.log(
            logging.WARNING if ending == "lease_lost" else logging.INFO,
            "the node %s is gone: %s",
            name,
            ending.replace("_", " "),
        )
        self._leaving.pop(name, None)
        self._agree()
        await self._write(self._store.left, name, ending, _now_ms())

    def _agree(self) -> None:
        wanted: dict[str, list[Listed]] = {}
        for node in self._nodes.values():
            for name in node.section.models:
                model = self._models.get(name)
                if model is not None:
                    section = node.section.endpoint(name)
                    endpoint = section.endpoint(name, model.capabilities, model.context_tokens)
                    wanted.setdefault(name, []).append((endpoint, access_of(section)))
        self._fleet.agree(REGISTERED, wanted)

    async def _write(self, write: Callable[..., None], *arguments: object, **options: object) -> None:
        """One after the other, as it happened. What cannot be written is only not known after a restart."""
        async with self._writing:
            try:
                await asyncio.to_thread(write, *arguments, **options)
            except StoreAway as failure:
                log.warning("what became of a node cannot be written down: %s", failure)


def _time_is_up(member: Member, now_s: float) -> bool:
    return member.departs_s is not None and now_s >= member.departs_s


def _not_found(name: str) -> ApiError:
    return ApiError("node_not_found", f"there is no node {name!r}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
