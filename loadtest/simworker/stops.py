"""Stop strings, across token borders.

Text that could be the beginning of a stop string is held back until it is known not to be.
"""

from __future__ import annotations


class Stops:
    def __init__(self, strings: tuple[str, ...], *, include: bool = False) -> None:
        self._strings = strings
        self._include = include
        self._holds = max(map(len, strings), default=1) - 1
        self._held = ""

    def __bool__(self) -> bool:
        return bool(self._strings)

    def feed(self, text: str, *, may_stop: bool = True) -> tuple[str, str | None]:
        """What may be shown of the text so far, and the stop string that ends it, if one does and it may stop."""
        behind = len(self._held) if may_stop else len(self._held) + len(text)
        text = self._held + text
        found = [(at, string) for string in self._strings if (at := self._at(text, string, behind)) >= 0]
        if found:
            at, string = min(found)
            self._held = ""
            return text[: at + len(string) if self._include else at], string
        show = len(text) - self._holds
        if show <= 0:
            self._held = text
            return "", None
        self._held = text[show:]
        return text[:show], None

    @staticmethod
    def _at(text: str, string: str, behind: int) -> int:
        """Where it stands, where it ends behind there."""
        return text.find(string, max(0, behind - len(string) + 1))

    def rest(self) -> str:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        return rest
