"""SIGTERM drains: nothing new is accepted, what runs may finish, and the process ends with exit code 0."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
from failing import LAST, STREAM, chunk, event, hosted
from gateway_process import LIMIT_S, gateway_beside, get, key_before_start, rows_in
from openai import AsyncOpenAI
from pool import PRICE, gateway
from scripted import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from gateway_process import Gateway
    from openai import AsyncStream
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
    from scripted import Peer

MESSAGES = [{"role": "user", "content": "Why are there tides?"}]
CALL: dict[str, Any] = {"model": "llama", "messages": MESSAGES}
LONGER_THAN_A_TEST_S = 5 * LIMIT_S
HEALTH = b"GET /health/live HTTP/1.1\r\nhost: tide\r\n\r\n"


class Provider:
    """An endpoint that streams "high " and, once the test allows it, "water"; a whole reply it never gives."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.holds_whole = asyncio.Event()
        """A call for a whole reply has reached it."""

    async def script(self, peer: Peer) -> None:
        while True:
            body = json.loads(await peer.request())
            if not body.get("stream"):
                self.holds_whole.set()
                await peer.lost()
                return
            await peer.send(STREAM + chunk("high "))
            await self.may_end.wait()
            await peer.send(chunk("water"), chunk("", "stop"), event(b"[DONE]"), LAST)

    @asynccontextmanager
    async def models(self) -> AsyncIterator[dict[str, Any]]:
        async with Server(self.script) as server:
            yield {"llama": {"price": PRICE, "endpoints": [hosted(server.port, "provider")]}}


@asynccontextmanager
async def process_over(
    provider: Provider, home: Path, drain_s: int
) -> AsyncIterator[tuple[Gateway, AsyncOpenAI]]:
    """A gateway process over the provider, and a client with a key."""
    key = key_before_start(home, "acme")
    async with (
        provider.models() as models,
        gateway_beside(home, models, timeouts={"drain_s": drain_s}) as process,
        client_of(process.url, key) as client,
    ):
        yield process, client


def client_of(url: str, key: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=LIMIT_S)


async def begun(client: AsyncOpenAI) -> AsyncStream[ChatCompletionChunk]:
    """A stream whose first chunk has been read."""
    stream = await client.chat.completions.create(**CALL, stream=True)
    assert (await anext(stream)).choices[0].delta.content == "high "
    return stream


async def waiting(client: AsyncOpenAI, provider: Provider) -> asyncio.Task[ChatCompletion]:
    """A call that waits for its whole reply, and has reached the provider."""
    call = asyncio.create_task(client.chat.completions.create(**CALL))
    async with asyncio.timeout(LIMIT_S):
        await provider.holds_whole.wait()
    return call


async def refuses_connections(address: tuple[str, int]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(*address)
            except ConnectionError:
                return
            writer.close()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def connection(
    address: tuple[str, int],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    yield reader, writer
    writer.close()


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """What else comes on a connection before the gateway closes it in order."""
    async with asyncio.timeout(LIMIT_S):
        return await reader.read()


async def outcome(reply: Awaitable[Any]) -> tuple[type[Exception] | None, str | None]:
    """The exception that the client raises for a reply, and the code in it."""
    try:
        await reply
    except openai.APIError as error:
        return type(error), error.code
    return None, None


CUT = [(openai.APIError, "shutting_down"), (openai.InternalServerError, "shutting_down")]
"""Outcomes of a stream that has begun and of a whole reply that has not."""


async def test_sigterm_lets_running_streams_finish_and_takes_nothing_new(tmp_path: Path):
    provider = Provider()
    async with (
        process_over(provider, tmp_path, LONGER_THAN_A_TEST_S) as (process, client),
        connection(process.address) as (used, used_writer),
        connection(process.address) as (fresh, _),
        connection(process.address) as (halfway, halfway_writer),
        connection(process.address) as (busy, busy_writer),
    ):
        used_writer.write(HEALTH)
        assert (await used.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200 OK\r\n")
        halfway_writer.write(HEALTH[:20])
        body = json.dumps({**CALL, "stream": True})
        busy_writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: tide\r\nauthorization: Bearer {client.api_key}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        await busy.readuntil(b'"high "')
        streams = [await begun(client) for _ in range(3)]

        process.process.terminate()
        await refuses_connections(process.address)
        assert [await rest_of(idle) for idle in (used, fresh, halfway)] == [b"", b"", b""]
        busy_writer.write(HEALTH)  # too late: it is neither answered nor left hanging
        assert process.process.poll() is None

        provider.may_end.set()
        for stream in streams:
            texts = [piece.choices[0].delta.content async for piece in stream]
            assert "".join(texts) == "water"
        rest = await rest_of(busy)
        assert b'"water"' in rest
        assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert await asyncio.to_thread(process.ended) == 0
    assert [(row.outcome, row.completion_tokens) for row in rows_in(tmp_path)] == [("ok", 2)] * 4
    assert list((tmp_path / "journal").iterdir()) == []


async def test_calls_that_outlast_the_drain_are_told_so_and_metered(tmp_path: Path):
    provider = Provider()
    async with process_over(provider, tmp_path, drain_s=1) as (process, client):
        stream = await begun(client)
        call = await waiting(client, provider)
        assert await asyncio.to_thread(process.ended, signal.SIGTERM) == 0
        assert [await outcome(anext(stream)), await outcome(call)] == CUT
    rows = rows_in(tmp_path)
    assert [(row.stream, row.completion_tokens) for row in rows] == [(True, 1), (False, 0)]


# From here on the gateway runs in this process, and gets the signals that this process gets.


async def test_rows_of_calls_that_outlast_the_drain_say_what_the_clients_were_told(tmp_path: Path):
    provider = Provider()
    async with provider.models() as models, AsyncExitStack() as clients:
        async with gateway(tmp_path, ready=False, models=models, timeouts={"drain_s": 1}) as running:
            client = await clients.enter_async_context(client_of(running.url, running.key))
            stream = await begun(client)
            call = await waiting(client, provider)
            signal.raise_signal(signal.SIGTERM)
        assert [await outcome(anext(stream)), await outcome(call)] == CUT
    streamed, whole = rows_in(tmp_path)
    assert (streamed.status, streamed.outcome) == (200, "shutting_down")
    assert streamed.charge_nano_usd == streamed.prompt_tokens * 1000 + 1 * 2000
    assert (whole.status, whole.outcome) == (503, "shutting_down")
    assert whole.charge_nano_usd == 0


async def test_a_second_sigint_cuts_running_calls_short(tmp_path: Path):
    provider = Provider()
    async with provider.models() as models, AsyncExitStack() as clients:
        timeouts = {"drain_s": LONGER_THAN_A_TEST_S}
        async with gateway(tmp_path, ready=False, models=models, timeouts=timeouts) as running:
            client = await clients.enter_async_context(client_of(running.url, running.key))
            stream = await begun(client)
            call = await waiting(client, provider)
            signal.raise_signal(signal.SIGINT)
            await refuses_connections(running.address)
            signal.raise_signal(signal.SIGINT)
        assert [await outcome(anext(stream)), await outcome(call)] == CUT
    assert len(rows_in(tmp_path)) == 2


async def test_with_nothing_but_idle_connections_sigterm_ends_it_at_once(tmp_path: Path):
    timeouts = {"drain_s": LONGER_THAN_A_TEST_S}
    async with Provider().models() as models, AsyncExitStack() as connections, asyncio.timeout(LIMIT_S):
        async with gateway(tmp_path, ready=False, models=models, timeouts=timeouts) as running:
            reader, writer = await connections.enter_async_context(connection(running.address))
            writer.write(HEALTH)
            await reader.readuntil(b'{"status":"ok"}')
            signal.raise_signal(signal.SIGTERM)
        assert await rest_of(reader) == b""


async def test_a_gateway_that_leaves_is_not_ready_and_takes_calls_until_that_has_been_seen(tmp_path: Path):
    provider = Provider()
    provider.may_end.set()
    timeouts = {"unready_s": 2 * LIMIT_S, "drain_s": LONGER_THAN_A_TEST_S}
    async with provider.models() as models, AsyncExitStack() as clients, asyncio.timeout(LIMIT_S):
        async with gateway(tmp_path, models=models, timeouts=timeouts) as running:
            client = await clients.enter_async_context(client_of(running.url, running.key))
            stream = await begun(client)
            signal.raise_signal(signal.SIGTERM)
            ready = f"{running.url}/health/ready"
            while (said := await asyncio.to_thread(get, ready))[0] == 200:
                pass
            assert said == (503, '{"status":"shutting down"}')
            assert (await asyncio.to_thread(get, f"{running.url}/health/live"))[0] == 200
            for each in (stream, await begun(client)):
                assert "".join([piece.choices[0].delta.content or "" async for piece in each]) == "water"
            signal.raise_signal(signal.SIGINT)  # for somebody who will not wait
    assert [row.outcome for row in rows_in(tmp_path)] == ["ok", "ok"]
