"""Whoever looks at one of several processes sees what all of them have under way."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx2
from gateway_process import LIMIT_S
from pool import NO_TLS
from test_processes import pids, rest, streams, two_processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from gateway_process import Gateway


class Look:
    """What has been told so far by one connection."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}
        self.tick: dict[str, Any] = {}
        self.fleet: dict[str, Any] = {}

    def count(self, **fields: Any) -> int:
        return sum(all(call[name] == value for name, value in fields.items()) for call in self.calls.values())


async def looks(gateway: Gateway) -> AsyncIterator[Look]:
    """After each event."""
    look, name = Look(), ""
    async with (
        httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S, verify=NO_TLS) as http,
        http.stream("GET", "/console/events?fleet=true&calls=true") as reply,
    ):
        async for line in reply.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                if name == "calls":
                    look.calls |= {call["id"]: call for call in json.loads(value)}
                else:
                    setattr(look, name, json.loads(value))
                yield look


async def until(looking: AsyncIterator[Look], true: Callable[[Look], bool]) -> Look:
    async with asyncio.timeout(LIMIT_S):
        async for look in looking:
            if true(look):
                return look
    raise AssertionError("the gateway tells no more")


async def test_calls_of_all_processes_are_seen_at_any_and_end_with_theirs(tmp_path: Path):
    async with two_processes(tmp_path) as (gateway, client, provider), aclosing(looks(gateway)) as looking:
        look = await until(looking, lambda look: look.tick.get("processes") == 2)
        begun: list[Any] = []
        while len({call["elsewhere"] for call in look.calls.values()}) < 2:  # one may take all of a dozen
            begun += await streams(client)
            look = await until(looking, lambda look: look.count(state="answering") == len(begun))  # noqa: B023 - used at once
        look = await until(looking, lambda look: look.tick["written"] == dict.fromkeys(look.calls, 1))
        assert look.tick["running"] == len(begun)
        look = await until(looking, lambda look: look.fleet["running"] == len(begun))
        assert look.fleet["processes"] == 2

        (other,) = {call["elsewhere"] for call in look.calls.values()} - {""}
        its = look.count(elsewhere=other)
        number = int(other.partition("-")[0])
        before = pids(gateway)[number]
        os.kill(before, signal.SIGKILL)
        await until(looking, lambda look: look.count(elsewhere=other, outcome="gateway_died") == its)
        await until(looking, lambda look: look.tick["running"] == len(begun) - its)

        # The one that takes its place is looked at as well, and what each has done is one figure.
        await until(looking, lambda look: look.tick["processes"] == 2 and pids(gateway)[number] != before)
        provider.may_end.set()
        begun += await streams(client)
        ends = [await rest(each) for each in begun]
        assert ends.count("broken") == its
        well = len(begun) - its
        await until(looking, lambda look: look.count(outcome="ok") == well)
        await until(looking, lambda look: look.fleet["endpoints"][0]["attempts"] == {"ok": well})
