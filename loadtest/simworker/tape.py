"""What a worker remembers for tests to compare with: counts, and the last requests as they came."""

from __future__ import annotations

import base64
from collections import deque
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from loadtest.simworker.connection import Request

_MOST_REQUESTS = 1000
_MOST_BYTES = 32 * 1024 * 1024


class Stats(Struct):
    """The answer of GET /sim/stats. Requests are those that ask the model for something (`Request.is_work`)."""

    requests_received: int = 0
    requests_finished: int = 0
    """The engine made the whole answer."""
    requests_aborted: int = 0
    """The client left before that, or a fault struck once the engine had begun."""
    requests_refused: int = 0
    """Answered with an error. Where a fault struck before the engine began, a request is only received."""
    open_connections: int = 0
    prompt_tokens: int = 0
    """This and the next two: as reported in the usage of finished requests."""
    cached_tokens: int = 0
    completion_tokens: int = 0
    generated_tokens: int = 0
    """All tokens made, those of aborted requests included."""
    running: int = 0
    waiting: int = 0

    def finished(self, prompt: int, cached: int, completion: int) -> None:
        self.requests_finished += 1
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += completion


class Tape:
    """The last requests, up to a thousand and 32 MiB of bodies."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._bytes = 0

    def record(self, request: Request) -> None:
        self._requests.append(request)
        self._bytes += len(request.body)
        while len(self._requests) > _MOST_REQUESTS or (self._bytes > _MOST_BYTES and len(self._requests) > 1):
            self._bytes -= len(self._requests.popleft().body)

    @property
    def requests(self) -> tuple[Request, ...]:
        """Oldest first."""
        return tuple(self._requests)

    def to_json(self) -> dict[str, Any]:
        """The answer of GET /sim/requests, oldest first; names and values of headers as they came."""
        return {
            "requests": [
                {
                    "method": request.method,
                    "target": request.target,
                    "headers": [
                        [name.decode("latin-1"), value.decode("latin-1")] for name, value in request.headers
                    ],
                    "body": request.body.decode(errors="replace"),
                    "body_base64": base64.b64encode(request.body).decode(),
                }
                for request in self._requests
            ]
        }
