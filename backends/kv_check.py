"""Whether a worker's KV events are about the prompts that were sent to it.

A wrong address, events that are switched off or another worker's stream go unnoticed elsewhere, and routing then believes
in caches that are not there. Here two things must hold before events are believed: for prompts that were computed there,
about as many tokens must be told of as stored; and blocks that say which call they belong to must belong to calls that
were sent there, not to another worker.
"""

from __future__ import annotations

from collections import OrderedDict

LEAST_TOKENS = 1000
"""Less than so many tokens prove nothing."""
LEAST_SHARE = 0.5
"""Of the tokens expected, so many must be told of. What is expected leaves out all that is doubtful."""
FADE = 0.5
"""What was seen counts half after each judgement."""
MOST_CALLS = 50_000
"""Remembered with the workers they were sent to."""


class SentCalls:
    """To which workers the latest calls were sent, by request id."""

    def __init__(self, most_calls: int = MOST_CALLS) -> None:
        self._most_calls = most_calls
        self._workers: OrderedDict[str, tuple[str, ...]] = OrderedDict()

    def note(self, request_id: str, worker: str) -> None:
        before = self._workers.get(request_id, ())
        if worker not in before:
            self._workers[request_id] = (*before, worker)
        if len(self._workers) > self._most_calls:
            self._workers.popitem(last=False)

    def workers(self, request_id: str) -> tuple[str, ...]:
        """Those it was sent to; none where it is not one of ours, or long ago."""
        return self._workers.get(request_id, ())


class SelfCheck:
    """What one worker's events say against what was sent to it."""

    def __init__(self, worker: str, sent: SentCalls) -> None:
        self.believed = False
        """Whether events have been seen to match."""
        self.mismatches = 0
        """Judgements so far that found they do not."""
        self._worker = worker
        self._sent = sent
        self._reports_cached = False
        self.forget()

    def forget(self) -> None:
        """Events have been missed, or may have been: what was seen so far proves nothing."""
        self._expected = self._due = 0.0
        """Tokens that must have been stored, and those of them for which there was time until now."""
        self._stored = self._here = self._elsewhere = 0.0
        """Tokens told of: in all, of calls sent here, and of calls sent to other workers only."""

    def used(self, prompt_tokens: int, cached_tokens: int, block_tokens: int) -> None:
        """A call there has ended that had so many prompt tokens, so many of them found in its cache."""
        self._reports_cached = self._reports_cached or cached_tokens > 0
        # The last block is computed anew even if it is there, and one that is not full is not stored.
        self._expected += max(0, prompt_tokens - cached_tokens - 2 * block_tokens)

    def stored(self, tokens: int, session_id: str | None) -> None:
        """An event has told of so many tokens."""
        self._stored += tokens
        workers = self._sent.workers(session_id) if session_id else ()
        if self._worker in workers:
            self._here += tokens
        elif workers:
            self._elsewhere += tokens

    def judge(self, *, finds_cached: bool) -> str | None:
        """What does not match, or None. Some workers find prompts in their cache (`finds_cached`) and never say so with a
        call: of them it is not known how much they had to compute.
        """
        reason = None
        known = self._reports_cached or not finds_cached
        if self._elsewhere >= LEAST_TOKENS and self._elsewhere > self._here:
            reason = f"{self._elsewhere:.0f} tokens are of calls that were sent to other workers"
        elif known and self._due >= LEAST_TOKENS:
            if self._stored < LEAST_SHARE * self._due:
                reason = f"they tell of {self._stored:.0f} tokens stored where calls stored {self._due:.0f} at least"
            else:
                self.believed = True
        if reason is not None:
            self.believed = False
            self.mismatches += 1
        self._expected *= FADE
        self._due = self._expected
        self._stored, self._here, self._elsewhere = (
            self._stored * FADE,
            self._here * FADE,
            self._elsewhere * FADE,
        )
        return reason
