"""Clients, a real vLLM server and a gateway that leave: what the others notice of it.

The tests run in this order: the second kills a server, the last stops the gateway.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest
from vllm_pool import GREEDY, TIMEOUT_S, async_client, comes_true, draining

if TYPE_CHECKING:
    from gateway_process import Gateway
    from vllm_pool import Worker

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("kind", ["stream", "whole reply"])
async def test_a_client_that_leaves_frees_the_worker(
    gateway: Gateway, key: str, workers: list[Worker], kind: str
):
    stream = kind == "stream"

    def total(metric: str) -> float:
        return sum(worker.metric(metric) for worker in workers)

    made_before, calls = total("vllm:generation_tokens_total"), 0
    async with async_client(gateway, key) as client:
        begin = partial(client.chat.completions.create, **GREEDY, max_tokens=1900, stream=stream)
        ended = True
        while (
            ended
        ):  # before it was seen to run: a server that writes as fast as it can is slow to show its metrics
            calls += 1
            call = asyncio.create_task(begin(extra_body={"ignore_eos": True}))
            if stream:
                await (await call).close()
                break
            await comes_true(lambda call=call: call.done() or total("vllm:num_requests_running") == 1)
            ended = call.done()
            call.cancel()
        await comes_true(lambda: total("vllm:num_requests_running") == 0)
    # It was stopped, it did not run to its end.
    assert total("vllm:generation_tokens_total") - made_before < 1900 * calls


async def read_to_the_end(stream: Any) -> str | openai.APIError:
    """How the stream ended: with the last finish_reason, or the error it was told."""
    reason = "none"
    try:
        async for chunk in stream:
            reason = chunk.choices[0].finish_reason or reason
    except openai.APIError as error:
        return error
    return reason


async def test_of_a_killed_server_no_call_is_lost_that_had_not_begun_and_no_stream_is_cut_in_silence(
    gateway: Gateway, key: str, workers: list[Worker]
):
    victim, other = workers
    long = {**GREEDY, "max_tokens": 1900}

    def wanted(*only: str) -> dict[str, Any]:
        # None is asked for, or goes on, in two places: where each was when the server was killed is then certain.
        routing = {"hedge": False} | ({"only": only} if only else {})
        return {"extra_body": {"ignore_eos": True, "routing": routing}}

    def all_are_there() -> bool:
        return (
            f'tidegate_endpoint_inflight{{endpoint="{victim.name}",model="llama"}} 9.0' in gateway.metrics()
        )

    async with async_client(gateway, key) as client:
        create = client.chat.completions.with_raw_response.create

        async def begun(worker: Worker) -> list[asyncio.Task[str | openai.APIError]]:
            replies = await asyncio.gather(
                *(create(**long, **wanted(worker.name), stream=True) for _ in range(3))
            )
            assert {reply.headers["x-tidegate-endpoint"] for reply in replies} == {worker.name}
            return [asyncio.create_task(read_to_the_end(reply.parse())) for reply in replies]

        there = await begun(other)
        await asyncio.to_thread(draining, gateway, "POST", other.name)
        answers = [asyncio.create_task(create(**long, **wanted())) for _ in range(6)]
        here = await begun(victim)
        # They share its batch, and have begun together: none ends before the others have come.
        await comes_true(all_are_there)
        await asyncio.to_thread(draining, gateway, "DELETE", other.name)
        victim.kill()
        async with asyncio.timeout(TIMEOUT_S):
            whole = await asyncio.gather(*answers)
            cut, undisturbed = await asyncio.gather(*here), await asyncio.gather(*there)

    for reply in whole:
        assert reply.parse().usage.completion_tokens == 1900
        assert reply.headers["x-tidegate-endpoint"] == other.name
        assert reply.headers["x-tidegate-attempts"] == "2"
        told = reply.headers.get(
            "x-tidegate-steps"
        )  # where it was watched; a short one is simply tried again
        assert told is None or f'resume;cause=upstream_broken;from="{victim.name}"' in told
    for end in cut:
        assert isinstance(end, openai.APIError)
        assert end.code == "upstream_broken"
    assert undisturbed == ["length"] * 3


async def test_after_that_calls_go_on_at_the_other_server(gateway: Gateway, key: str, workers: list[Worker]):
    gone, left = workers
    async with async_client(gateway, key) as client:
        for number in range(20):
            reply = await client.chat.completions.with_raw_response.create(
                **GREEDY, max_tokens=3, stream=bool(number % 2)
            )
            assert reply.headers["x-tidegate-endpoint"] == left.name
            if number % 2:
                assert await read_to_the_end(reply.parse()) == "length"

        def is_left_alone() -> bool:
            return (
                f'tidegate_endpoint_available{{endpoint="{gone.name}",model="llama"}} 0.0'
                in gateway.metrics()
            )

        await comes_true(is_left_alone)
        reply = await client.chat.completions.with_raw_response.create(**GREEDY, max_tokens=3)
        assert reply.headers["x-tidegate-attempts"] == "1"


async def test_sigterm_lets_a_running_stream_finish_and_ends_with_exit_code_0(gateway: Gateway, key: str):
    async with async_client(gateway, key) as client:
        stream = await client.chat.completions.create(
            **GREEDY, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
        )
        gateway.process.send_signal(signal.SIGTERM)
        assert await read_to_the_end(stream) == "length"
    assert await asyncio.to_thread(gateway.process.wait, TIMEOUT_S) == 0
