"""Replies through litellm: clients that leave or read slowly, providers that fall silent, and limits."""

import asyncio

import pytest
from litellm_backend import CHAT, LITELLMS_OWN_WARNINGS, PATIENT, at, call, each_provider, streamed, whole
from provider_wire import ANTHROPIC, KEY, PIECES, never, sends, with_token
from scripted import Server, until

from backends.base import (
    AttemptFailed,
    CallTimeout,
    FirstByteTimeout,
    ReplyMalformed,
    ReplyOversized,
    SilenceTimeout,
)
from backends.incoming import HIGH_WATER_BYTES, Patience
from backends.litellm_api import LiteLLMAccess, LiteLLMBackend
from backends.litellm_thread import LiteLLMThread

pytestmark = LITELLMS_OWN_WARNINGS


@each_provider
async def test_a_client_that_leaves_ends_the_providers_call(provider):
    left = asyncio.Event()

    async def goes_on(peer):
        await peer.request()
        peer.write(*provider.stream(*provider.events))  # at once: the client leaves at the first of them
        await peer.lost()
        left.set()

    async with at(provider, goes_on) as (_, backend):
        async with backend.open(call({**CHAT, "stream": True})) as reply:
            assert await reply.read()
            assert backend.connections == 1
        assert backend.connections == 0
        await asyncio.wait_for(left.wait(), 30)


async def test_a_reply_over_the_limit_is_refused():
    async with at(ANTHROPIC, sends(ANTHROPIC.whole)) as (_, backend):
        with pytest.raises(ReplyOversized):
            await whole(backend, limit_bytes=100)


@pytest.mark.parametrize(
    ("patience", "within_s", "expected"),
    [
        (Patience(0.2, 30.0, 60.0), 60.0, FirstByteTimeout),
        (Patience(30.0, 30.0, 60.0), 0.2, CallTimeout),
        (Patience(30.0, 30.0, 0.2), 60.0, CallTimeout),
    ],
)
async def test_silence_from_the_start_ends_the_call(patience, within_s, expected):
    async with at(ANTHROPIC, never, patience) as (_, backend):
        with pytest.raises(expected):
            async with backend.open(call({**CHAT, "stream": True}, within_s=within_s)):
                pass
        assert backend.connections == 0


async def test_silence_in_a_stream_ends_the_call():
    async def falls_silent(peer):
        await peer.request()
        await peer.send(*ANTHROPIC.stream(*ANTHROPIC.events))
        await asyncio.Event().wait()

    async with at(ANTHROPIC, falls_silent, Patience(30.0, 0.3, 60.0)) as (_, backend):
        with pytest.raises(SilenceTimeout):
            await streamed(backend)


async def test_what_a_slow_reader_leaves_behind_is_bounded():
    """The provider is held up as by a full socket, and goes on once there is room."""
    # No two alike: litellm takes a text that repeats a hundred times for a model that has lost its way.
    many = b"".join(ANTHROPIC.events[-1].replace(b"moon", b"moon %d" % number) for number in range(1500))

    async with at(ANTHROPIC, ANTHROPIC.answers_stream(*ANTHROPIC.events, many, *ANTHROPIC.finish)) as (
        _,
        backend,
    ):
        async with backend.open(call({**CHAT, "stream": True})) as reply:
            await until(lambda: reply._paused, limit_s=60.0)
            held = reply._size
            await asyncio.sleep(0.2)
            assert HIGH_WATER_BYTES < reply._size < 40 * HIGH_WATER_BYTES
            total = 0
            while block := await reply.read():
                total += len(block)
            assert total > held


async def test_blocks_are_poured_until_the_sink_has_enough():
    async with at(ANTHROPIC, ANTHROPIC.answers_stream(*ANTHROPIC.events, *ANTHROPIC.finish)) as (_, backend):
        async with backend.open(call({**CHAT, "stream": True})) as reply:
            got = bytearray()

            def sink(block: bytes) -> bool:
                got.extend(block)
                return b"[DONE]" in got

            while not await reply.pour(sink) and b"[DONE]" not in got:
                pass
            await reply.drain()
    assert got.count(b"data: ") == len(PIECES) + 3


async def test_a_sink_that_fails_ends_the_reply():
    async with at(ANTHROPIC, ANTHROPIC.answers_stream(*ANTHROPIC.events, *ANTHROPIC.finish)) as (_, backend):
        async with backend.open(call({**CHAT, "stream": True})) as reply:

            def sink(block: bytes) -> bool:
                raise ReplyMalformed(f"{len(block)} bytes too many")

            with pytest.raises(ReplyMalformed):
                await reply.pour(sink)


async def test_calls_that_still_run_when_the_thread_ends_are_broken_off():
    async with Server(with_token(never)) as server:
        async with LiteLLMThread() as thread:
            backend = LiteLLMBackend(
                LiteLLMAccess(ANTHROPIC.model, (KEY,), ANTHROPIC.params(server.port)), thread, PATIENT
            )
            waiting = asyncio.create_task(whole(backend))
            await until(lambda: any(peer.requests for peer in server.peers), limit_s=30.0)
        with pytest.raises(AttemptFailed):
            await waiting
