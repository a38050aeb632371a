"""Nodes that register over HTTP, and how any node leaves: by its own word, by an operator's, or without one.

A node is there for as long as its heartbeats renew its lease. While it is, its workers are endpoints of the fleet like those
of the configuration; the registry is one more source of them. What the database keeps of it, and why, says `node_store`.

Where several processes share the database (`shared`), a node speaks to any of them: each writes down what it hears, and looks
twice a second at what the others have written.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs
from pydantic import ValidationError

from backends.rounds import rounds
from gateway.config_file import Problem
from gateway.config_node import NodeSection, invalid
from gateway.config_policy import no_such_model
from gateway.database import StoreAway
from gateway.errors import ApiError
from gateway.fleet import access_of
from gateway.node import Leaving, Node
from gateway.node_store import SavedDeparture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from typing import Self

    from backends.fleet import Fleet, Listed
    from backends.member import Member
    from gateway.config import Config
    from gateway.node_store import NodeStore, SavedNode, Session

log = logging.getLogger(__name__)

REGISTERED = "registered"
"""The source of nodes that have registered."""
TICK_S = 0.5
"""Between two looks at leases and departures."""
LAG_S = 3.0
"""By so much later than the others a process may know what they have heard."""

KEY_IS_NOT_SHARED = (
    "several processes cannot share a node's key, which is never written down: configure the node instead"
)


class Nodes:
    def __init__(self, fleet: Fleet, config: Config, store: NodeStore, *, several: bool = False) -> None:
        """`several` where there are other processes of this gateway."""
        self._fleet = fleet
        self._store = store
        self._several = several
        self._shared = several or store.may_be_shared
        self._heard: dict[str, int] = {}
        """When those have been heard of of whom it is not written down yet."""
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
        self._take_departures(await asyncio.to_thread(self._store.departures))
        now_ms = _now_ms()
        for saved in await asyncio.to_thread(self._store.restore, now_ms):
            self._take_in(structs.replace(saved, heard_ms=now_ms))
        self._agree()
        self._announce()

    def _take_in(self, saved: SavedNode) -> None:
        """A node that is written down and not known, or not as it is now."""
        try:
            section = NodeSection.model_validate_json(saved.section)
        except ValidationError as error:
            log.warning("the node %s has to register again: %s", saved.name, error)
            return
        leaving = self._leaving.get(saved.name)
        ending = None if leaving is None else leaving.ending
        until_s = self._until_s(section, saved.heard_ms)
        self._nodes[saved.name] = Node(
            section, saved.section, until_s, saved.registered_ms, saved.heard_ms, ending, written=True
        )

    def _take_departures(self, saved: Sequence[SavedDeparture]) -> None:
        for departure in saved:
            at_s = time.monotonic() + (departure.leaves_ms - _now_ms()) / 1000
            leaving = Leaving(at_s, departure.draining, departure.leaves_ms, departure.own, written=True)
            self._leaving[departure.name] = leaving
            if departure.name in self._nodes:
                self._nodes[departure.name].ending = leaving.ending

    def _until_s(self, section: NodeSection, heard_ms: int) -> float:
        """When the lease of one ends that was heard of then."""
        heard_s = time.monotonic() - max(0, _now_ms() - heard_ms) / 1000
        return heard_s + self.lease_s(section) + (LAG_S if self._shared else 0.0)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Self]:
        """See who has gone, as long as the block runs."""
        await self.restore()
        async with rounds(lambda _: self._look(), TICK_S, "looking at leases of nodes"):
            yield self

    async def _look(self) -> None:
        if not await self._in_step():
            return  # what the others have heard cannot be known, so nobody can be said to be gone
        if self._leaving:
            self._announce()
        for name, ending in self._gone(time.monotonic()):
            await self._remove(name, ending)

    async def _in_step(self) -> bool:
        """Write down what was heard here, and take over what others have; False where the database is away."""
        if not self._shared:
            return True
        heard, self._heard = self._heard, {}
        async with self._writing:
            try:
                if heard:
                    await asyncio.to_thread(self._store.heard, heard)
                nodes = await asyncio.to_thread(self._store.nodes)
                departures = await asyncio.to_thread(self._store.departures)
            except StoreAway as failure:
                self._heard = heard | self._heard
                log.warning("the registry of nodes cannot be looked at: %s", failure)
                return False
            self._take_over({each.name: each for each in nodes}, {each.name: each for each in departures})
            return True

    def _take_over(self, nodes: Mapping[str, SavedNode], departures: Mapping[str, SavedDeparture]) -> None:
        """What is written down of nodes and of who leaves is what there is, but for what is not written down yet."""
        for name, leaving in list(self._leaving.items()):
            saved = departures.get(name)
            if leaving.written and (saved is None or saved.leaves_ms != leaving.leaves_ms):
                self._forget_departure(name)
        self._take_departures([each for name, each in departures.items() if name not in self._leaving])
        changed = False
        for name, node in list(self._nodes.items()):
            if node.written and name not in nodes:
                log.info("the node %s is gone, as another process says", name)
                del self._nodes[name]
                changed = True
        for name, there in nodes.items():
            known = self._nodes.get(name)
            if known is None or (known.written and known.text != there.section):
                self._take_in(there)
                changed = True
            elif there.heard_ms > known.heard_ms:
                known.heard_ms = there.heard_ms
                known.lease_until_s = self._until_s(known.section, there.heard_ms)
        if changed:
            self._agree()

    def _announce(self) -> None:
        """Tell it to those that do not know yet that they leave: found, configured or registered since it was said."""
        now_s = time.monotonic()
        for member in self.members():
            leaving = self._leaving.get(member.endpoint.name)
            if leaving is not None and member.departs_s is None:
                member.departure.announce(max(0.0, leaving.at_s - now_s), draining=leaving.draining)

    def find(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def leaving(self, name: str) -> Leaving | None:
        return self._leaving.get(name)

    def everywhere(self) -> tuple[Member, ...]:
        """All of the fleet, hosted endpoints too."""
        return self._fleet.members

    def members(self, name: str | None = None) -> list[Member]:
        """The workers of the fleet, or those of one node, whether it has registered, is configured or is only known to leave."""
        workers = [member for member in self._fleet.members if member.endpoint.kind == "worker"]
        if name is None:
            return workers
        found = [member for member in workers if member.endpoint.name == name]
        if not found and name not in self._nodes and name not in self._leaving:
            raise _not_found(name)
        return found

    def lease_s(self, section: NodeSection) -> float:
        return self._lease_s if section.lease_s is None else section.lease_s

    async def register(self, section: NodeSection) -> bool:
        """It is there, and is as it says; whether it was not there before. Raises ApiError."""
        self._check(section)
        if self._several and section.api_key:
            raise ApiError("invalid_value", KEY_IS_NOT_SHARED, param="api_key")
        if section.name not in self._nodes:
            await self._in_step()  # another process may know it
        known, now_ms = self._nodes.get(section.name), _now_ms()
        leaving = self._leaving.get(section.name)
        if known is not None and leaving is not None and leaving.own:
            await self._stays(section.name)
            leaving = None
        node = self._nodes[section.name] = Node(
            section,
            section.model_dump_json(exclude_none=True),
            self._until_s(section, now_ms),
            now_ms if known is None else known.registered_ms,
            now_ms,
            None if leaving is None else leaving.ending,
        )
        self._agree()
        self._announce()
        if known is None or known.section != section:
            text = None if section.api_key else node.text
            join = partial(self._store.joined, section.name, text, node.registered_ms, now_ms)
            written = await self._write(join, new=known is None)
            node.written = written and text is not None
        else:
            node.written = known.written
            self._heard[section.name] = now_ms
        if known is None:
            log.info("the node %s has registered for %s", section.name, ", ".join(section.models))
        return known is None

    async def heartbeat(self, name: str) -> Node:
        """It is still there. Raises ApiError where it has to register."""
        if name not in self._nodes:
            await self._in_step()  # it may have registered with another process just now
        node = self._nodes.get(name)
        if node is None:
            raise _not_found(name)
        node.heard_ms = self._heard[name] = _now_ms()
        node.lease_until_s = self._until_s(node.section, node.heard_ms)
        return node

    async def leave_in(self, name: str, seconds: float | None, *, draining: bool, own: bool) -> None:
        """It is going to leave; `own` where it says so itself. Raises ApiError."""
        seconds = self._drain_s if seconds is None else seconds
        if not any(each.endpoint.name == name for each in self.members()):
            await self._in_step()  # it may have registered with another process just now
        members = self.members(name)
        leaves_ms = _now_ms() + round(seconds * 1000)
        leaving = self._leaving[name] = Leaving(time.monotonic() + seconds, draining, leaves_ms, own)
        for member in members:
            member.departure.announce(seconds, draining=draining)
        if name in self._nodes:
            self._nodes[name].ending = leaving.ending
        log.info("the node %s leaves within %g s%s", name, seconds, ", and drains" if draining else "")
        written = await self._write(self._store.leaves, SavedDeparture(name, leaves_ms, draining, own))
        if written and self._leaving.get(name) is leaving:
            self._leaving[name] = structs.replace(leaving, written=True)

    async def stay(self, name: str) -> None:
        """It is not going to leave after all. Raises ApiError."""
        self.members(name)
        await self._stays(name)

    async def _stays(self, name: str) -> None:
        if self._forget_departure(name):
            await self._write(self._store.stays, name)

    def _forget_departure(self, name: str) -> bool:
        """Whether there was one."""
        known = self._leaving.pop(name, None) is not None
        for member in self._fleet.members:
            if member.endpoint.name == name:
                member.departure.cancel()
        if name in self._nodes:
            self._nodes[name].ending = None
        return known

    async def remove(self, name: str) -> None:
        """It leaves now: its running calls finish. Raises ApiError where it is not one that has registered."""
        if name not in self._nodes:
            if self.members(name):
                raise ApiError(
                    "node_conflict", f"{name} is not registered: it is taken out where it is known from"
                )
            raise _not_found(name)
        self._leaving.pop(name, None)
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
            elif node.ending == "preempted" and all(
                now_s >= (member.departs_s or now_s) for member in members
            ):
                found.append((name, node.ending))
        return found

    def _registered(self, name: str) -> list[Member]:
        return [
            member
            for member in self._fleet.members
            if member.endpoint.name == name and member.source == REGISTERED
        ]

    async def _remove(self, name: str, ending: str) -> None:
        node = self._nodes.pop(name, None)
        if node is None:
            return
        level = logging.WARNING if ending == "lease_lost" else logging.INFO
        log.log(level, "the node %s is gone: %s", name, ending.replace("_", " "))
        leaving = self._leaving.get(name)
        if leaving is not None and leaving.own:
            del self._leaving[name]
        self._agree()
        # Only of one who was not heard of is it to be asked whether somebody else has.
        heard_ms = node.heard_ms if ending == "lease_lost" else _now_ms()
        left = partial(self._store.left, name, ending, _now_ms(), node.registered_ms, heard_ms)
        await self._write(left, forget=name not in self._leaving)

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

    async def _write(self, write: Callable[..., None], *arguments: object, **options: object) -> bool:
        """One after the other, as it happened. What cannot be written is only not known after a restart, nor to others."""
        async with self._writing:
            try:
                await asyncio.to_thread(write, *arguments, **options)
            except StoreAway as failure:
                log.warning("what became of a node cannot be written down: %s", failure)
                return False
            return True


def _not_found(name: str) -> ApiError:
    return ApiError("node_not_found", f"there is no node {name!r}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
