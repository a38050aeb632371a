"""What is left of a race where its client leaves between two turns of the loop: nothing, whichever they are.

No test on sockets can aim at that. The fleet is real and not connected; answers come when the test says so.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from backends.fleet import Fleet, FleetSettings
from backends.worker import Access
from gateway.admission import Admission
from gateway.arrival import Arrival
from gateway.auth import Key
from gateway.cache_salt import CacheSalts
from gateway.catalog import Model
from gateway.meter import Meter
from gateway.openai import Request
from gateway.planning import Planner
from gateway.race import Race, Races
from gateway.telemetry import Telemetry
from routing.queue import QueueLimits
from routing.types import Call, Endpoint, Price, Tier

if TYPE_CHECKING:
    from routing.types import Candidate

FIRST, SECOND = Endpoint("first", "m", "m"), Endpoint("second", "m", "m")
CALL = Call("m", Tier("default", 5.0, 1000.0), 10)


class Opened:
    """An answer that has to be closed by whoever has it."""

    def __init__(self) -> None:
        self.closed = False

    def end(self, _: BaseException | None) -> None:
        self.closed = True


class Track:
    """One race of two, of which each answers when its gate opens."""

    def __init__(self) -> None:
        fleet = Fleet(
            {"m": [(each, Access(f"http://{each.name}")) for each in (FIRST, SECOND)]}, FleetSettings()
        )
        self.gates = {each.name: asyncio.get_running_loop().create_future() for each in (FIRST, SECOND)}
        self.opened: list[Opened] = []
        self.asked: list[str] = []
        races = _Willing(
            Planner(fleet, CacheSalts(b"")),
            fleet,
            Admission(fleet, QueueLimits(), 1.0, 1.0),
            Telemetry(),
            hedge=True,
        )
        plan = fleet.pool("m").plan(CALL, time.monotonic(), 0.5)
        self._by_name = {candidate.endpoint.name: candidate for candidate in plan.ranked}
        races.other = self._by_name["second"]
        arrival = Arrival("c", "r", Key("k", "t"), time.monotonic())
        self._meter = Meter(
            arrival, Request(api="chat", model="m", fields={}), Model("m", Price()), lambda _: None
        )
        self.races = races

    async def ask(self, candidate: Candidate) -> Opened:
        name = candidate.endpoint.name
        self.asked.append(name)
        self._meter.asked(candidate.endpoint)
        await self.gates[name]
        self.opened.append(Opened())
        return self.opened[-1]

    async def run(self) -> Opened:
        race = Race(self.races, self.races._fleet.pool("m").hedging, CALL, self._meter, self.ask, [])
        self.race = race
        return await race.run(self._by_name["first"])


class _Willing(Races):
    """Whoever is late gets a second attempt."""

    other: Candidate

    def second(self, race: Race, waited_s: float) -> Candidate | str:
        del race, waited_s
        return self.other


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("later", range(6))
@pytest.mark.parametrize("answers", [("first",), ("second",), ("first", "second"), ("second", "first")])
async def test_a_client_that_leaves_as_answers_come_leaves_none_of_them_open(
    answers: tuple[str, ...], later: int
):
    track = Track()
    task = asyncio.create_task(track.run())
    await turns(1)
    track.race.look(time.monotonic())
    await turns(1)
    assert track.asked == ["first", "second"]
    for name in answers:
        track.gates[name].set_result(None)
    await turns(later)
    task.cancel()
    await asyncio.wait((task,))
    await turns(5)
    kept = [] if task.cancelled() else [task.result()]
    assert [opened for opened in track.opened if not opened.closed] == kept
    assert asyncio.all_tasks() == {asyncio.current_task()}
