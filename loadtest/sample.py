"""What one call met with, and how that is read off the bytes of its reply.

The judgement is strict on purpose. vLLM sends `[DONE]` even after an error event, and a proxy in between can end a
stream early without anybody noticing; a reply counts as whole only if every choice in it has a finish_reason.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

OK = "ok"
ABORTED = "aborted"


class Sample(Struct, frozen=True, gc=False):
    """One call as its client saw it. Times are seconds from the start of the run."""

    intended_s: float
    started_s: float
    ended_s: float
    outcome: str
    """ok, aborted, connect, reset, truncated, malformed, timeout, error_event, or status_NNN."""
    first_token_s: float | None = None
    last_token_s: float | None = None
    tokens: int = 0
    bytes: int = 0

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.intended_s

    @property
    def time_per_token_s(self) -> float | None:
        if self.first_token_s is None or self.last_token_s is None or self.tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.tokens - 1)


class _Delta(Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(Struct, gc=False):
    completion_tokens: int = 0


class _Body(Struct, gc=False):
    """A stream's event or a whole reply; both have choices."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | str | None = None


_decode = msgspec.json.Decoder(_Body).decode


class StreamTally:
    """What has come of one stream, event by event."""

    __slots__ = (
        "_open",
        "_rest",
        "done",
        "error",
        "first_token_s",
        "last_token_s",
        "malformed",
        "reported",
        "tokens",
    )

    def __init__(self) -> None:
        self._rest = b""
        self._open: dict[int, bool] = {}
        self.done = False
        self.error = False
        self.malformed = False
        self.tokens = 0
        """Chunks with content."""
        self.reported: int | None = None
        """Completion tokens by the server's own count."""
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None

    def feed(self, piece: bytes, now_s: float) -> int:
        """Take in a piece of the body; gives the number of tokens in it."""
        before = self.tokens
        events = (self._rest + piece if self._rest else piece).replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = events.pop()
        for event in events:
            if event.startswith(b"data:"):
                self._take(event[5:].strip())
        if self.tokens > before:
            self.last_token_s = now_s
            if self.first_token_s is None:
                self.first_token_s = now_s
        return self.tokens - before

    def _take(self, text: bytes) -> None:
        if text == b"[DONE]":
            self.done = True
            return
        try:
            event = _decode(text)
        except msgspec.DecodeError:
            self.malformed = True
            return
        if event.error is not None:
            self.error = True
        if event.usage is not None:
            self.reported = event.usage.completion_tokens
        for choice in event.choices:
            delta = choice.delta
            if choice.text or (delta is not None and (delta.content or delta.reasoning or delta.tool_calls)):
                self.tokens += 1
            self._open[choice.index] = self._open.get(choice.index, True) and choice.finish_reason is None

    @property
    def outcome(self) -> str:
        """What the stream was, now that it has ended: whole only with `[DONE]` and every choice finished."""
        if self.error:
            return "error_event"
        if self.malformed:
            return "malformed"
        if not self.done or self._rest or not self._open or any(self._open.values()):
            return "truncated"
        return OK


def judge_body(body: bytes) -> tuple[str, int]:
    """The outcome and the number of completion tokens of a reply that is no stream."""
    try:
        reply = _decode(body)
    except msgspec.DecodeError:
        return "malformed", 0
    if reply.error is not None:
        return "error_event", 0
    if not reply.choices or any(choice.finish_reason is None for choice in reply.choices):
        return "truncated", 0
    return OK, reply.usage.completion_tokens if reply.usage is not None else 0
