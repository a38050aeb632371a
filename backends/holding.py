"""A stream of which calls of tools are held back until they are whole.

Half a call of a tool, once shown, can be gone on with by nobody: a worker's parser has to see it from its beginning. So it is
not shown before its arguments are JSON; where the stream breaks until then, the client has seen nothing of it, and what has
been shown before can be gone on with, or all begun anew. Arguments longer than MOST_HELD_BYTES are not waited for any
longer: whoever shows them as they are written should not have to wait for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from backends.sse import CompletionStream

if TYPE_CHECKING:
    from msgspec import Raw

    from backends.chunk import Chunk
    from backends.said import Said
    from backends.sse import Shown

MOST_HELD_BYTES = 1024
"""Of arguments: some hundred tokens, which a worker writes in a few seconds."""

MOST_HELD_CHUNKS = 1024
"""Whatever is in them."""


class HoldingStream(CompletionStream):
    """One whose call offers tools, and which has one choice."""

    said: Said

    def __init__(self, shown: Shown, event_limit_bytes: int, said: Said) -> None:
        super().__init__(shown, event_limit_bytes, said)
        self._held: list[bytes] = []
        self._held_chunks = 0
        """Of these, those that show something."""
        self._shown_tokens = 0
        """Before these."""
        self._arguments: dict[object, str] = {}
        """Of each call, as far as they have come."""
        self._may_hold = True
        """Until a call has been shown: after that it makes no difference."""

    @property
    def answers(self) -> bool:
        return self._chunks > self._held_chunks or self.done or self.finished

    def _seen(self, event: bytes, chunk: Chunk, fields: dict[str, Raw]) -> bytes:
        shown = super()._seen(event, chunk, fields)
        if not self._may_hold or not (self._held or self.said.calls_tools):
            return shown
        return self._hold(shown, chunk)

    def _hold(self, shown: bytes, chunk: Chunk) -> bytes:
        """What is to be shown now: nothing, or all that has been held back."""
        said = self.said
        if not self._held:
            settled = said.ids[: said.settled].count(b",")
            self._shown_tokens = settled if said.knows_ids else self._chunks - 1
        self._before = None  # no chunk of the usual kind may overtake it
        self._held.append(shown)
        self._held_chunks += any(choice.shows_something for choice in chunk.choices)
        said.calls_tools = not self._waits_for_more(chunk)
        if not said.calls_tools:
            self.holds, self.held_tokens = True, self.tokens - self._shown_tokens
            return b""
        self._may_hold, held = False, b"".join(self._held)
        self._held, self._held_chunks = [], 0
        self.holds, self.held_tokens = False, 0
        return held

    def _waits_for_more(self, chunk: Chunk) -> bool:
        """Whether what has come is a call that is not whole, and not too long to be waited for."""
        for choice in chunk.choices:
            if choice.finish_reason:
                return False
            calls = b"" if choice.delta is None else bytes(choice.delta.tool_calls)
            if calls and not self._add(msgspec.json.decode(calls)):
                return False  # no calls as anybody knows them
        held = self._arguments.values()
        if sum(map(len, held)) > MOST_HELD_BYTES or len(self._held) > MOST_HELD_CHUNKS:
            return False
        return not (held and all(map(_is_json, held)))

    def _add(self, calls: Any) -> bool:
        for call in calls or ():
            function = call.get("function") if isinstance(call, dict) else None
            more = (function.get("arguments") or "") if isinstance(function, dict) else ""
            if not isinstance(more, str):
                return False
            index = call.get("index") if isinstance(call, dict) else None
            self._arguments[str(index)] = self._arguments.get(str(index), "") + more
        return True


def _is_json(text: str) -> bool:
    if not text.endswith("}"):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
