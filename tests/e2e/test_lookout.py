"""Calls that no byte tells anything of: streams far below their speed, and replies that a silent worker owes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from failing import ASKED, MESSAGES, QUICK, attempts, model
from pool import endpoint, gateway, until
from resumed import Pair, roles_in, same

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pool import Gateway

RARELY = {"interval_s": 3600, "timeout_s": 60}
OFTEN = {"interval_s": 0.5, "timeout_s": 0.5}
CALL: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "service_tier": "default"}
SPEEDY = WorkerSpec(decode_s_per_token=0.02)
SLOW = Fault("slow", factor=50, count=1)
"""A token a second."""


def two(first: SimWorker, second: SimWorker) -> dict[str, Any]:
    """The first is the cheaper one, so it is asked first."""
    served = model(endpoint(first, "first"), endpoint(second, "second"))
    return {"models": {"llama": served}, "health": RARELY}


async def moves(gw: Gateway) -> dict[tuple[str, str], float]:
    return await Pair(gw, None, None).resumes()  # type: ignore[arg-type]  # only its gateway is asked


async def test_a_stream_far_below_its_speed_goes_on_elsewhere_from_the_token_it_has_come_to(tmp_path: Path):
    async with SimWorker(SPEEDY) as first, SimWorker(SPEEDY) as second:
        async with gateway(tmp_path, **two(first, second)) as gw:
            both = Pair(gw, first, second)
            expected = await both.undisturbed(**CALL)
            first.order(SLOW)
            heard = await both.heard(**CALL)
            same(heard, expected)
            assert roles_in(heard) == ["assistant"]
            assert await both.resumes() == {("slow", "tokens"): 1}
            (row,) = await gw.rows()
            assert (row.outcome, row.endpoint, row.attempts, row.completion_tokens) == ("ok", "first", 2, 60)
            wrote = {
                share.endpoint: share.completion_tokens
                for share in await gw.shares()
                if share.charge_nano_usd
            }
            assert sum(wrote.values()) == 60
            assert 0 < wrote["first"] < 30 < wrote["second"]
            await until(lambda: nothing_runs(first))  # who was slow has been told to stop
            page = await gw.metrics()
            assert page['tidegate_endpoint_inflight{endpoint="first",model="llama"}'] == 0


async def nothing_runs(worker: SimWorker) -> bool:
    return not worker.engine.running


@pytest.mark.parametrize(
    ("more", "sections"),
    [({"routing": {"hedge": False}}, {}), ({}, {"hedge": False}), ({"service_tier": "flex"}, {})],
    ids=["the call says so", "it is switched off", "flex"],
)
async def test_a_slow_stream_stays_where_it_is_where_no_second_attempt_is_wanted(
    more: dict[str, Any], sections: dict[str, Any], tmp_path: Path
):
    async with SimWorker(SPEEDY) as first, SimWorker(SPEEDY) as second:
        async with gateway(tmp_path, **two(first, second), **sections) as gw:
            first.order(Fault("slow", factor=12, count=1))
            reply = await Pair(gw, first, second).heard(**CALL | {"max_tokens": 15} | more)
            assert "error" not in reply[-1]
            assert await moves(gw) == {}


async def test_where_nobody_can_go_on_with_it_a_slow_stream_comes_to_its_end_where_it_is(tmp_path: Path):
    async with SimWorker(SPEEDY) as first, SimWorker(SPEEDY) as second:
        async with gateway(tmp_path, **two(first, second)) as gw:
            both = Pair(gw, first, second)
            asked = CALL | {"max_tokens": 15}
            expected = await both.undisturbed(**asked)
            first.order(Fault("slow", factor=25, count=1))
            second.order(Fault("hang", path="/tokenize"))
            same(await both.heard(**asked), expected)
            assert second.faults.left().struck >= 1
            assert set(await moves(gw)) == {("slow", "failed")}
            (row,) = await gw.rows()
            assert (row.outcome, row.attempts, row.completion_tokens, row.waste_nano_usd) == ("ok", 1, 15, 0)


async def test_a_reply_that_an_unheard_worker_owes_is_had_elsewhere(tmp_path: Path):
    async with SimWorker(QUICK) as first, SimWorker(QUICK) as second:
        sections = two(first, second) | {"health": OFTEN}
        async with gateway(tmp_path, **sections) as gw:
            first.order(Fault("hang", path="/"))  # health checks as well
            began_s = time.monotonic()
            reply = await gw.client().chat.completions.create(**ASKED | {"service_tier": "default"})
            assert reply.choices[0].finish_reason == "length"
            assert time.monotonic() - began_s < 55  # `timeouts.total_s` is 600
            (row,) = await gw.rows()
            assert (row.outcome, row.attempts, row.endpoint) == ("ok", 2, "second")
            (lost, _) = sorted(await gw.shares(), key=lambda share: share.endpoint)
            assert (lost.endpoint, lost.purpose) == ("first", "late")


async def test_a_reply_that_takes_far_longer_than_such_replies_do_is_had_elsewhere_once(tmp_path: Path):
    steady = WorkerSpec(decode_s_per_token=0.25)
    asked = ASKED | {
        "messages": MESSAGES,
        "max_tokens": 6,
        "service_tier": "default",
        "extra_body": {"ignore_eos": True},
    }
    async with SimWorker(steady) as first, SimWorker(steady) as second:
        async with gateway(tmp_path, **two(first, second)) as gw:
            client = gw.client()
            await asyncio.gather(*[client.chat.completions.create(**asked) for _ in range(150)])
            first.order(Fault("hang", path="/v1/", count=1))
            reply = await client.chat.completions.create(**asked)
            assert reply.usage is not None
            assert reply.usage.completion_tokens == 6
            late = ("first", "upstream_first_byte_timeout"), ("second", "upstream_first_byte_timeout")
            found = attempts(await gw.metrics())
            assert sum(found.get(each, 0) for each in late) == 1


async def test_a_reply_that_nobody_else_could_give_is_waited_for(tmp_path: Path):
    async with (
        SimWorker(QUICK) as first,
        gateway(tmp_path, first, health=OFTEN, timeouts={"total_s": 8}) as gw,
    ):
        first.order(Fault("hang", path="/"))
        call = asyncio.create_task(gw.client().chat.completions.create(**ASKED | {"service_tier": "default"}))
        with pytest.raises(Exception, match="not done within the call's time"):
            await call
