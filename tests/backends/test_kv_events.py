import logging
import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kv_publisher import Publisher, stored
from scripted import until

from backends.fleet import Fleet, FleetSettings
from backends.kv_check import SentCalls
from backends.kv_events import KvEvents, KvSource
from backends.worker import Access, Outgoing
from loadtest.worker import SimWorker
from routing.types import Call, Endpoint, Tier, Usage

zmq = pytest.importorskip("zmq", reason="no pyzmq here")
zmq_asyncio = pytest.importorskip("zmq.asyncio")
LIMIT_S = 30.0


def removed(*hashes: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU"}


CLEARED = {"type": "AllBlocksCleared"}


class Index:
    """What is thought of the worker's cache: a list of what it was told."""

    finds_cached = False

    def __init__(self) -> None:
        self.told: list[str] = []

    def restarted(self) -> None:
        self.told.append("empty")

    def trim(self, kv_tokens: int) -> None:
        self.told.append(f"at most {kv_tokens}")


@asynccontextmanager
async def followed(publisher: Publisher, *, replay: bool = True):
    index = Index()
    source = KvSource(publisher.events, publisher.replay if replay else None)
    events = KvEvents("w", source, index, SentCalls(), settle_s=0.0)
    context = zmq_asyncio.Context()
    try:
        async with events.running(context, judge_s=3600.0):
            await publisher.subscribed()
            yield events, index
    finally:
        context.destroy(linger=0)


async def holds(events: KvEvents, tokens: int | None) -> None:
    await until(lambda: events.held.tokens == tokens, LIMIT_S)


async def test_what_a_worker_stores_and_removes_is_known():
    async with Publisher() as publisher, followed(publisher) as (events, index):
        await publisher.publish(stored(1, 2), stored(3))
        await holds(events, 48)
        await publisher.publish(removed(2))
        await holds(events, 32)
        await publisher.publish(CLEARED)
        await holds(events, 0)
        assert index.told == ["empty"]
        assert publisher.asked_again == []


async def test_the_index_is_trimmed_only_by_events_that_are_believed():
    async with Publisher() as publisher, followed(publisher) as (events, index):
        await publisher.publish(stored(*range(100)))
        await publisher.publish(removed(1))
        await holds(events, 99 * 16)
        assert index.told == []
        events.check.believed = True
        await publisher.publish(removed(2))
        await holds(events, 98 * 16)
        assert index.told == [f"at most {98 * 16}"]


async def test_what_was_missed_is_asked_for_again():
    async with Publisher() as publisher, followed(publisher) as (events, _):
        await publisher.publish(stored(1))
        await holds(events, 16)
        await publisher.publish(stored(2), lose=True)
        await publisher.publish(stored(3), lose=True)
        await publisher.publish(stored(4))
        await holds(events, 64)
        assert publisher.asked_again == [1]
        assert events.gaps == 0


async def test_a_gateway_that_comes_late_learns_what_was_before():
    async with Publisher() as publisher:
        for block in range(200):
            await publisher.publish(stored(block))
        async with followed(publisher) as (events, _):
            await publisher.publish(stored(200))
            await holds(events, 201 * 16)
            assert publisher.asked_again == [0]


@pytest.mark.parametrize("replay", [True, False], ids=["no longer had", "nobody to ask"])
async def test_what_is_missed_for_good_leaves_nothing_known_until_the_cache_is_empty(*, replay: bool):
    async with Publisher() as publisher, followed(publisher, replay=replay) as (events, index):
        events.check.believed = True
        await publisher.publish(stored(1))
        await holds(events, 16)
        await publisher.publish(stored(2), lose=True)
        publisher.buffer.clear()
        await publisher.publish(stored(3))
        await holds(events, None)
        assert events.gaps == 1
        await publisher.publish(removed(3))
        await publisher.publish(CLEARED, stored(5))
        await holds(events, 16)
        assert index.told == ["empty"]


async def test_a_message_that_comes_twice_counts_once():
    async with Publisher() as publisher, followed(publisher) as (events, index):
        await publisher.publish(stored(1))
        await publisher.send(*publisher.buffer[0])
        await publisher.publish(stored(2))
        await holds(events, 32)
        await publisher.publish(removed(1))
        await holds(events, 16)
        assert index.told == []


async def test_a_worker_that_is_started_anew_has_an_empty_cache():
    async with Publisher() as publisher:
        ports = [int(address.rpartition(":")[2]) for address in (publisher.events, publisher.replay)]
        async with followed(publisher) as (events, index):
            await publisher.publish(stored(1, 2))
            await publisher.publish(stored(3))
            await holds(events, 48)
            await publisher.__aexit__()
            async with Publisher(*ports) as again:
                again.ts = publisher.ts + 1.0
                await again.subscribed()
                await again.publish(stored(7))
                await holds(events, 16)
                assert index.told == ["empty"]
                assert events.gaps == 0


async def test_events_of_an_unknown_format_are_said_aloud_and_leave_nothing_known(
    caplog: pytest.LogCaptureFixture,
):
    async with Publisher() as publisher, followed(publisher) as (events, index):
        await publisher.publish(stored(1))
        await holds(events, 16)
        await publisher.publish({"type": "Rearranged"})
        await holds(events, None)
        assert "KV events that are not understood" in caplog.text
        assert index.told == []


async def test_events_that_do_not_match_are_said_aloud_once_and_so_is_their_return(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "backends")
    async with Publisher() as publisher, followed(publisher) as (events, _):
        for _ in range(3):
            events.used(40_000, 0)
            await events.judge()
        assert events.check.mismatches == 2
        assert caplog.text.count("do not match the prompts sent there") == 1
        events.used(40_000, 10)
        await publisher.publish(stored(*range(10_000)))
        await holds(events, 160_000)
        await events.judge()
        await events.judge()
        assert events.check.believed
        assert caplog.text.count("match again") == 1


async def test_the_events_of_two_workers_that_are_mixed_up_are_found_out():
    call = Call("m", Tier("default", 5.0, 1e6), prompt_tokens=1)
    body = b'{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":1}'
    async with Publisher() as of_one, Publisher() as of_two, SimWorker() as one, SimWorker() as two:
        listed = [
            (Endpoint("one", "m", "sim", url=one.url), Access(one.url, kv_events=KvSource(of_two.events))),
            (Endpoint("two", "m", "sim", url=two.url), Access(two.url, kv_events=KvSource(of_one.events))),
        ]
        async with Fleet({"m": listed}, FleetSettings()) as fleet:
            await of_one.subscribed()
            await of_two.subscribed()
            asked, other = fleet.members
            for number in range(3):
                outgoing = Outgoing(
                    "/chat/completions", body, f"r{number}", stream=False, ends_s=time.monotonic() + 60
                )
                async with asked.attempt(outgoing, call) as attempt:
                    await attempt.reply.read_whole(1 << 20)
                    attempt.used(Usage(800, 0, 1))
                await of_one.publish(stored(*range(100 * number, 100 * number + 50), session_id=f"r{number}"))
            await until(lambda: other.kv_events.held.tokens == 150 * 16, LIMIT_S)
            reason = other.kv_events.check.judge(finds_cached=False)
            assert reason == "2400 tokens are of calls that were sent to other workers"
            silent = asked.kv_events.check
            assert silent.judge(finds_cached=False) is None
            assert "0 tokens stored where calls stored" in silent.judge(finds_cached=False)
