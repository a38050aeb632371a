"""The HTTP server: uvicorn, with the few things that it leaves to a proxy in front of it and that we want without one.

Headers are limited in size, what is no HTTP is answered in the shape of every other error, and a signal ends in exit
code 0 once running calls have finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import ApiError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the minute for which load balancers keep idle connections, so that they close first and no call is lost
in between."""


def edge_protocol(header_limit_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol class of one connection, with a limit on the size of headers."""

    class EdgeProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _in_head = True

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._in_head and self._head_bytes > header_limit_bytes and not self.transport.is_closing():
                message = f"the headers are larger than {header_limit_bytes} bytes"
                self._refuse(ApiError("headers_too_large", message))

        def on_message_begin(self) -> None:
            self._in_head, self._head_bytes = True, 0
            super().on_message_begin()

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

    return EdgeProtocol


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
                http=edge_protocol(header_limit_bytes),
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
