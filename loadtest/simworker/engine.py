"""The clockwork of a worker: who waits, who is read (prefill), who gets the next token.

Continuous batching as vLLM does it, simplified: up to `max_num_seqs` sequences hold a slot; prompts are read one at a
time; all others get one token per step, and a step takes longer the more there are. One timer drives all of it, so
that a step costs the same whether tests run one worker or eight. Where a step takes no time, sequences advance in
bursts, and the event loop gets its turn in between.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

from loadtest.simworker.prefix_cache import PrefixCache
from loadtest.simworker.tokenizer import EOS, token_bytes

if TYPE_CHECKING:
    from loadtest.simworker.source import Source
    from loadtest.simworker.spec import WorkerSpec
    from loadtest.simworker.stops import Stops

FinishReason = Literal["stop", "length"]
_BURST = 64


class Piece(Struct, gc=False):
    """One token of an answer."""

    token: int
    text: str
    """What it adds to the text; may be less than the token, or more, where stop strings hold text back."""
    roll: int
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Sink(Protocol):
    def token(self, sequence: Sequence, piece: Piece) -> None: ...


class Sampling(Struct, frozen=True):
    """When an answer ends, and how urgent it is."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    priority: int = 0
    cache_salt: str | None = None
    slowness: float = 1.0
    """By what factor it is served more slowly than its like."""


class Sequence:
    """One answer in the making."""

    __slots__ = (
        "_decoder",
        "_source",
        "_stops",
        "cached_tokens",
        "done",
        "due",
        "emitted",
        "index",
        "prompt_ids",
        "sampling",
        "sink",
    )

    def __init__(
        self, index: int, prompt_ids: list[int], source: Source, stops: Stops, sampling: Sampling, sink: Sink
    ) -> None:
        self.index = index
        self.prompt_ids = prompt_ids
        self.sampling = sampling
        self.sink = sink
        self.emitted: list[int] = []
        self.cached_tokens = 0
        self.due = 0.0
        self.done = False
        self._source = source
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def advance(self) -> Piece:
        """The next token, and whether it is the last."""
        sampling = self.sampling
        count = len(self.emitted) + 1
        may_stop = count > sampling.min_tokens
        may_end = may_stop and not sampling.ignore_eos
        token = self._source.next(may_end=may_end)
        self.emitted.append(token)
        ended = token == EOS
        text = "" if ended else self._decoder.decode(token_bytes(token))
        piece = Piece(token, text, self._source.roll)
        if self._stops:
            piece.text, stopped_by = self._stops.feed(text, may_stop=may_stop)
            if stopped_by is not None:
                piece.finish_reason, piece.stop_reason = "stop", stopped_by
                return piece
        if ended:
            piece.finish_reason = "stop"
        elif token in sampling.stop_token_ids and may_stop:
            piece.finish_reason, piece.stop_reason = "stop", token
        elif count >= sampling.max_tokens:
            piece.finish_reason = "length"
        if piece.finish_reason and self._stops:
            piece.text += self._stops.rest()
        return piece


class Engine:
    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.started_s = time.time()
        self.cache = PrefixCache(spec.kv_blocks, spec.block_size)
        self.waiting: deque[Sequence] = deque()
        self.running: set[Sequence] = set()
        self.halted = False
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.rejected = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self._unread: deque[Sequence] = deque()
        self._reading: asyncio.TimerHandle | None = None
        self._decoding: list[Sequence] = []
        self._ticking: asyncio.Handle | None = None
        self._blocks_used = 0
        self._loop = asyncio.get_running_loop()
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def full(self) -> bool:
        """Whether the queue takes no more."""
        most = self.spec.max_num_queued_reqs
        return most is not None and len(self.running) >= self.spec.max_num_seqs and len(self.waiting) >= most

    @property
    def kv_usage(self) -> float:
        """The part of the blocks that running sequences hold."""
        held = sum(self.cache.needed(len(s.prompt_ids) + len(s.emitted)) for s in self.running)
        return min(1.0, held / self.spec.kv_blocks)

    def submit(self, sequence: Sequence) -> None:
        self.idle.clear()
        if self.spec.scheduling_policy == "priority":
            insort(self.waiting, sequence, key=lambda waiting: waiting.sampling.priority)
        else:
            self.waiting.append(sequence)
        self._admit()

    def abort(self, sequence: Sequence) -> None:
        """The client has left: free the slot at once."""
        if not sequence.done:
            self._retire(sequence, "abort")
            self._admit()

    def halt(self) -> None:
        """No token comes any more, for anybody; what waits keeps waiting."""
        self.halted = True
        for timer in (self._reading, self._ticking):
            if timer is not None:
                timer.cancel()

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.spec.max_num_seqs and not self.halted:
            need = self.cache.needed(len(self.waiting[0].prompt_ids) + 1)
            if self.running and self._blocks_used + need > self.spec.kv_blocks:
                return
            self._blocks_used += need
            sequence = self.waiting.popleft()
            self.running.add(sequence)
            self._unread.append(sequence)
            self._read()

    def _read(self) -> None:
        """Start reading the next prompt, unless one is being read."""
        while self._unread and self._reading is None and not self.halted:
            sequence = self._unread[0]
            sequence.cached_tokens = self.cache.lookup(sequence.prompt_ids, sequence.sampling.cache_salt)
            self.prompt_tokens += len(sequence.prompt_ids)
            self.cached_tokens += sequence.cached_tokens
            tokens = len(sequence.prompt_ids) - sequence.cached_tokens
            takes_s = tokens * self.spec.prefill_s_per_token * sequence.sampling.slowness
            if takes_s > 0:
                self._reading = self._loop.call_later(takes_s, self._read_to_end)
            else:
                self._begin_decoding(self._unread.popleft())

    def _read_to_end(self) -> None:
        self._reading = None
        self._begin_decoding(self._unread.popleft())
        self._read()

    def _begin_decoding(self, sequence: Sequence) -> None:
        self.cache.store(sequence.prompt_ids, sequence.sampling.cache_salt)
        self._decoding.append(sequence)
        if self._ticking is None:
            # An idle engine gives the first token with the end of the prompt; a busy one at the end of its step.
            self._ticking = self._loop.call_soon(self._tick, self._loop.time())

    def _tick(self, started: float) -> None:
        """One step: a token for everybody. `started` is when it was to be, so that lateness does not add up."""
        step_s = self.spec.decode_s_per_token * (1 + self.spec.batch_slowdown * (len(self._decoding) - 1))
        for sequence in self._decoding:
            if step_s == 0:
                self._emit(sequence, _BURST)
            elif started >= sequence.due - step_s / 2:
                self._emit(sequence, 1)
                sequence.due = started + step_s * sequence.sampling.slowness
        self._decoding = [sequence for sequence in self._decoding if not sequence.done]
        self._admit()
        if not self._decoding or self.halted:
            self._ticking = None
        elif step_s == 0:
            self._ticking = self._loop.call_soon(self._tick, started)
        else:
            next_start = max(started + step_s, self._loop.time())
            self._ticking = self._loop.call_at(next_start, self._tick, next_start)

    def _emit(self, sequence: Sequence, most: int) -> None:
        for _ in range(most):
            if sequence.done:
                return
            piece = sequence.advance()
            self.generated_tokens += 1
            if piece.finish_reason is not None:
                self._retire(sequence, piece.finish_reason)
            sequence.sink.token(sequence, piece)

    def _retire(self, sequence: Sequence, reason: str) -> None:
        sequence.done = True
        self.finished[reason] += 1
        if sequence in self.running:
            self._free(sequence)
        else:
            self.waiting.remove(sequence)
        if not self.running and not self.waiting:
            self.idle.set()

    def _free(self, sequence: Sequence) -> None:
        """Give back its slot and blocks; the blocks stay remembered until others need the room."""
        self.running.remove(sequence)
        self._blocks_used -= self.cache.needed(len(sequence.prompt_ids) + 1)
        if sequence in self._unread:
            if sequence is self._unread[0] and self._reading is not None:
                self._reading.cancel()
                self._reading = None
            self._unread.remove(sequence)
            self._loop.call_soon(self._read)
        elif sequence.emitted:
            self.cache.store(sequence.prompt_ids + sequence.emitted[:-1], sequence.sampling.cache_salt)
