"""The HTTP server: uvicorn, with the few things that it leaves to a proxy in front of it and that we want without one.

Headers are limited in size, what is no HTTP is answered in the shape of every other error, and a signal ends in exit
code 0 once running calls have finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.client import CONNECTION
from gateway.errors import ApiError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from gateway.client import Client

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the minute for which load balancers keep idle connections, so that they close first and no call is lost
in between."""


class EdgeProtocol(HttpToolsProtocol):
    """One connection, with a limit on the size of headers, that tells its client's call when it is closed."""

    header_limit_bytes = 65_536

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._watching: set[Client] = set()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.header_limit_bytes and not self.transport.is_closing():
            message = f"the headers are larger than {self.header_limit_bytes} bytes"
            self._refuse(ApiError("headers_too_large", message))

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: cast("dict[object, object]", self)}

    def watch(self, client: Client) -> None:
        self._watching.add(client)
        # uvicorn stops reading while a body is large, and a socket that is not read does not tell of its end.
        self.flow.resume_reading()

    def unwatch(self, client: Client) -> None:
        self._watching.discard(client)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for client in list(self._watching):
            client.gone()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says the same in JSON
        self._refuse(ApiError("invalid_http", "what came is not an HTTP/1.1 request"))

    def _refuse(self, error: ApiError) -> None:
        body = error.body()
        self.transport.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (STATUS_LINE[error.status], len(body), body)
        )
        self.transport.close()


class Server(uvicorn.Server):
    """Runs until SIGTERM or SIGINT; a second SIGINT cuts running calls short."""

    def __init__(
        self,
        app: Any,
        *,
        drain_s: float,
        header_limit_bytes: int,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=type("EdgeProtocol", (EdgeProtocol,), {"header_limit_bytes": header_limit_bytes}),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=4096,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(drain_s)),
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with self.capture_signals():
            await self._serve(sockets)
            # Calls that were cut short get a moment to say so to their clients and to settle.
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=2.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn has it, but its own sends itself the signal again at the end, and so never exits with 0."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
