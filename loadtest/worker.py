"""A simulated vLLM worker: a real HTTP server that answers as vLLM 0.32 does, with no model behind it.

What it says is a function of the prompt, how fast it says so of its `WorkerSpec`, and what goes wrong of the faults
ordered (`loadtest.simworker.faults`). The demo, the tests and the benches all use this one. In a test:

    async with SimWorker(WorkerSpec(model="sim")) as worker:
        ... worker.url ...

As a process of its own: `python -m loadtest worker`, or `loadtest.process.worker_process`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

import msgspec

from loadtest.simworker.account import Account
from loadtest.simworker.bodies import FaultOrder
from loadtest.simworker.connection import Connection, DateHeader, Exchange, Request
from loadtest.simworker.engine import Engine
from loadtest.simworker.faults import Fault, FaultBook
from loadtest.simworker.faulty_exchange import faulty
from loadtest.simworker.routes import Routes
from loadtest.simworker.spec import WorkerSpec
from loadtest.simworker.tape import Stats, Tape

__all__ = ["Fault", "SimWorker", "WorkerSpec"]


class SimWorker:
    """One worker. `async with` starts it, and at its end stops it at once, as a kill would."""

    def __init__(self, spec: WorkerSpec | None = None) -> None:
        self.spec = WorkerSpec() if spec is None else spec
        self.stats = Stats()
        self.tape = Tape()
        self.faults = FaultBook(self.spec.faults, self.spec.seed)
        self.gone = asyncio.Event()
        """Set when a terminated worker would have exited."""
        self.port = 0
        self.date_header = DateHeader()
        self.engine: Engine
        self._account: Account
        self._routes: Routes
        self._listener: asyncio.Server
        self._connections: set[Connection] = set()
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._leaving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.spec.host}:{self.port}"

    @property
    def requests(self) -> tuple[Request, ...]:
        """The last requests for work, oldest first, byte for byte."""
        return self.tape.requests

    def order(self, *faults: Fault) -> None:
        """Let these go wrong from now on, instead of those ordered before."""
        self.faults.replace(faults)

    def cut(self) -> None:
        """All its connections are reset, and nothing else happens to it."""
        for connection in tuple(self._connections):
            connection.transport.abort()

    def terminate(self) -> None:
        """What SIGTERM does to vLLM; a second one changes nothing."""
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def __aenter__(self) -> Self:
        self.engine = Engine(self.spec)
        self._account = Account(self.spec.account, lambda: self.port)
        self._routes = Routes(self.spec, self.engine, self.faults, self.stats, self.tape, self._account)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: Connection(self), self.spec.host, self.spec.port, backlog=2048, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        self._listener.close()
        self.engine.halt()
        self.cut()
        await self._deserted.wait()
        self._account.close()

    # For connections

    def opened(self, connection: Connection) -> None:
        self._connections.add(connection)
        self._deserted.clear()
        self.stats.open_connections += 1

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.stats.open_connections -= 1
        if not self._connections:
            self._deserted.set()

    def exchange(self, connection: Connection, request: Request) -> Exchange:
        """The exchange by which this request is answered; one that goes wrong, where a fault strikes."""
        if request.is_work:
            self.stats.requests_received += 1
            self.tape.record(request)
        fault = _own_fault(request) or self.faults.draw(request.target, request.body)
        return (
            Exchange(connection, request, self) if fault is None else faulty(connection, request, self, fault)
        )

    def answer(self, request: Request, exchange: Exchange) -> None:
        self._routes.answer(request, exchange)

    # The end

    async def _leave(self) -> None:
        """With no timeout the engine stops at once and open replies hang; else they get that long to finish."""
        if self.spec.shutdown_timeout > 0:
            self._routes.leaving = True
            with suppress(TimeoutError):  # those still running by then are cut off
                async with asyncio.timeout(self.spec.shutdown_timeout):
                    await self.engine.idle.wait()
            self._listener.close()
        else:
            self._listener.close()
            self.engine.halt()
            for connection in tuple(self._connections):
                if connection.idle:
                    connection.transport.close()
            await self._deserted.wait()
        self.gone.set()


def _own_fault(request: Request) -> Fault | None:
    """The fault that a request orders for itself."""
    if b'"sim_fault"' not in request.body:
        return None
    try:
        return msgspec.json.decode(request.body, type=FaultOrder).sim_fault
    except msgspec.DecodeError:
        return None  # the route says what is wrong with the body
