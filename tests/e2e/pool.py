"""A real gateway over simulated workers, in the test's own event loop.

    async with SimWorker() as worker, gateway(tmp_path, worker) as gw:
        reply = await gw.client().chat.completions.create(model="llama", messages=[...])

The application is the one that `tidegate serve` puts together, on a real socket, with a real database and journal. A test
reads from `worker.requests` what reached the worker, and from `gw.rows()` what was metered.
"""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import httpx2
from msgspec import convert
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import application
from gateway.config import Config
from gateway.ledger import Share, UsageRow
from gateway.policy import Policy
from gateway.server import Server, stopped_by_signals
from gateway.store import Store
from gateway.subjects import Subjects
from loadtest.worker import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LIMIT_S = 60
"""For whatever a test waits for: so long only where it never comes."""
TENANT = "harbour"
PRICE = {"input": 1, "output": 2, "cached_input": 0.5}
"""USD per million tokens: a prompt token is charged 1000 nano-USD, a completion token 2000."""
HELLO: dict[str, Any] = {
    "model": "llama",
    "messages": [{"role": "user", "content": "High water?"}],
    "max_tokens": 5,
}
"""A chat."""
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP, which otherwise read all the system's certificates first: longer than many a test takes."""
INSTANT = WorkerSpec(decode_s_per_token=0)
"""A simulated worker that takes no time to answer."""


def endpoint(worker: Any, name: str = "worker-1", **more: object) -> dict[str, object]:
    """A section of `endpoints`. `worker` is whatever has a `url` and serves a model named sim, as simulated ones do."""
    return {"worker": worker.url, "name": name, "model": "sim", **more}


class Gateway:
    """A running gateway, and what its users and its operator see of it."""

    def __init__(self, url: str, store: Store, database: Path, stack: AsyncExitStack) -> None:
        self.url = url
        """Without a path."""
        self.store = store
        """Its database, for keys made and revoked while it runs."""
        self.key = ""
        """Of the tenant `harbour`."""
        self.http = httpx2.AsyncClient(base_url=url, timeout=LIMIT_S, verify=NO_TLS)
        """For what no SDK asks; it sends no key by itself."""
        self._database = database
        self._stack = stack

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for raw sockets."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def client(self, key: str | None = None, **options: Any) -> AsyncOpenAI:
        """The official client, closed with the gateway."""
        client = AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key=key or self.key,
            max_retries=0,
            timeout=LIMIT_S,
            http_client=DefaultAsyncHttpxClient(verify=NO_TLS),
            **options,
        )
        self._stack.push_async_callback(client.close)
        return client

    async def new_key(self, tenant: str, **bounds: Any) -> str:
        """A key, bounded like this, that the gateway has seen, which takes it up to a second."""
        policy = Policy(**bounds) if bounds else None
        key = Subjects(self.store).create_key(tenant, policy=policy).secret
        await until(lambda: self._admits(key))
        return key

    async def rows(self, least: int = 1) -> list[UsageRow]:
        """All usage rows, in the order of their calls, once every call has ended and `least` rows are in the database."""

        async def moved() -> bool:
            page = await self.metrics()
            waiting = page["tidegate_calls_running"] + page["tidegate_journal_waiting_bytes"]
            return waiting == 0 and len(self._rows_now()) >= least

        await until(moved)
        return self._rows_now()

    async def shares(self) -> list[Share]:
        """All shares of the calls that `rows` gives, in the order of the calls."""
        await self.rows()
        with sqlite3.connect(self._database) as connection:
            found = connection.execute("SELECT * FROM usage_shares ORDER BY call_id, number").fetchall()
        connection.close()
        return [Share(*row[2:]) for row in found]

    async def metrics(self) -> dict[str, float]:
        """The page of metrics by the name and labels of each sample: `name` or `name{label="value",...}`, labels sorted."""
        page = (await self.http.get("/metrics")).raise_for_status().text
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        return {_shown(sample.name, sample.labels): sample.value for sample in samples}

    async def _admits(self, key: str) -> bool:
        reply = await self.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        return reply.status_code == 200

    def _rows_now(self) -> list[UsageRow]:
        with sqlite3.connect(self._database) as connection:
            connection.row_factory = sqlite3.Row
            found = connection.execute("SELECT * FROM usage ORDER BY time_ms, call_id").fetchall()
        connection.close()
        return [convert(dict(row), UsageRow, strict=False) for row in found]


@asynccontextmanager
async def gateway(home: Path, *workers: Any, ready: bool = True, **sections: Any) -> AsyncIterator[Gateway]:
    """Serve the model `llama`, also known as `llama-small`, at these workers, which are named worker-1, worker-2...

    `sections` are those of the configuration, whole: `limits={"body_bytes": 1000}`, or `models` with a fleet of one's own
    (see `endpoint`). With `ready` it waits until a worker is known to be healthy.
    """
    database = home / "tidegate.db"
    endpoints = [endpoint(worker, f"worker-{number}") for number, worker in enumerate(workers, start=1)]
    config = Config.model_validate(
        {
            "database": f"sqlite:///{database}",
            "journal": {"folder": home / "journal"},
            "models": {"llama": {"aliases": ["llama-small"], "price": PRICE, "endpoints": endpoints}},
            **sections,
        }
    )
    if not database.exists():
        database.write_bytes(_empty_database())
    async with AsyncExitStack() as stack:
        store = stack.enter_context(Store.open(config.database.get_secret_value()))
        key = Subjects(store).create_key(TENANT).secret
        app = await stack.enter_async_context(application(config))
        url = await stack.enter_async_context(_serving(app, config))
        running = Gateway(url, store, database, stack)
        running.key = key
        await stack.enter_async_context(running.http)
        if ready:
            await until(lambda: _is_ready(running))
        yield running


@cache
def _empty_database() -> bytes:
    """A file with all tables, which is copied: to make them takes longer than many a test."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tidegate.db"
        with Store.open(f"sqlite:///{path}"):
            pass
        return path.read_bytes()


@asynccontextmanager
async def _serving(app: Any, config: Config) -> AsyncIterator[str]:
    started = asyncio.Event()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(
            app,
            drain_s=float(config.timeouts.drain_s),
            unready_s=float(config.timeouts.unready_s),
            header_limit_bytes=config.limits.header_bytes,
            most_connections=config.limits.client_connections,
            body_limit_bytes=config.limits.body_bytes,
            on_ready=started.set,
        )
        server.take_times(config.timeouts)
        serving = asyncio.create_task(server.serve(listener))
        with stopped_by_signals([server]):
            try:
                async with asyncio.timeout(LIMIT_S):
                    await started.wait()
                yield "http://{}:{}".format(*listener.getsockname())
            finally:
                server.stop()
                await serving


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that happens soon and that nobody tells of."""
    async with asyncio.timeout(LIMIT_S):
        while not await true():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def _is_ready(running: Gateway) -> bool:
    return (await running.http.get("/health/ready")).status_code == 200


def _shown(name: str, labels: dict[str, str]) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
