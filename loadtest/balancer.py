"""A load balancer as Kubernetes' services are one: it knows connections, and nothing of what goes over them.

New connections go in turn to those backends whose last check at /health/ready was a 200. One that refuses a connection has
refused the client: nobody else is asked. Connections that stand are left alone whatever checks say.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

log = logging.getLogger(__name__)

CHECK_S = 0.5
_CHECK_TIMEOUT_S = 5.0
_CHECK = b"GET /health/ready HTTP/1.1\r\nhost: balancer\r\nconnection: close\r\n\r\n"
_BLOCK_BYTES = 65_536


class Backend(Struct):
    host: str
    port: int
    ready: bool = False


class Balancer:
    """Serves while `running`."""

    def __init__(self, ports: list[int], host: str = "127.0.0.1") -> None:
        self.backends = [Backend(host, port) for port in ports]
        self._turn = 0
        self._pipes: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """Its URL, without a path."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        checks = [asyncio.create_task(self._check(each)) for each in self.backends]
        try:
            async with server:
                yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            tasks = [*checks, *self._pipes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until_ready(self, port: int, *, ready: bool = True) -> None:
        """Wait until the backend with that port is known to be ready, or not to be."""
        backend = next(each for each in self.backends if each.port == port)
        while backend.ready != ready:  # noqa: ASYNC110 - checks look at it as often
            await asyncio.sleep(CHECK_S / 10)

    async def _check(self, backend: Backend) -> None:
        while True:
            backend.ready = await _is_ready(backend)
            await asyncio.sleep(CHECK_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)
        try:
            backend = self._next()
            if backend is None:
                return
            theirs, to_them = await asyncio.open_connection(backend.host, backend.port)
            try:
                await asyncio.gather(_pipe(reader, to_them), _pipe(theirs, writer))
            finally:
                to_them.close()
        except OSError as error:
            log.info("a client was refused: %s", error)
        except asyncio.CancelledError:
            pass  # the end of the balancer; asyncio's own server would log it
        finally:
            writer.close()

    def _next(self) -> Backend | None:
        ready = [each for each in self.backends if each.ready]
        self._turn += 1
        return ready[self._turn % len(ready)] if ready else None


async def _is_ready(backend: Backend) -> bool:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(backend.host, backend.port)
            try:
                writer.write(_CHECK)
                return (await reader.readline()).split(b" ")[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while block := await source.read(_BLOCK_BYTES):
            sink.write(block)
            await sink.drain()
        sink.write_eof()
    except (ConnectionError, RuntimeError):  # the latter is uvloop's, of a connection that is gone
        sink.close()
