"""One call at one endpoint, and what that endpoint is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routing.pool import Standing
    from routing.ticket import Ticket


class Run:
    """One call at one endpoint. It has to be ended, whatever happens."""

    __slots__ = ("_cached_tokens", "_pieces", "_standing", "_ticket")

    def __init__(
        self, standing: Standing, ticket: Ticket, cached_tokens: int, pieces: Sequence[int] = ()
    ) -> None:
        self._standing = standing
        self._ticket = ticket
        self._cached_tokens = cached_tokens
        self._pieces = pieces

    def first_token(self, now_s: float) -> None:
        self._standing.speed.first_token(self._ticket, now_s)
        if self._standing.ejection.trial is not None:
            self._standing.ejection.answers(now_s, self._ticket.start_s)
        self._standing.changed()

    @property
    def started_s(self) -> float:
        return self._ticket.start_s

    @property
    def first_s(self) -> float | None:
        """When its first token came."""
        return self._ticket.first_s

    def wrote_s(self, now_s: float) -> float:
        """Seconds since its first token, less those that prompts read there since should have taken."""
        return self._standing.speed.wrote_s(self._ticket, now_s)

    def progress(self, now_s: float, completion_tokens: int) -> None:
        """It goes on, with so many tokens so far."""
        self._standing.speed.progress(self._ticket, now_s, completion_tokens)

    def unanswered(self, now_s: float, *, refused: bool = False) -> None:
        """It ends without a whole answer: of its prompt the endpoint has in its cache what it had before and what it has
        read since, which is nothing where it `refused` the call. To be said before `ended`.
        """
        if self._pieces and self._ticket.first_s is None:
            share = 0.0 if refused else self._standing.speed.share_read(self._ticket, now_s)
            self._standing.take_back(self._pieces, share)

    def ended(self, now_s: float, completion_tokens: int = 0, cached_tokens: int | None = None) -> None:
        """It is over, with so many tokens received; `cached_tokens` as the endpoint reported them, or None."""
        standing = self._standing
        standing.inflight -= 1
        standing.changed()
        standing.speed.finish(self._ticket, now_s, completion_tokens)
        # Of one that had to wait, the prefix may have been evicted meanwhile, or not even computed: it proves nothing.
        if cached_tokens is not None and not self._ticket.queued:
            standing.found_cached(self._cached_tokens, cached_tokens)
