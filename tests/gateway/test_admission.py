"""Calls whose client leaves, or that are sent back, at the very moment at which something else happens to them.

All of it happens between two turns of the loop, which no test on sockets can aim at. The fleet is real and not connected.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from msgspec import Raw

from backends.base import ReplyBroken
from backends.fleet import Fleet, FleetSettings, Member
from backends.lane import LaneLimits
from backends.worker import Access
from gateway.admission import Admission, Place
from gateway.arrival import Arrival
from gateway.auth import Key
from gateway.catalog import Model
from gateway.meter import Meter
from gateway.openai import Request
from gateway.resuming import Resume
from routing.queue import QueueLimits
from routing.types import Call, Endpoint, Price, Tier, TierName

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 60.0


class Waiter:
    """What admission sees of a client."""

    stopping = False
    queued = False


class Hall:
    """One endpoint that takes one call at a time, and who wants to go there."""

    def __init__(self) -> None:
        endpoint = Endpoint("w", "m", "m")
        settings = FleetSettings(lane=LaneLimits(connections=1))
        self.fleet = Fleet({"m": [(endpoint, Access("http://127.0.0.1:1"))]}, settings)
        self.member: Member = self.fleet.member(endpoint)
        self.admission = Admission(self.fleet, QueueLimits(), PATIENCE_S, PATIENCE_S)
        self.went: list[str] = []

    def place(self, name: str, tier: TierName = "default") -> Place:
        call = Call("m", Tier(tier, PATIENCE_S, 0.0), 10, tenant=name)
        plan = self.fleet.pool("m").plan(call, time.monotonic(), 0.5)
        arrival = Arrival(name, name, Key("k", name), time.monotonic())
        meter = Meter(arrival, Request(api="chat", model="m", fields={}), Model("m", Price()), lambda _: None)
        return Place(self.admission, plan, call, arrival, Waiter(), meter, watched=True)

    async def go(self, place: Place, answer: asyncio.Future[None] | None = None) -> None:
        """What `Dispatch` does: in by turns, until the block has not been given up."""
        while True:
            async with place as plan:
                run = self.member.begin(place.call, time.monotonic())
                try:
                    assert plan.ranked
                    self.went.append(place.call.tenant)
                    if answer is not None:
                        await answer
                finally:
                    run.ended(time.monotonic())
                return

    def nothing_is_left(self) -> bool:
        admission = self.admission
        return (
            admission.waiting == len(admission.queue) == self.member.inflight == 0
            and not admission._places
            and not admission.may_be_sent_back
        )


@pytest.fixture
def hall() -> Hall:
    return Hall()


async def until(condition: Callable[[], object]) -> None:
    """Nothing here takes time, only turns of the loop."""
    while not condition():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)


async def test_who_leaves_as_its_turn_comes_leaves_nothing_and_the_next_goes(hall: Hall):
    busy = hall.member.begin(hall.place("busy").call, time.monotonic())
    leaving = hall.place("leaving")
    tasks = [asyncio.create_task(hall.go(leaving))]
    await until(lambda: hall.admission.waiting)
    tasks.append(asyncio.create_task(hall.go(hall.place("next"))))
    await until(lambda: hall.admission.waiting == 2)
    busy.ended(time.monotonic())
    hall.admission._let_go()
    assert leaving.turn.done()
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    async with asyncio.timeout(PATIENCE_S):
        await tasks[1]
    assert hall.went == ["next"]
    assert hall.nothing_is_left()


async def test_whose_turn_comes_as_it_leaves_leaves_nothing(hall: Hall):
    busy = hall.member.begin(hall.place("busy").call, time.monotonic())
    task = asyncio.create_task(hall.go(hall.place("leaving")))
    await until(lambda: hall.admission.waiting)
    task.cancel()
    busy.ended(time.monotonic())
    hall.admission._let_go()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hall.went == []
    assert hall.nothing_is_left()


async def test_a_flex_call_sent_back_as_its_answer_comes_goes_again(hall: Hall):
    answer = asyncio.get_running_loop().create_future()
    flex = hall.place("flex", "flex")
    task = asyncio.create_task(hall.go(flex, answer))
    await until(lambda: hall.went)
    answer.set_result(None)
    assert flex.send_back()
    assert not flex.send_back()
    async with asyncio.timeout(PATIENCE_S):
        await task
    assert hall.went == ["flex", "flex"]
    assert hall.nothing_is_left()


@pytest.mark.parametrize("first", ["its client leaves", "it is sent back"])
async def test_a_flex_call_whose_client_leaves_as_it_is_sent_back_is_over(hall: Hall, first: str):
    never = asyncio.get_running_loop().create_future()
    flex = hall.place("flex", "flex")
    task = asyncio.create_task(hall.go(flex, never))
    await until(lambda: hall.went)
    for step in (
        (task.cancel, flex.send_back) if first == "its client leaves" else (flex.send_back, task.cancel)
    ):
        step()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hall.went == ["flex"]
    assert hall.nothing_is_left()


async def test_a_flex_call_is_not_sent_back_once_it_has_its_answer(hall: Hall):
    flex = hall.place("flex", "flex")
    await hall.go(flex)
    assert hall.admission.may_be_sent_back == {}
    assert asyncio.current_task().cancelling() == 0


async def test_an_answer_that_goes_on_waits_like_a_call_that_comes_now(hall: Hall):
    busy = hall.member.begin(hall.place("busy").call, time.monotonic())
    waiting = asyncio.create_task(hall.go(hall.place("waiting")))
    await until(lambda: hall.admission.waiting)
    going = hall.place("going")
    arrival = Arrival("a", "r", Key("k", "going"), time.monotonic() - 2 * PATIENCE_S)
    catalog = SimpleNamespace(limits=SimpleNamespace(attempts=1))
    resuming = SimpleNamespace(catalog=catalog, admission=hall.admission, fleet=hall.fleet)
    request = Request(api="chat", model="m", fields={"messages": Raw(b"[]")})
    serving = SimpleNamespace(arrival=arrival, meter=going._meter, client=Waiter())
    resume = Resume(resuming, serving, request)
    nobody = SimpleNamespace(ways=(), failure=ReplyBroken())
    plan = hall.fleet.pool("m").plan(going.call, time.monotonic(), 0.5)
    again = asyncio.create_task(resume._in_turn(None, nobody, going.call, plan))
    await until(lambda: hall.admission.waiting == 2)
    hall.admission._tick()
    assert hall.admission.waiting == 2
    await asyncio.sleep(0)
    assert not again.done()
    busy.ended(time.monotonic())
    hall.admission._let_go()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(waiting, again)
    assert hall.nothing_is_left()
