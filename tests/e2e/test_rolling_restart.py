"""Two gateways behind a balancer, stopped and started anew one after the other under load: no client sees anything of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway_process import LIMIT_S, database_url, gateway_beside, rows_in
from openai import AsyncOpenAI
from pool import PRICE

from loadtest.process import worker_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway_process import Gateway

CALL: dict[str, Any] = {
    "model": "llama",
    "messages": [{"role": "user", "content": "Why are there tides?"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
CLIENTS = 3
TOKENS, MANY_TOKENS = 10, 60


class Balancer:
    """Knows addresses, takes them in turn, and goes on to the next where nobody accepts. Of HTTP it knows nothing."""

    def __init__(self) -> None:
        self.backends: list[tuple[str, int]] = []
        self._turn = 0
        self._pipes: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._pipes.add(task)
        task.add_done_callback(self._pipes.discard)
        with contextlib.suppress(asyncio.CancelledError):
            try:
                theirs, to_them = await self._connected()
                try:
                    await asyncio.gather(_pipe(reader, to_them), _pipe(theirs, writer))
                finally:
                    to_them.close()
            finally:
                writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(LIMIT_S):
            while True:
                self._turn += 1
                with contextlib.suppress(ConnectionError):
                    return await asyncio.open_connection(*self.backends[self._turn % len(self.backends)])


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(
        ConnectionError, RuntimeError
    ):  # the latter is uvloop's, of a connection that is gone
        while block := await source.read(65536):
            sink.write(block)
            await sink.drain()
        sink.write_eof()


class Replica:
    """A gateway of two processes that can be stopped and started anew, at another port."""

    def __init__(self, home: Path, database: str, worker: str, balancer: Balancer) -> None:
        home.mkdir()
        self._home = home
        self._database = database
        self._models = {"llama": {"price": PRICE, "endpoints": [{"worker": worker, "model": "sim"}]}}
        self._balancer = balancer
        self._stack = AsyncExitStack()
        self._gateway: Gateway | None = None

    async def start(self) -> None:
        self._gateway = await self._stack.enter_async_context(
            gateway_beside(
                self._home,
                self._models,
                database=self._database,
                auth={"mode": "none"},
                server={"workers": 2},
                timeouts={"drain_s": LIMIT_S},
            )
        )
        self._balancer.backends.append(self._address)

    @property
    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self._gateway.url)
        return parts.hostname, parts.port

    async def stop(self) -> None:
        """As a rollout does it: the balancer learns of it only by connections that are refused."""
        assert await asyncio.to_thread(self._gateway.ended, signal.SIGTERM) == 0
        self._balancer.backends.remove(self._address)
        await self._stack.aclose()


async def streamed(client: AsyncOpenAI, tokens: int) -> int:
    """How many completion tokens the client has been told of, at the end of a stream that ended as it should."""
    finished, usage = None, None
    async for chunk in await client.chat.completions.create(**CALL, max_tokens=tokens):
        for choice in chunk.choices:
            finished = choice.finish_reason or finished
        usage = chunk.usage or usage
    assert finished in ("stop", "length")
    return usage.completion_tokens


async def test_a_rolling_restart_under_load_loses_nothing(tmp_path: Path):
    balancer, stopped = Balancer(), asyncio.Event()
    received: Counter[int] = Counter()
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(
            worker_process(model="sim", decode_s_per_token=0.02, max_num_seqs=64)
        )
        url = await stack.enter_async_context(balancer.running())
        client = await stack.enter_async_context(
            AsyncOpenAI(
                base_url=f"{url}/v1", api_key="x", timeout=LIMIT_S
            )  # tries again twice, as it does by itself
        )
        replicas = [
            Replica(tmp_path / name, database_url(tmp_path), worker.url, balancer) for name in ("one", "two")
        ]
        for replica in replicas:
            await replica.start()
            stack.push_async_callback(replica.stop)

        async def calling(tokens: int) -> None:
            while not stopped.is_set():
                received[await streamed(client, tokens)] += 1

        async with asyncio.TaskGroup() as calls:
            for _ in range(CLIENTS):
                calls.create_task(calling(TOKENS))
                calls.create_task(calling(MANY_TOKENS))
            for replica in replicas:
                await asyncio.sleep(0.5)
                await replica.stop()
                await replica.start()
            stopped.set()
    rows = rows_in(tmp_path)
    assert Counter(row.completion_tokens for row in rows) == received
    assert {row.outcome for row in rows} == {"ok"}
    assert received.total() > 2 * CLIENTS
