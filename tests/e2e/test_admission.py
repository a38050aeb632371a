"""Calls that wait for an endpoint, flex calls that give way, and calls for which there is no place."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import attempts, hosted, model
from held import HeldWorker
from pool import LIMIT_S, endpoint, gateway, until

from gateway.admission import MOST_TIMES_SENT_BACK
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from openai import AsyncOpenAI
    from pool import Gateway

LONG = "tide " * 80_000
"""A prompt that a worker is expected to read for most of a minute."""
RARELY = {"interval_s": 3600, "timeout_s": 60}
ONE_AT_A_TIME: dict[str, Any] = {"health": RARELY, "limits": {"connections_per_endpoint": 1}}
PATIENT: dict[str, Any] = {
    "queue": {"max_wait_s": LIMIT_S},
    "tiers": {"default": {"max_ttft_ms": 1000 * LIMIT_S}, "priority": {"max_ttft_ms": 1000 * LIMIT_S}},
}

Answered = tuple["Mapping[str, str]", str]


class Callers:
    """Those who call, each by a name of its own."""

    def __init__(self, gw: Gateway, client: AsyncOpenAI) -> None:
        self.gw = gw
        self.calls: dict[str, asyncio.Task[Answered]] = {}
        self._client = client

    async def call(
        self,
        name: str,
        tier: str,
        prompt: str = "Why?",
        *,
        client: AsyncOpenAI | None = None,
        **more: Any,
    ) -> asyncio.Task[Answered]:
        self.calls[name] = asyncio.create_task(
            self._answered(client or self._client, user=name, service_tier=tier, prompt=prompt, **more)
        )
        return self.calls[name]

    async def reaches(
        self, worker: HeldWorker, name: str, tier: str, prompt: str = "Why?", **more: Any
    ) -> None:
        """Make a call, and wait until it is with the worker."""
        before = len(worker.reached)
        await self.call(name, tier, prompt, **more)
        await reached(worker, before + 1)

    async def waits(self, name: str, tier: str, prompt: str = "Why?", **more: Any) -> asyncio.Task[Answered]:
        """Make a call, and wait until it waits in the queue."""
        before = (await self.gw.metrics())[depth(tier)]
        call = await self.call(name, tier, prompt, **more)
        await self.until_metric(depth(tier), before + 1)
        return call

    async def until_metric(self, name: str, value: float) -> None:
        async def is_so() -> bool:
            return (await self.gw.metrics()).get(name) == value

        await until(is_so)

    async def endpoint_of(self, name: str) -> str:
        return (await self.calls[name])[0]["x-tidegate-endpoint"]

    async def all(self) -> None:
        await asyncio.gather(*self.calls.values())

    @staticmethod
    async def _answered(client: AsyncOpenAI, prompt: str, **fields: Any) -> Answered:
        fields = {"model": "llama", "max_tokens": 8, "stream": True, **fields}
        messages = [{"role": "user", "content": prompt}]
        reply = await client.chat.completions.with_raw_response.create(messages=messages, **fields)
        if not fields["stream"]:
            return reply.headers, reply.parse().choices[0].message.content
        pieces = [piece.choices[0].delta.content or "" async for piece in reply.parse() if piece.choices]
        return reply.headers, "".join(pieces)


def depth(tier: str) -> str:
    return f'tidegate_queue_calls{{tier="{tier}"}}'


def shed(reason: str) -> str:
    return f'tidegate_queue_shed_total{{reason="{reason}"}}'


SENT_BACK = 'tidegate_flex_sent_back_total{model="llama"}'


@asynccontextmanager
async def callers(home: Path, *workers: Any, **sections: Any) -> AsyncIterator[Callers]:
    async with gateway(home, *workers, **{"health": RARELY, **sections}) as gw:
        made = Callers(gw, gw.client())
        try:
            yield made
        finally:
            for call in made.calls.values():
                call.cancel()
            await asyncio.gather(*made.calls.values(), return_exceptions=True)


async def reached(worker: HeldWorker, calls: int) -> None:
    async def here() -> bool:
        return len(worker.reached) >= calls

    await until(here)


async def left(worker: HeldWorker, *names: str) -> None:
    """Wait until these have left the worker, and nobody else has."""

    async def gone() -> bool:
        return len(worker.left) >= len(names)

    await until(gone)
    assert worker.left == list(names)


async def refused(call: asyncio.Task[Answered]) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        await call
    return raised.value


@pytest.mark.parametrize("how", ["stream", "whole"])
async def test_flex_waits_while_a_worker_reads_the_prompts_of_others_and_then_goes(tmp_path: Path, how: str):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "tide", "default", LONG)
        flex = await made.waits("ebb", "flex", stream=how == "stream")
        assert worker.reached == ["tide"]
        worker.answer("tide", "ebb")
        headers, text = await flex
        assert text == "high"
        assert headers["x-tidegate-tier"] == "flex"
        assert float(headers["x-tidegate-queued-ms"]) > float(headers["x-tidegate-overhead-ms"])
        assert "x-tidegate-queued-ms" not in (await made.calls["tide"])[0]
        page = await made.gw.metrics()
        assert (page[depth("flex")], page['tidegate_queue_wait_seconds_count{tier="flex"}']) == (0, 1)
        assert [row.outcome for row in await made.gw.rows(2)] == ["ok", "ok"]


async def test_flex_goes_at_once_where_a_worker_has_nothing_to_do(tmp_path: Path):
    async with HeldWorker() as busy, HeldWorker() as idle, callers(tmp_path, busy, idle) as made:
        only = {"extra_body": {"routing": {"only": ["worker-1"]}}}
        await made.reaches(busy, "tide", "default", LONG, **only)
        idle.answer("ebb")
        headers, _ = await (await made.call("ebb", "flex"))
        assert headers["x-tidegate-endpoint"] == "worker-2"
        assert "x-tidegate-queued-ms" not in headers


@pytest.mark.parametrize("how", ["stream", "whole"])
async def test_flex_gives_way_before_its_first_byte_and_goes_again(tmp_path: Path, how: str):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "ebb", "flex", LONG, stream=how == "stream")
        await made.reaches(worker, "tide", "default", LONG)
        await made.until_metric(depth("flex"), 1)
        await left(worker, "ebb")
        assert worker.reached == ["ebb", "tide"]
        worker.answer("tide", "ebb")
        headers, _ = await made.calls["ebb"]
        assert (headers["x-tidegate-attempts"], "x-tidegate-queued-ms" in headers) == ("2", True)
        assert worker.reached == ["ebb", "tide", "ebb"]
        page = await made.gw.metrics()
        assert page[SENT_BACK] == 1
        assert attempts(page) == {("worker-1", "abandoned"): 1, ("worker-1", "ok"): 2}
        assert page['tidegate_endpoint_available{endpoint="worker-1",model="llama"}'] == 1
        ebb, tide = await made.gw.rows(2)
        assert (ebb.tier, ebb.outcome, ebb.attempts, tide.attempts) == ("flex", "ok", 2, 1)
        assert ebb.charge_nano_usd == 1000 * ebb.prompt_tokens + 2000 * ebb.completion_tokens


async def test_of_several_flex_calls_the_youngest_gives_way(tmp_path: Path):
    async with HeldWorker() as one, HeldWorker() as two:
        async with callers(tmp_path, one, two, **ONE_AT_A_TIME, **PATIENT) as made:
            for worker, name, where in ((two, "older", "worker-2"), (one, "younger", "worker-1")):
                only = {"extra_body": {"routing": {"only": [where]}}}
                await made.reaches(worker, name, "flex", **only)
            await made.call("tide", "default")
            await left(one, "younger")
            await reached(one, 2)
            assert (one.reached, two.left) == (["younger", "tide"], [])


async def test_flex_gives_way_so_many_times_and_then_keeps_its_place(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "ebb", "flex")
        for turn in range(MOST_TIMES_SENT_BACK):
            await made.reaches(worker, f"tide-{turn}", "default")
            await made.until_metric(depth("flex"), 1)
            worker.answer(f"tide-{turn}")
            await reached(worker, 2 * turn + 3)
        await made.waits("last", "default")
        worker.answer("ebb", "last")
        await made.all()
        assert worker.reached[-2:] == ["ebb", "last"]
        await left(worker, *["ebb"] * MOST_TIMES_SENT_BACK)
        assert (await made.gw.metrics())[SENT_BACK] == MOST_TIMES_SENT_BACK


async def test_flex_whose_stream_has_begun_gives_way_to_nobody(tmp_path: Path):
    async with SimWorker(WorkerSpec()) as worker, callers(tmp_path, worker) as made:
        endless = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}
        stream = await made.gw.client().chat.completions.create(
            model="llama",
            messages=[{"role": "user", "content": "Why?"}],
            service_tier="flex",
            stream=True,
            **endless,
        )
        await anext(stream)
        await (await made.call("tide", "default", "tide " * 2000))
        await anext(stream)
        await stream.close()
        assert SENT_BACK not in await made.gw.metrics()


async def test_flex_that_is_no_stream_gives_way_only_as_long_as_its_prompt_may_be_read(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "ebb", "flex", stream=False)
        await asyncio.sleep(0.2)  # by far longer than a prompt of one word takes
        await made.reaches(worker, "tide", "default", LONG)
        await made.reaches(worker, "wave", "default")
        assert worker.left == []
        worker.answer("ebb", "tide", "wave")
        await made.all()
        assert SENT_BACK not in await made.gw.metrics()


async def test_flex_that_waits_is_passed_by_calls_of_other_tiers(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "tide", "default", LONG)
        await made.waits("ebb", "flex")
        worker.answer("wave", "foam")
        await (await made.call("wave", "default"))
        await (await made.call("foam", "priority"))
        assert worker.reached == ["tide", "wave", "foam"]
        assert (await made.gw.metrics())[depth("flex")] == 1


async def test_waiting_calls_go_by_tier(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "now", "default")
        for name in ("flex", "default", "priority"):
            await made.waits(name, name)
        worker.answer("now", "flex", "default", "priority")
        await made.all()
        assert worker.reached == ["now", "priority", "default", "flex"]


async def test_the_flex_floods_of_two_tenants_take_turns(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME) as made:
        other = made.gw.client(await made.gw.new_key("lagoon"))
        await made.reaches(worker, "now", "default")
        for name in ("a1", "a2", "a3", "a4"):
            await made.waits(name, "flex")
        for name in ("b1", "b2"):
            await made.waits(name, "flex", client=other)
        worker.answer(*made.calls)
        await made.all()
        assert worker.reached == ["now", "a1", "b1", "a2", "b2", "a3", "a4"]


async def test_a_call_that_is_not_flex_waits_a_moment_for_a_worker_that_is_only_busy(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "now", "default")
        await made.waits("next", "default")
        worker.answer("now", "next")
        headers, _ = await made.calls["next"]
        assert float(headers["x-tidegate-queued-ms"]) > 0


async def test_a_call_that_is_not_flex_waits_no_longer_than_it_may(tmp_path: Path):
    sections = {**ONE_AT_A_TIME, "queue": {"max_wait_s": 1}}
    async with HeldWorker() as worker, callers(tmp_path, worker, **sections) as made:
        await made.reaches(worker, "now", "default")
        error = await refused(await made.call("next", "default"))
        assert (error.status_code, error.code) == (503, "overloaded")
        assert int(error.response.headers["retry-after"]) >= 1
        assert (await made.gw.metrics())[shed("waited_too_long")] == 1
        assert worker.reached == ["now"]


async def test_flex_in_the_way_at_the_limit_of_connections_gives_way(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, **ONE_AT_A_TIME, **PATIENT) as made:
        await made.reaches(worker, "ebb", "flex")
        await made.call("tide", "default")
        await reached(worker, 2)
        await left(worker, "ebb")
        assert worker.reached == ["ebb", "tide"]
        worker.answer("ebb", "tide")
        await made.all()


async def test_flex_waits_no_longer_than_its_target(tmp_path: Path):
    tiers = {"flex": {"max_ttft_ms": 100}}
    async with HeldWorker() as worker, callers(tmp_path, worker, tiers=tiers) as made:
        await made.reaches(worker, "tide", "default", LONG)
        error = await refused(await made.call("ebb", "flex"))
        assert (error.status_code, error.code) == (503, "overloaded")
        assert [row.outcome for row in await _after(made, "tide", worker)] == ["ok", "overloaded"]


async def _after(made: Callers, name: str, worker: HeldWorker) -> Any:
    worker.answer(name)
    await made.calls[name]
    return await made.gw.rows(len(made.calls))


async def test_a_call_that_fits_only_where_there_is_no_room_is_in_nobodys_way(tmp_path: Path):
    async with HeldWorker() as small, HeldWorker() as large:
        listed = model(endpoint(small, "small", context_tokens=1000), endpoint(large, "large"))
        async with callers(tmp_path, models={"llama": listed}) as made:
            await made.reaches(large, "tide", "default", LONG)
            await made.waits("long", "flex", LONG)
            await made.reaches(small, "short", "flex")
            small.answer("short")
            assert await made.endpoint_of("short") == "small"
            large.answer("tide", "long")
            assert await made.endpoint_of("long") == "large"


async def test_the_time_of_a_call_includes_its_wait(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker, timeouts={"total_s": 2}) as made:
        await made.reaches(worker, "tide", "default", LONG)
        await made.waits("ebb", "flex")
        for name in ("tide", "ebb"):
            error = await refused(made.calls[name])
            assert (error.status_code, error.code) == (504, "call_timeout")


ONLY_WORKER = {"extra_body": {"routing": {"only": ["worker-1"]}}}


def with_provider(worker: HeldWorker, provider: HeldWorker) -> dict[str, Any]:
    listed = model(endpoint(worker), hosted(int(provider.url.rpartition(":")[2]), "provider"))
    return {"models": {"llama": listed}}


async def test_flex_waits_for_a_busy_worker_rather_than_go_to_a_dearer_provider(tmp_path: Path):
    async with HeldWorker() as worker, HeldWorker() as provider:
        async with callers(tmp_path, **with_provider(worker, provider)) as made:
            await made.reaches(worker, "tide", "default", LONG, **ONLY_WORKER)
            await made.waits("ebb", "flex")
            worker.answer("tide", "ebb")
            assert await made.endpoint_of("ebb") == "worker-1"
            assert provider.reached == []


async def test_flex_goes_to_a_provider_where_the_workers_would_be_too_late(tmp_path: Path):
    async with HeldWorker() as worker, HeldWorker() as provider:
        tiers = {"flex": {"max_ttft_ms": 2000}}
        async with callers(tmp_path, **with_provider(worker, provider), tiers=tiers) as made:
            await made.reaches(worker, "tide", "default", LONG, **ONLY_WORKER)
            provider.answer("ebb")
            await made.call("ebb", "flex")
            assert await made.endpoint_of("ebb") == "provider"


async def test_flex_at_the_end_of_its_patience_goes_to_a_provider_rather_than_nowhere(tmp_path: Path):
    sections = {**ONE_AT_A_TIME, "tiers": {"flex": {"max_ttft_ms": 1500}}}
    async with HeldWorker() as worker, HeldWorker() as provider:
        async with callers(tmp_path, **with_provider(worker, provider), **sections) as made:
            await made.reaches(worker, "tide", "default", **ONLY_WORKER)
            provider.answer("ebb")
            headers, _ = await (await made.call("ebb", "flex"))
            assert headers["x-tidegate-endpoint"] == "provider"
            assert float(headers["x-tidegate-queued-ms"]) >= 1000
            assert worker.reached == ["tide"]


async def test_a_tenant_with_its_share_of_calls_waiting_gets_a_429_and_others_none(tmp_path: Path):
    queue = {"calls": 3, "calls_per_tenant": 2}
    async with HeldWorker() as worker, callers(tmp_path, worker, queue=queue) as made:
        other = made.gw.client(await made.gw.new_key("lagoon"))
        await made.reaches(worker, "tide", "default", LONG)
        for name in ("a1", "a2"):
            await made.waits(name, "flex")
        error = await refused(await made.call("a3", "flex"))
        assert isinstance(error, openai.RateLimitError)
        assert (error.code, int(error.response.headers["retry-after"]) >= 1) == (
            "queue_full_for_tenant",
            True,
        )
        await made.waits("b1", "flex", client=other)
        worker.answer("tide", "a1", "a2", "b1")
        del made.calls["a3"]
        await made.all()
        assert (await made.gw.metrics())[shed("queue_full_for_tenant")] == 1


async def test_a_full_queue_sheds_the_last_call_of_whoever_has_most_in_the_lowest_tier(tmp_path: Path):
    sections = {**ONE_AT_A_TIME, **PATIENT, "queue": {"calls": 2, "max_wait_s": LIMIT_S}}
    async with HeldWorker() as worker, callers(tmp_path, worker, **sections) as made:
        await made.reaches(worker, "now", "default")
        for name in ("a1", "a2"):
            await made.waits(name, "flex")
        error = await refused(await made.call("a3", "flex"))
        assert (error.status_code, error.code) == (503, "overloaded")
        other = made.gw.client(await made.gw.new_key("lagoon"))
        await made.call("b1", "flex", client=other)
        error = await refused(made.calls["a2"])
        assert (error.status_code, error.code) == (503, "overloaded")
        for name in ("a2", "a3"):
            del made.calls[name]
        await made.waits("more", "default")
        lost = (await asyncio.wait((made.calls["a1"], made.calls["b1"]), return_when="FIRST_COMPLETED"))[0]
        assert [(await refused(call)).code for call in lost] == ["overloaded"]
        assert (await made.gw.metrics())[shed("queue_full")] == 3


async def test_a_client_that_leaves_the_queue_is_gone_from_it_at_once(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await made.reaches(worker, "tide", "default", LONG)
        call = await made.waits("ebb", "flex")
        call.cancel()
        await made.until_metric(depth("flex"), 0)
        worker.answer("tide")
        await made.calls["tide"]
        tide, ebb = await made.gw.rows(2)
        assert (tide.outcome, ebb.outcome, ebb.status, ebb.attempts) == ("ok", "client_left", 499, 0)
        assert (ebb.charge_nano_usd, ebb.prompt_tokens) == (0, 0)
        assert worker.reached == ["tide"]


async def test_sigterm_tells_waiting_calls_at_once_and_lets_running_ones_finish(tmp_path: Path):
    async with HeldWorker() as worker, AsyncExitStack() as clients:
        async with gateway(tmp_path, worker, health=RARELY, timeouts={"drain_s": LIMIT_S}) as gw:
            client = openai.AsyncOpenAI(base_url=f"{gw.url}/v1", api_key=gw.key, max_retries=0)
            await clients.enter_async_context(client)
            made = Callers(gw, client)
            await made.reaches(worker, "tide", "default", LONG)
            call = await made.waits("ebb", "flex")
            signal.raise_signal(signal.SIGTERM)
            error = await refused(call)
            assert (error.status_code, error.code) == (503, "shutting_down")
            worker.answer("tide")
            assert (await made.calls["tide"])[1] == "high"


async def test_flex_is_told_at_once_where_nothing_can_serve(tmp_path: Path):
    async with HeldWorker() as worker, callers(tmp_path, worker) as made:
        await worker.__aexit__(None, None, None)
        for code in ("upstream_connect_failed", "no_endpoint_available"):
            error = await refused(await made.call("ebb", "flex"))
            assert error.code == code


async def test_a_flood_of_flex_holds_up_no_other_call(tmp_path: Path):
    spec = WorkerSpec(prefill_tokens_per_s=20_000, max_num_seqs=64)
    async with SimWorker(spec) as worker, callers(tmp_path, worker) as made:
        for number in range(30):
            await made.call(f"flex-{number}", "flex", f"{number}: " + "tide " * 1500)

        async def queued() -> bool:
            return (await made.gw.metrics())[depth("flex")] > 10

        await until(queued)
        for number in range(5):
            await (await made.call(f"default-{number}", "default"))
        page = await made.gw.metrics()
        assert page[depth("flex")] > 0
        done = {name for name, call in made.calls.items() if call.done()}
        assert {name for name in made.calls if name.startswith("default")} <= done
        await made.all()
        assert len(await made.gw.rows(35)) == 35
