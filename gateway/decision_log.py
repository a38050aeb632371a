"""A sample of the gateway's decisions as JSON lines, with what became of each call: to be looked into, and planned again
against other settings. Steps by which churn was hidden from a client are lines as well, and all of them are kept.

A line has all that its plan was made of, so it can be replayed by itself, and nothing of what anybody wrote: neither
prompts nor keys. Lines are encoded and written by a thread beside the event loop; where it does not keep up, decisions are
dropped and counted, and no call waits.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import random
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from gateway.ledger import Share  # noqa: TC001 - as below
from gateway.steps import Step  # noqa: TC001 - as below
from routing.decision import Decision  # noqa: TC001 - msgspec reads annotations at run time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

    from gateway.ledger import UsageRow
    from routing.types import Plan

log = logging.getLogger(__name__)

WAITING_DECISIONS = 1000
"""In memory until they are written: some megabytes where the fleet is large."""
_CLOSING_S = 5.0
"""For how long the end of the process waits for a disk that is stuck."""


class Ended(Struct, frozen=True):
    """What became of the call."""

    outcome: str
    """ok, client_left, or the code of the error."""
    status: int
    endpoint: str
    """The one that served it, or "" where none did."""
    attempts: int
    """Over all plans of the call: of the first, the best so many were tried."""
    ttft_s: float | None
    """Of streams."""
    duration_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    cost_nano_usd: int = 0
    waste_nano_usd: int = 0
    shares: tuple[Share, ...] = ()
    """Where it was not one endpoint alone: who did what for it, and at what price."""

    @classmethod
    def of(cls, row: UsageRow) -> Self:
        return cls(
            outcome=row.outcome,
            status=row.status,
            endpoint=row.endpoint,
            attempts=row.attempts,
            ttft_s=None if row.ttft_ms is None else row.ttft_ms / 1000,
            duration_s=row.duration_ms / 1000,
            prompt_tokens=row.prompt_tokens,
            cached_tokens=row.cached_tokens,
            completion_tokens=row.completion_tokens,
            cost_nano_usd=row.cost_nano_usd,
            waste_nano_usd=row.waste_nano_usd,
            shares=row.shares,
        )


class Line(Struct, frozen=True):
    """One decision."""

    time_ms: int
    """When its call began, milliseconds since 1970 UTC."""
    call_id: str
    """As in the database's usage."""
    tenant: str
    api: str
    stream: bool
    asked_model: str
    """The name that the client used, which may stand for another model elsewhere."""
    decision: Decision
    ranked: list[tuple[str, float]]
    """Endpoints in the order of failover, with their scores in nano-USD."""
    ended: Ended
    step: Step | None = None
    """Where it was not for the call as it came, but in its midst: what was done by this plan."""


class _Planned(Struct, frozen=True):
    asked_model: str
    decision: Decision
    plan: Plan
    step: Step | None


class DecisionLog:
    """To be used on the event loop, inside the block of `writing`."""

    def __init__(self, file: RotatingFile, sample: float) -> None:
        self.written = 0
        self._file = file
        self._sample = sample
        self._running: dict[str, list[_Planned]] = {}
        """By call, until it has ended."""
        self._waiting: queue.Queue[tuple[_Planned, UsageRow] | None] = queue.Queue(WAITING_DECISIONS)
        self._too_many = 0
        self._not_written = 0
        self._encode = msgspec.json.Encoder().encode

    @property
    def dropped(self) -> int:
        return self._too_many + self._not_written

    def samples(self) -> bool:
        """Whether the next decision is to be kept."""
        return random.random() < self._sample  # noqa: S311 - no secret

    def planned(
        self, call_id: str, asked_model: str, decision: Decision, plan: Plan, step: Step | None = None
    ) -> None:
        """A decision to keep. It is written when its call has ended, and with it what has become of the step."""
        self._running.setdefault(call_id, []).append(_Planned(asked_model, decision, plan, step))

    def ended(self, row: UsageRow) -> None:
        """A call has ended, of which decisions may have been kept."""
        for planned in self._running.pop(row.call_id, ()):
            try:
                self._waiting.put_nowait((planned, row))
            except queue.Full:
                self._too_many += 1

    @contextmanager
    def writing(self) -> Iterator[Self]:
        """Write what is kept while the block runs, and what is left when it has ended."""
        thread = threading.Thread(target=self._write, name="decision log", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            try:
                self._waiting.put(None, timeout=_CLOSING_S)
                thread.join(_CLOSING_S)
            except queue.Full:
                log.warning("the decision log could not be written to its end")

    def _write(self) -> None:
        failing = False
        while (kept := self._waiting.get()) is not None:
            try:
                self._file.append(self._encode(_line(*kept)) + b"\n")
            except OSError as failure:
                if not failing:
                    log.error("the decision log cannot be written, decisions are dropped: %s", failure)  # noqa: TRY400  the disk's fault
                failing = True
                self._not_written += 1
            else:
                failing = False
                self.written += 1
        self._file.close()


def _line(planned: _Planned, row: UsageRow) -> Line:
    return Line(
        time_ms=row.time_ms,
        call_id=row.call_id,
        tenant=row.tenant,
        api=row.api,
        stream=row.stream,
        asked_model=planned.asked_model,
        decision=planned.decision,
        ranked=[(each.endpoint.name, each.score_nano_usd) for each in planned.plan.ranked],
        ended=Ended.of(row),
        step=planned.step,
    )


class RotatingFile:
    """A file to append lines to; when it is full it becomes `NAME.1`, that one `NAME.2`, and the oldest is deleted."""

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        """Raises OSError where it cannot be written."""
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd: int | None = None
        self._size = 0
        self._torn = False
        """The disk has taken only a part of the last line."""
        self._open()

    def append(self, line: bytes) -> None:
        """Raises OSError where it could not be written."""
        if self._fd is not None and self._size and self._size + len(line) > self._max_bytes:
            self.close()
            self._move_on()
        fd = self._open()
        if self._torn:
            line = b"\n" + line
        written = os.write(fd, line)
        self._size += written
        self._torn = 0 < written < len(line)
        if written < len(line):
            raise OSError(errno.ENOSPC, "the disk took a part only", str(self._path))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> int:
        if self._fd is None:
            # What serving costs us is not for everybody on the machine to read.
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        return self._fd

    def _move_on(self) -> None:
        for number in range(self._keep, 0, -1):
            newer = self._numbered(number - 1) if number > 1 else self._path
            if newer.exists():
                newer.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
