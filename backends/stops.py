"""Stop strings in a stream that goes on elsewhere, where a worker cannot see those that began before it was asked.

It does as vLLM does: text that could be the beginning of a stop string is held back, and of several the one that is
complete first ends the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Stops:
    def __init__(
        self, strings: Sequence[str], shown: str = "", held: str = "", *, include: bool = False
    ) -> None:
        """`shown` is the answer so far, and `held` what is known of it beyond that. `include`: a stop string is shown."""
        self._strings = tuple(filter(None, strings))
        self._include = include
        self._reach = max(map(len, self._strings), default=1) - 1
        """How far back a stop string can begin that ends in new text."""
        self._holds = 0 if include else self._reach
        self._shown = self._end_of(shown)
        self.held = held

    def feed(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """What may be shown now that `text` has come, and the stop string that ends the answer there, if one does.

        Where it may not stop, a stop string that ends in this text is one of the answer's own.
        """
        before = self._shown + self.held
        found = self._found(before, text) if may_stop else None
        if found is not None:
            start, string = found
            cut = start + len(string) if self._include else start
            self.held = ""
            return (before + text)[len(self._shown) : cut], string
        self.held += text
        show = self.held[: max(0, len(self.held) - self._holds)]
        self.held = self.held[len(show) :]
        self._shown = self._end_of(self._shown + show)
        return show, None

    def rest(self) -> str:
        """What was held back, once no more text comes."""
        rest, self.held = self.held, ""
        return rest

    def _found(self, before: str, text: str) -> tuple[int, str] | None:
        """The stop string that is complete first of those that end in `text`, and where it begins."""
        whole = before + text
        found: tuple[int, str] | None = None
        for string in self._strings:
            start = whole.find(string, max(0, len(before) - len(string) + 1))
            if start >= 0 and (found is None or start + len(string) < found[0] + len(found[1])):
                found = start, string
        return found

    def _end_of(self, text: str) -> str:
        return text[-self._reach :] if self._reach else ""
