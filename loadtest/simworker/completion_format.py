"""How answers to /v1/completions are worded, whole and in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.simworker.logprobs import completion_logprobs
from loadtest.simworker.wire import (
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionReply,
    PromptDetails,
    UsageBody,
)

if TYPE_CHECKING:
    from loadtest.simworker.chat_format import Heading
    from loadtest.simworker.engine import Piece, Sequence
    from loadtest.simworker.reply import Answer, Counted


class CompletionFormat:
    def __init__(
        self,
        heading: Heading,
        *,
        token_ids: bool = False,
        top_logprobs: int | None = None,
        echoes: list[str] | None = None,
    ) -> None:
        self._heading = heading
        self._token_ids = token_ids
        self._top_logprobs = top_logprobs
        self._echoes = echoes
        """The prompt's text, for each choice, where the client wants it repeated."""
        self._offsets: dict[int, int] = {}

    def opening(self, sequences: list[Sequence]) -> list[CompletionChunk]:
        del sequences  # plain completions have no role to open with
        return []

    def chunks(self, sequence: Sequence, piece: Piece) -> list[CompletionChunk]:
        first = len(sequence.emitted) == 1
        logprobs = None
        if self._top_logprobs is not None:
            offset = self._offsets.get(sequence.index, 0)
            logprobs = completion_logprobs([piece], self._top_logprobs, offset)
            self._offsets[sequence.index] = offset + len(logprobs.tokens[0])
        choice = CompletionChunkChoice(
            sequence.index,
            self._echo(sequence.index) + piece.text if first else piece.text,
            logprobs,
            piece.finish_reason,
            piece.stop_reason,
            sequence.prompt_ids if first and self._token_ids else None,
            [piece.token] if self._token_ids else None,
        )
        return [self._chunk([choice])]

    def closing(self, counted: Counted) -> CompletionChunk:
        chunk = self._chunk([])
        total = counted.prompt + counted.completion
        chunk.usage = UsageBody(counted.prompt, total, counted.completion, PromptDetails(counted.cached))
        chunk.system_fingerprint = self._heading.fingerprint
        return chunk

    def whole(self, answers: list[Answer], counted: Counted) -> CompletionReply:
        heading = self._heading
        total = counted.prompt + counted.completion
        details = PromptDetails(counted.cached, None, None)
        return CompletionReply(
            heading.id,
            "text_completion",
            heading.created,
            heading.model,
            [self._choice(answer) for answer in answers],
            None,
            heading.fingerprint,
            UsageBody(counted.prompt, total, counted.completion, details, None),
        )

    def _choice(self, answer: Answer) -> CompletionChoice:
        sequence, last = answer.sequence, answer.pieces[-1]
        logprobs = None
        if self._top_logprobs is not None:
            logprobs = completion_logprobs(answer.pieces, self._top_logprobs, 0)
        return CompletionChoice(
            sequence.index,
            self._echo(sequence.index) + "".join([piece.text for piece in answer.pieces]),
            logprobs,
            last.finish_reason,
            last.stop_reason,
            sequence.emitted if self._token_ids else None,
            None,
            sequence.prompt_ids if self._token_ids else None,
        )

    def _echo(self, index: int) -> str:
        return self._echoes[index] if self._echoes else ""

    def _chunk(self, choices: list[CompletionChunkChoice]) -> CompletionChunk:
        heading = self._heading
        return CompletionChunk(heading.id, "text_completion", heading.created, heading.model, choices)
