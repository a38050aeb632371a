"""How answers to /v1/chat/completions are worded, whole and in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from loadtest.simworker.logprobs import chat_logprobs
from loadtest.simworker.wire import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatReply,
    Delta,
    FunctionCall,
    PromptDetails,
    ToolCall,
    ToolCallDelta,
    UsageBody,
)

if TYPE_CHECKING:
    from loadtest.simworker.engine import Piece, Sequence
    from loadtest.simworker.reply import Answer, Counted


class Heading(Struct, frozen=True):
    """What every chunk of a reply repeats."""

    id: str
    created: int
    model: str
    fingerprint: str


class CalledTool(Struct, frozen=True):
    """The function that the answer calls; its arguments are the answer's text."""

    name: str
    id: str
    by_choice_of_model: bool
    """tool_choice auto: no content at all, rather than an empty one."""
    finish_reason: str


class ChatFormat:
    def __init__(
        self,
        heading: Heading,
        *,
        token_ids: bool = False,
        top_logprobs: int | None = None,
        tool: CalledTool | None = None,
        prefix: str = "",
    ) -> None:
        self._heading = heading
        self._token_ids = token_ids
        self._top_logprobs = top_logprobs
        self._tool = tool
        self._prefix = prefix

    def opening(self, sequences: list[Sequence]) -> list[ChatChunk]:
        chunks = []
        for sequence in sequences:
            choice = ChatChunkChoice(sequence.index, Delta(role="assistant", content=""))
            chunk = self._chunk([choice])
            chunk.prompt_token_ids = sequence.prompt_ids if self._token_ids else None
            chunk.prompt_text = None
            chunks.append(chunk)
            if self._prefix:
                chunks.append(self._chunk([ChatChunkChoice(sequence.index, Delta(content=self._prefix))]))
        return chunks

    def chunks(self, sequence: Sequence, piece: Piece) -> list[ChatChunk]:
        choice = ChatChunkChoice(
            sequence.index, Delta(), token_ids=[piece.token] if self._token_ids else None
        )
        chunks = [self._chunk([choice])]
        if self._tool is None:
            choice.delta.content = piece.text
            if self._top_logprobs is not None:
                choice.logprobs = chat_logprobs([piece], self._top_logprobs)
        else:
            if len(sequence.emitted) == 1:
                chunks.insert(0, self._chunk([ChatChunkChoice(sequence.index, _call_begins(self._tool))]))
            choice.delta.tool_calls = [ToolCallDelta(index=0, function=FunctionCall(arguments=piece.text))]
        if piece.finish_reason is not None:
            choice.finish_reason = self._finish_reason(piece.finish_reason)
            choice.stop_reason = piece.stop_reason
        return chunks

    def closing(self, counted: Counted) -> ChatChunk:
        chunk = self._chunk([])
        chunk.usage = UsageBody(
            counted.prompt,
            counted.prompt + counted.completion,
            counted.completion,
            PromptDetails(counted.cached, 0),
        )
        chunk.system_fingerprint = self._heading.fingerprint
        return chunk

    def whole(self, answers: list[Answer], counted: Counted) -> ChatReply:
        heading = self._heading
        total = counted.prompt + counted.completion
        details = PromptDetails(counted.cached, 0, None)
        return ChatReply(
            heading.id,
            "chat.completion",
            heading.created,
            heading.model,
            [self._choice(answer) for answer in answers],
            None,
            heading.fingerprint,
            UsageBody(counted.prompt, total, counted.completion, details, None),
            prompt_token_ids=answers[0].sequence.prompt_ids if self._token_ids else None,
        )

    def _choice(self, answer: Answer) -> ChatChoice:
        sequence, last = answer.sequence, answer.pieces[-1]
        text = "".join([piece.text for piece in answer.pieces])
        logprobs = None
        if self._tool is None:
            message = AssistantMessage(content=self._prefix + text)
            if self._top_logprobs is not None:
                logprobs = chat_logprobs(answer.pieces, self._top_logprobs)
        else:
            call = ToolCall(self._tool.id, "function", FunctionCall(self._tool.name, text))
            message = AssistantMessage(
                content=None if self._tool.by_choice_of_model else "", tool_calls=[call]
            )
        return ChatChoice(
            sequence.index,
            message,
            logprobs,
            self._finish_reason(last.finish_reason),
            last.stop_reason,
            sequence.emitted if self._token_ids else None,
        )

    def _finish_reason(self, reason: str | None) -> str | None:
        return self._tool.finish_reason if self._tool is not None and reason == "stop" else reason

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        heading = self._heading
        return ChatChunk(heading.id, "chat.completion.chunk", heading.created, heading.model, choices)


def _call_begins(tool: CalledTool) -> Delta:
    function = FunctionCall(tool.name, "")
    return Delta(tool_calls=[ToolCallDelta(id=tool.id, type="function", index=0, function=function)])
