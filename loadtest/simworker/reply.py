"""From tokens to a reply: one sink for a whole answer, one for a stream, and what they need of a wire format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import Struct

from loadtest.simworker.wire import UsageBody

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.simworker.connection import Exchange
    from loadtest.simworker.engine import Piece, Sequence

_ENCODER = msgspec.json.Encoder()
_DONE = b"data: [DONE]\n\n"


class Answer:
    """One choice, as far as it has come."""

    __slots__ = ("pieces", "sequence")

    def __init__(self, sequence: Sequence) -> None:
        self.sequence = sequence
        self.pieces: list[Piece] = []


class Counted(Struct, gc=False):
    """Tokens of a whole reply."""

    prompt: int
    cached: int
    completion: int


class Format(Protocol):
    """How chat and plain completions word it."""

    def opening(self, sequences: list[Sequence]) -> list[Any]: ...
    def chunks(self, sequence: Sequence, piece: Piece) -> list[Any]: ...
    def closing(self, counted: Counted) -> Any: ...
    def whole(self, answers: list[Answer], counted: Counted) -> Any: ...


class StreamUsage(Struct, frozen=True):
    include: bool = False
    continuous: bool = False


class Reply:
    """What both kinds share: the count of choices still to come."""

    def __init__(
        self,
        exchange: Exchange,
        wording: Format,
        choices_per_prompt: int,
        finished: Callable[[Counted], None],
    ) -> None:
        self._exchange = exchange
        self._wording = wording
        self._per_prompt = choices_per_prompt
        self._finished = finished
        self._sequences: list[Sequence] = []
        self._left = 0

    def begin(self, sequences: list[Sequence]) -> None:
        self._sequences = sequences
        self._left = len(sequences)

    def _count(self) -> Counted:
        """Each prompt is counted once, however many choices were made of it; called when all have ended."""
        prompts = self._sequences[:: self._per_prompt]
        counted = Counted(
            sum(len(sequence.prompt_ids) for sequence in prompts),
            sum(sequence.cached_tokens for sequence in prompts),
            sum(len(sequence.emitted) for sequence in self._sequences),
        )
        self._finished(counted)
        return counted


class WholeReply(Reply):
    def begin(self, sequences: list[Sequence]) -> None:
        super().begin(sequences)
        self._answers = [Answer(sequence) for sequence in sequences]

    def token(self, sequence: Sequence, piece: Piece) -> None:
        self._answers[sequence.index].pieces.append(piece)
        if piece.finish_reason is not None:
            self._left -= 1
            if self._left == 0:
                body = self._wording.whole(self._answers, self._count())
                self._exchange.reply(200, _ENCODER.encode(body))


class StreamReply(Reply):
    def __init__(
        self,
        exchange: Exchange,
        wording: Format,
        choices_per_prompt: int,
        finished: Callable[[Counted], None],
        usage: StreamUsage,
    ) -> None:
        super().__init__(exchange, wording, choices_per_prompt, finished)
        self._usage = usage
        self._opened = False

    def token(self, sequence: Sequence, piece: Piece) -> None:
        if not self._opened:
            self._opened = True
            for chunk in self._wording.opening(self._sequences):
                self._send(chunk, sequence, 0)
        for chunk in self._wording.chunks(sequence, piece):
            self._send(chunk, sequence, len(sequence.emitted))
        if piece.finish_reason is not None:
            self._left -= 1
            if self._left == 0:
                self._end()

    def _send(self, chunk: Any, sequence: Sequence, emitted: int) -> None:
        if self._usage.continuous:
            prompt = len(sequence.prompt_ids)
            chunk.usage = UsageBody(prompt, prompt + emitted, emitted, completion_tokens_details=None)
        self._exchange.event(b"data: %b\n\n" % _ENCODER.encode(chunk))

    def _end(self) -> None:
        counted = self._count()
        if self._usage.include:
            self._exchange.event(b"data: %b\n\n" % _ENCODER.encode(self._wording.closing(counted)))
        self._exchange.event(_DONE)
        self._exchange.end_stream()
