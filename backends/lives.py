"""What goes on beside the calls of each member of the fleet, for as long as it is one.

A member is checked, scraped and its KV events are followed from when it joins until it leaves. Then its running calls go
on by themselves, and its connections are closed when the last of them has ended. Each life is a task; none of them, nor
anything that it has opened, outlives the block of all.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from backends.discovery import follow_name, is_address
from backends.health import watch
from backends.kv_events import JUDGE_S
from backends.probe import probing
from backends.rounds import rounds
from backends.scrape import scraping
from backends.sweep import Sweep

if TYPE_CHECKING:
    from backends.fleet import FleetSettings
    from backends.lane import Lane
    from backends.member import Member

log = logging.getLogger(__name__)


class Lives:
    def __init__(self, settings: FleetSettings) -> None:
        self._settings = settings
        self._unborn: list[Member] = []
        """Those that joined before the block was entered."""
        self._tasks: dict[Member, asyncio.Task[None]] | None = None
        self._lanes: dict[Lane, None] = {}
        self._kv_context: Any = None

    @property
    def running(self) -> bool:
        """Whether the block is entered, so that a life begins at once."""
        return self._tasks is not None

    def begin(self, member: Member) -> None:
        """It has joined."""
        if self._tasks is None:
            self._unborn.append(member)
            return
        name = f"life of {member.endpoint.name}"
        task = self._tasks[member] = asyncio.create_task(self._live(member), name=name)
        task.add_done_callback(lambda _: self._ended(member))

    async def __aenter__(self) -> Self:
        self._tasks = {}
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(Sweep(lambda: list(self._lanes)))
        for member in self._unborn:
            self.begin(member)
        self._unborn.clear()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks = list((self._tasks or {}).values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._kv_context is not None:
            self._kv_context.destroy(linger=0)
        await self._stack.aclose()

    def _ended(self, member: Member) -> None:
        task = self._tasks.pop(member) if self._tasks is not None else None
        if task is not None and not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s is not watched any more", member.endpoint.name, exc_info=error)

    async def _live(self, member: Member) -> None:
        async with AsyncExitStack() as stack:
            stack.callback(member.departure.forget)
            if member.lane is not None:
                self._lanes[member.lane] = None
                stack.callback(self._lanes.pop, member.lane)
                stack.push_async_callback(member.lane.close)
            async with AsyncExitStack() as watching:
                await self._watch(member, watching)
                await member.left.wait()
            await member.idle()

    async def _watch(self, member: Member, watching: AsyncExitStack) -> None:
        settings, lane = self._settings, member.lane
        if member.endpoint.kind == "worker":
            if lane is not None and not is_address(lane.origin.host):
                host = lane.origin.host
                await watching.enter_async_context(
                    rounds(lambda _: follow_name(lane), settings.resolve_s, f"resolving {host}")
                )
            timeout_s = settings.health_timeout_s
            await watching.enter_async_context(watch(member, settings.health_interval_s, timeout_s))
            await watching.enter_async_context(scraping(member, settings.scrape_interval_s, timeout_s))
        if member.ejection.on_probation:
            await watching.enter_async_context(
                probing(member, settings.health_timeout_s, settings.probe_answer_s)
            )
        if member.kv_events is not None:
            await watching.enter_async_context(member.kv_events.running(self._kv(), JUDGE_S))

    def _kv(self) -> Any:
        """The one context of all subscriptions."""
        if self._kv_context is None:
            import zmq.asyncio  # noqa: PLC0415 - an extra, loaded where events are followed

            self._kv_context = zmq.asyncio.Context()
        return self._kv_context
