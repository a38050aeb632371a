"""Faults on demand: what may go wrong with a worker, ordered at its start, at run time or by one request.

`--faults`, `POST /faults` (which replaces those before; `[]` clears them) and the body field `sim_fault` take:

    {"kind": "reset", "after_chunks": 3, "count": 1, "probability": 1.0, "match": "tide", "path": "/v1/", ...}

or a list of such objects (`sim_fault`: one). The first that applies to a request is used up by one. All fields but
`kind` are optional:

    count         how many requests it strikes; absent: all
    probability   of striking a request that it applies to
    match         it applies to requests whose body contains this
    path          it applies to requests whose path contains this; "/v1/" unless told ("/health", "/metrics"...)
    after_chunks  so many events of a stream are sent as they should be first; 0: not even the head is sent.
                  Of a reply that is no stream, any number above 0 sends head and half the body first.

    kind       what the client sees
    hang       nothing, ever
    reset      a TCP reset
    stall      head (always) and chunks, then silence
    drip       the reply byte by byte, `delay_s` (0.01) apart
    garbage    `part` "head": no HTTP at all; "body": a body that is neither JSON nor SSE
    status     an error `status` (500; 503, 429...) that says `message`, of the field `param`, with `retry_after_s` as
               Retry-After where given
    truncated  the end without finish_reason: a FIN, or with `clean` a well-formed end; other bodies are cut short
    engine_died  an error event and then [DONE], as vLLM does when its engine is killed; else a 500
    slow       the right reply, `factor` (10) times as slowly
    oversized  `size_bytes` (64 MiB) of header where `part` is "head", else of body or of one SSE line
"""

from __future__ import annotations

import random
from typing import Literal

import msgspec
from msgspec import Struct

FaultKind = Literal[
    "hang", "reset", "stall", "drip", "garbage", "status", "truncated", "engine_died", "slow", "oversized"
]


class Fault(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    kind: FaultKind
    count: int | None = None
    probability: float = 1.0
    match: str = ""
    path: str = "/v1/"
    after_chunks: int = 0
    delay_s: float = 0.01
    part: Literal["head", "body"] = "body"
    status: int = 500
    message: str = "A fault was ordered."
    param: str | None = None
    retry_after_s: float | None = None
    clean: bool = False
    factor: float = 10.0
    size_bytes: int = 64 * 1024 * 1024


class FaultsLeft(Struct):
    """The answer of GET /faults: what is ordered, `count` being what is left of it, and what has struck so far."""

    faults: list[Fault]
    struck: int


def read_faults(text: bytes) -> tuple[Fault, ...]:
    """Faults from JSON; ValueError where it is none."""
    decoded = msgspec.json.decode(text, type=Fault | list[Fault])
    return (decoded,) if isinstance(decoded, Fault) else tuple(decoded)


class FaultBook:
    """The faults ordered and not yet used up."""

    def __init__(self, faults: tuple[Fault, ...], seed: int) -> None:
        self._dice = random.Random(seed)
        self._left: list[Fault] = list(faults)
        self._struck = 0

    def replace(self, faults: tuple[Fault, ...]) -> None:
        self._left = list(faults)

    def left(self) -> FaultsLeft:
        return FaultsLeft(list(self._left), self._struck)

    def draw(self, path: str, body: bytes) -> Fault | None:
        """The fault that strikes this request, if any."""
        for place, fault in enumerate(self._left):
            if fault.path not in path or fault.match.encode() not in body:
                continue
            if fault.probability < 1 and self._dice.random() >= fault.probability:
                continue
            if fault.count is not None:
                if fault.count > 1:
                    self._left[place] = msgspec.structs.replace(fault, count=fault.count - 1)
                else:
                    del self._left[place]
            self._struck += 1
            return fault
        return None
