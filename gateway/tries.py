"""Attempts that a call may still make at one model, and what those that it has made tell of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.base import ContextTooShort

if TYPE_CHECKING:
    from backends.base import AttemptFailed
    from routing.failure import Sort
    from routing.types import Endpoint


class Tries:
    """What is left to try of one model for one call."""

    __slots__ = ("_too_short_tokens", "cut_at", "failed_at", "hurried", "in_vain", "last", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        """Attempts that may still be made and fail after some work."""
        self.failed_at: frozenset[str] = frozenset()
        """Names of endpoints that are not asked again, since they failed otherwise than for want of room."""
        self.cut_at: frozenset[str] = frozenset()
        """The first of them, where they only broke off, as one does that is back in a moment: it is asked again where nobody
        else is left.
        """
        self.in_vain = False
        """Whether work has been lost."""
        self.hurried = False
        """Whether one has been given up that only took too long."""
        self.last: AttemptFailed | None = None
        """What the client is told: of an endpoint that cannot take such a call at all, only where all have said so."""
        self._too_short_tokens = 0
        """A context of so many is known not to do."""

    def failed(self, endpoint: Endpoint, failure: AttemptFailed) -> None:
        sort = failure.sort
        if sort.then != "able" or self.last is None or self.last.sort.then == "able":
            self.last = failure
        if sort.then != "room":
            self.failed_at |= {endpoint.name}
        self._cut(endpoint, sort)
        if sort.wastes is not None:
            self.left -= 1
            self.in_vain = True
        if isinstance(failure, ContextTooShort):
            tokens = failure.context_tokens or endpoint.context_tokens or 0
            self._too_short_tokens = max(self._too_short_tokens, tokens)

    def _cut(self, endpoint: Endpoint, sort: Sort) -> None:
        at = frozenset({endpoint.name})
        if sort.leaves != "reset":
            self.cut_at = frozenset()
        else:  # once a call: it could be what workers crash under
            self.cut_at = self.cut_at - at if self.in_vain else at

    def too_short(self, endpoint: Endpoint) -> bool:
        """Whether its context is known to be no longer than one that was too short."""
        return endpoint.context_tokens is not None and endpoint.context_tokens <= self._too_short_tokens
