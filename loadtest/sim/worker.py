"""The clockwork of a simulated worker: who waits, whose prompt is read, how fast everybody gets tokens.

A fluid model of vLLM's continuous batching with chunked prefill. Prompts are read one after another. A step that reads a
chunk of a prompt also makes one token for each running sequence, so while a prompt is read all others come to a near
stop: that stall is what a router has to reckon with. Between two events everything moves at constant rates, so that a
call costs a handful of events however many tokens it makes, and an hour of a fleet runs in seconds.

Simplified: a sequence reserves the KV pages of its whole answer when admitted, where vLLM would at worst preempt one.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from math import inf

from msgspec import Struct

from loadtest.sim.cache import PagedCache

CHUNK_TOKENS = 2048
"""Tokens per step (vLLM's max_num_batched_tokens)."""

MAX_SEQUENCES = 256
"""Sequences running at once (vLLM's max_num_seqs)."""

QUADRATIC_TOKENS = 40_000
"""Tokens of context at which attention doubles the price of reading one more."""

LEAST_TOKENS = 16
"""Tokens of a prompt that are always read anew: its last page."""


class Spec(Struct, frozen=True):
    """What a worker can do."""

    work_per_s: float
    """Token-equivalents of prefill per second."""
    step_s: float
    """Seconds of a decode step, whatever the batch."""
    sequence_s: float
    """Seconds that each sequence of the batch adds to a step."""
    kv_tokens: int
    """Tokens that its KV cache holds."""


class Job(Struct, eq=False):
    """One call at one worker."""

    prompt_tokens: int
    output_tokens: int
    pages: tuple[int, ...]
    answer: tuple[int, ...] = ()
    """Pages of its answer that a later prompt may begin with."""
    cached_tokens: int = 0
    unnamed: int = 0


class Event(Struct, frozen=True):
    """What a worker puts on the wire."""

    at_s: float
    job: Job
    last: bool
    """The last token rather than the first."""


def prefill_work(prompt_tokens: int, cached_tokens: int) -> float:
    """Token-equivalents of reading what is not cached of a prompt."""
    uncached = max(LEAST_TOKENS, prompt_tokens - cached_tokens)
    mean_context = max(prompt_tokens, uncached) - uncached / 2
    return uncached * (1.0 + mean_context / QUADRATIC_TOKENS)


class Worker:
    """Time goes forward only: every method first brings the worker to `now_s`, whose events `events` then gives."""

    def __init__(self, spec: Spec, page_tokens: int) -> None:
        self.spec = spec
        self.page_tokens = page_tokens
        self.cache = PagedCache(spec.kv_tokens // page_tokens)
        self.waiting: deque[Job] = deque()
        self._slowness = 1.0
        self._reading: Job | None = None
        self._left = 0.0
        """Token-equivalents left of the prompt being read."""
        self._decoding: list[tuple[float, int, Job]] = []
        """A heap by the count of tokens at which each ends."""
        self._tokens = 0.0
        """Tokens that a sequence running since the beginning would have by now."""
        self._at_s = 0.0
        self._number = 0
        self._happened: list[Event] = []

    @property
    def running(self) -> int:
        return len(self._decoding) + (self._reading is not None)

    def submit(self, now_s: float, job: Job) -> None:
        self.advance(now_s)
        self.waiting.append(job)
        self._admit()

    def progress(self, job: Job) -> tuple[int, int]:
        """How many tokens of its prompt have been read for it by now, and how many it has got."""
        uncached = job.prompt_tokens - job.cached_tokens
        if job is self._reading:
            left = self._left / prefill_work(job.prompt_tokens, job.cached_tokens)
            return round(uncached * (1.0 - min(1.0, max(0.0, left)))), 0
        for end_tokens, _, each in self._decoding:
            if each is job:
                return uncached, max(1, job.output_tokens - round(end_tokens - self._tokens))
        return 0, 0

    def running_jobs(self) -> list[tuple[Job, int]]:
        """Those that get tokens, and how many each has got."""
        tokens = self._tokens
        return [(job, max(1, job.output_tokens - round(end - tokens))) for end, _, job in self._decoding]

    def abort(self, now_s: float, job: Job) -> tuple[int, int]:
        """Its client has left. Gives its progress; where it is not here, none."""
        self.advance(now_s)
        read_tokens, made_tokens = self.progress(job)
        if job in self.waiting:
            self.waiting.remove(job)
        elif job is self._reading:
            self._reading = None
            self.cache.release(job.pages, job.unnamed)
            self.cache.drop(job.pages[(job.cached_tokens + read_tokens) // self.page_tokens :])
        elif made_tokens:
            self._decoding = [each for each in self._decoding if each[2] is not job]
            heapify(self._decoding)
            self.cache.release(job.pages, job.unnamed)
        self._admit()
        return read_tokens, made_tokens

    def slow_down(self, now_s: float, slowness: float) -> None:
        """From now on everything takes `slowness` times as long as it should."""
        self.advance(now_s)
        self._slowness = slowness

    def next_s(self) -> float:
        """When something happens next, if nothing comes in between."""
        return self._at_s + min(self._steps()[2:])

    def events(self) -> list[Event]:
        """What has happened since last asked."""
        happened, self._happened = self._happened, []
        return happened

    def advance(self, now_s: float) -> None:
        while True:
            work_per_s, tokens_per_s, read_s, decoded_s = self._steps()
            step_s = min(read_s, decoded_s)
            if self._at_s + step_s > now_s:
                break
            self._move(step_s, work_per_s, tokens_per_s)
            if read_s <= decoded_s:
                self._read_to_end()
            else:
                self._end(heappop(self._decoding)[2])
        self._move(now_s - self._at_s, work_per_s, tokens_per_s)
        self._at_s = now_s

    def _steps(self) -> tuple[float, float, float, float]:
        """Token-equivalents and tokens per second, and in how many seconds the next prompt and answer are done."""
        spec, decoding = self.spec, self._decoding
        step_s = (spec.step_s + spec.sequence_s * len(decoding)) * self._slowness if decoding else 0.0
        work_per_s = 0.0
        read_s = decoded_s = inf
        tokens_per_s = 0.0
        if self._reading is not None:
            step_s += CHUNK_TOKENS / spec.work_per_s * self._slowness
            work_per_s = CHUNK_TOKENS / step_s
            read_s = self._left / work_per_s
        if decoding:
            tokens_per_s = 1.0 / step_s
            decoded_s = max(0.0, decoding[0][0] - self._tokens) * step_s
        return work_per_s, tokens_per_s, read_s, decoded_s

    def _move(self, seconds: float, work_per_s: float, tokens_per_s: float) -> None:
        self._left -= work_per_s * seconds
        self._tokens += tokens_per_s * seconds
        self._at_s += seconds

    def _admit(self) -> None:
        """Begin to read the next prompt, if none is being read and there is room."""
        if self._reading is not None or not self.waiting or self.running >= MAX_SEQUENCES:
            return
        job = self.waiting[0]
        pages = -(-(job.prompt_tokens + job.output_tokens) // self.page_tokens)
        # Looked up only now: what those before it have read is there.
        found = self.cache.hits(job.pages)
        job.unnamed = max(0, pages - len(job.pages))
        if not self.cache.admit(job.pages, job.unnamed):
            return
        self.waiting.popleft()
        job.cached_tokens = min(found * self.page_tokens, max(0, job.prompt_tokens - LEAST_TOKENS))
        self._reading = job
        self._left = prefill_work(job.prompt_tokens, job.cached_tokens)

    def _read_to_end(self) -> None:
        job = self._reading
        assert job is not None  # noqa: S101 - the caller has seen it
        self._reading = None
        spec = self.spec
        # The first token leaves when the step is over, which the running sequences are a part of.
        step_s = (spec.step_s + spec.sequence_s * len(self._decoding)) * self._slowness
        self._happened.append(Event(self._at_s + step_s, job, last=False))
        self._number += 1
        heappush(self._decoding, (self._tokens + max(1, job.output_tokens - 1), self._number, job))
        self._admit()

    def _end(self, job: Job) -> None:
        self.cache.release(job.pages, job.unnamed, job.answer)
        self._happened.append(Event(self._at_s, job, last=True))
        self._admit()
