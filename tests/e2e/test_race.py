"""Calls whose first token is late: a second attempt races the first, and whoever loses leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from failing import ASKED, QUICK, attempts, models, of_endpoint
from held import HeldWorker
from pool import endpoint, gateway, until

from loadtest.worker import Fault, SimWorker, WorkerSpec
from routing.hedging import FIRST_SAVED, SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pool import Gateway

RARELY = {"interval_s": 3600, "timeout_s": 60}
"""Health checks would open connections of their own."""
CALL = ASKED | {"service_tier": "default", "stream": True}
HANG = Fault(kind="hang", path="/v1/chat")


def two(first: Any, second: Any) -> dict[str, Any]:
    """The first is the cheaper one, so it is asked first."""
    return {
        "models": models(endpoint(first, "first"), endpoint(second, "second")),
        "health": RARELY,
        "timeouts": {"idle_connection_s": 0.2},
    }


async def answer(gw: Gateway, **more: Any) -> tuple[Mapping[str, str], str]:
    """Headers and text of a stream."""
    reply = await gw.client().chat.completions.with_raw_response.create(**CALL | more)
    return reply.headers, "".join([piece.choices[0].delta.content or "" async for piece in reply.parse()])


def hedges(page: Mapping[str, float]) -> dict[str, float]:
    """Second attempts by outcome, and calls that got none by reason."""
    return {
        name.partition('outcome="')[2].partition('"')[0] or name.partition('reason="')[2].partition('"')[0]: count
        for name, count in page.items()
        if name.startswith("tidegate_hedges")
    }  # fmt: skip


def shares(home: Path) -> dict[str, str]:
    """Who had which share of all calls in the database, by its purpose."""
    with closing(sqlite3.connect(home / "tidegate.db")) as connection:
        return dict(connection.execute("SELECT purpose, endpoint FROM usage_shares").fetchall())


async def nobody_is_at(gw: Gateway, *names: str) -> None:
    """Wait until the gateway has no call and no busy connection at these."""

    async def at_rest() -> bool:
        page = await gw.metrics()
        return all(of_endpoint(page, "inflight", name) == 0 for name in names)

    await until(at_rest)


async def reached(worker: SimWorker, calls: int = 1) -> None:
    async def here() -> bool:
        return len(worker.requests) >= calls

    await until(here)


async def is_left(worker: SimWorker) -> None:
    """Wait until it has no connection any more."""

    async def left() -> bool:
        return worker.stats.open_connections == 0

    await until(left)


async def test_where_the_first_worker_is_silent_the_second_answers_and_the_first_is_left_at_once(
    tmp_path: Path,
):
    async with (
        SimWorker() as first,
        SimWorker(QUICK) as second,
        gateway(tmp_path, **two(first, second)) as gw,
    ):
        first.order(HANG)
        headers, text = await answer(gw)
        assert text
        assert (headers["x-tidegate-endpoint"], headers["x-tidegate-hedged"]) == ("second", "true")
        assert headers["x-tidegate-attempts"] == "2"
        await is_left(first)
        (row,) = await gw.rows()
        page = await gw.metrics()
        assert hedges(page) == {"won": 1}
        assert attempts(page) == {("first", "abandoned"): 1, ("second", "ok"): 1}
        assert of_endpoint(page, "available", "first") == 1
        assert (row.endpoint, row.outcome, row.attempts) == ("second", "ok", 2)
        assert row.charge_nano_usd == 1000 * row.prompt_tokens + 2000 * row.completion_tokens
        assert shares(tmp_path) == {
            "answer": "second",
            "hedge_lost": "first",
        }


async def test_where_the_first_worker_answers_after_all_the_second_is_left_at_once(tmp_path: Path):
    first = HeldWorker()
    async with first, SimWorker() as second, gateway(tmp_path, **two(first, second)) as gw:
        second.order(HANG)
        call = asyncio.create_task(answer(gw, user="one"))
        await reached(second)
        first.answer("one")
        headers, text = await call
        assert (text, headers["x-tidegate-endpoint"], headers["x-tidegate-hedged"]) == (
            "high",
            "first",
            "true",
        )
        await is_left(second)
        (row,) = await gw.rows()
        assert (row.endpoint, row.attempts) == ("first", 2)
        assert shares(tmp_path) == {
            "answer": "first",
            "hedge_lost": "second",
        }
        page = await gw.metrics()
        assert hedges(page) == {"lost": 1}
        assert attempts(page) == {("first", "ok"): 1, ("second", "abandoned"): 1}


async def test_an_answer_in_time_is_nobodys_race(tmp_path: Path):
    async with (
        SimWorker(QUICK) as first,
        SimWorker(QUICK) as second,
        gateway(tmp_path, **two(first, second)) as gw,
    ):
        headers, _ = await answer(gw)
        assert (headers["x-tidegate-hedged"], headers["x-tidegate-attempts"]) == ("false", "1")
        assert hedges(await gw.metrics()) == {}
        assert not second.requests


async def test_where_the_first_dies_in_the_race_the_second_goes_on_alone(tmp_path: Path):
    second = HeldWorker()
    async with SimWorker() as first, second, gateway(tmp_path, **two(first, second)) as gw:
        first.order(HANG)
        call = asyncio.create_task(answer(gw, user="one"))
        await until(lambda: is_there(second, "one"))
        await first.__aexit__(None, None, None)

        async def is_known_to_be_dead() -> bool:
            return any(name == "first" for name, _ in attempts(await gw.metrics()))

        await until(is_known_to_be_dead)
        second.answer("one")
        headers, text = await call
        assert (text, headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == (
            "high",
            "second",
            "2",
        )
        assert hedges(await gw.metrics()) == {"won": 1}


async def is_there(worker: HeldWorker, name: str) -> bool:
    return name in worker.reached


async def test_where_the_second_fails_the_first_goes_on(tmp_path: Path):
    first = HeldWorker()
    async with first, SimWorker() as second, gateway(tmp_path, **two(first, second)) as gw:
        second.order(Fault(kind="status", status=500))
        call = asyncio.create_task(answer(gw, user="one"))

        async def has_failed() -> bool:
            return hedges(await gw.metrics()) == {"failed": 1}

        await until(has_failed)
        first.answer("one")
        headers, text = await call
        assert (text, headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == (
            "high",
            "first",
            "2",
        )


async def test_a_client_that_leaves_in_the_race_leaves_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with SimWorker() as first, SimWorker() as second, gateway(tmp_path, **two(first, second)) as gw:
        for worker in (first, second):
            worker.order(HANG)
        call = asyncio.create_task(answer(gw))
        await reached(second)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await is_left(first)
        await is_left(second)
        await nobody_is_at(gw, "first", "second")
        (row,) = await gw.rows()
        assert (row.outcome, row.charge_nano_usd >= 0, row.attempts) == ("client_left", True, 2)
        assert hedges(await gw.metrics()) == {"abandoned": 1}
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "hedge"]
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


NOT_RACED: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "that say so": ({"extra_body": {"routing": {"hedge": False}}}, {}),
    "of tier flex": ({"service_tier": "flex"}, {}),
    "whose price cap both would break": (
        {"extra_body": {"routing": {"max_price": {"input": 2.5}}}},
        {"price": 1},
    ),
}


@pytest.mark.parametrize("calls", NOT_RACED)
async def test_there_is_no_second_attempt_for_calls(tmp_path: Path, calls: str):
    more, suppressed = NOT_RACED[calls]
    first, second = HeldWorker(), HeldWorker()
    async with first, second, gateway(tmp_path, **two(first, second)) as gw:
        not_raced = asyncio.create_task(answer(gw, user="not raced", **more))
        await until(lambda: is_there(first, "not raced"))
        raced = asyncio.create_task(
            answer(gw, user="raced", extra_body={"routing": {"only": ["first", "second"]}})
        )
        # It came later: by now the one before it would have got its second attempt.
        await until(lambda: is_there(second, "raced"))

        async def is_late() -> bool:
            found = hedges(await gw.metrics())
            return {reason: found.get(reason) for reason in suppressed} == suppressed

        await until(is_late)
        for worker in (first, second):
            worker.answer("raced", "not raced")
        await raced
        headers, _ = await not_raced
        assert (headers["x-tidegate-hedged"], headers["x-tidegate-endpoint"]) == ("false", "first")
        assert "not raced" not in second.reached


async def test_hedging_can_be_switched_off(tmp_path: Path):
    first = HeldWorker()
    async with first, HeldWorker() as second, gateway(tmp_path, hedge=False, **two(first, second)) as gw:
        call = asyncio.create_task(answer(gw, user="one"))
        await until(lambda: is_there(first, "one"))
        await asyncio.sleep(0.3)
        first.answer("one")
        headers, _ = await call
        assert (headers["x-tidegate-hedged"], second.reached) == ("false", [])


async def test_when_all_workers_are_slow_second_attempts_stay_within_their_budget(tmp_path: Path):
    slow = WorkerSpec(prefill_tokens_per_s=60)
    calls = 60
    async with SimWorker(slow) as one, SimWorker(slow) as two_, SimWorker(slow) as three:
        listed = models(
            *(endpoint(worker, name) for name, worker in zip("abc", (one, two_, three), strict=True))
        )
        async with gateway(tmp_path, models=listed, health=RARELY) as gw:
            await asyncio.gather(*(answer(gw) for _ in range(calls)))
            found = hedges(await gw.metrics())
            begun = sum(found.get(outcome, 0) for outcome in ("won", "lost", "failed", "abandoned"))
            assert begun <= FIRST_SAVED + SHARE * calls
            assert sum(worker.stats.open_connections for worker in (one, two_, three)) <= calls
            assert {row.outcome for row in await gw.rows(calls)} == {"ok"}
