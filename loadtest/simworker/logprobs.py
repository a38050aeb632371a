"""Log probabilities for tokens that were never probable: made of the same dice as the token, in vLLM's two shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.simworker.tokenizer import FIRST_WORD, WORDS, token_bytes
from loadtest.simworker.wire import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from loadtest.simworker.engine import Piece


def ranked(piece: Piece, most: int) -> list[tuple[bytes, float]]:
    """The token and the next likely ones, likeliest first; at least the token itself."""
    logprob = -((piece.roll >> 4) & 0x7FF) / 1024
    candidates = [(token_bytes(piece.token), logprob)]
    for place in range(1, most):
        other = FIRST_WORD + (piece.roll + piece.token * place) % len(WORDS)
        if other != piece.token:
            candidates.append((token_bytes(other), logprob - place / 2))
    return candidates


def chat_logprobs(pieces: list[Piece], most: int) -> ChatLogprobs:
    content = []
    for piece in pieces:
        tops = [
            TopLogprob(raw.decode(errors="replace"), value, list(raw)) for raw, value in ranked(piece, most)
        ]
        first = tops[0]
        content.append(TokenLogprob(first.token, first.logprob, first.bytes, tops[:most]))
    return ChatLogprobs(content)


def completion_logprobs(pieces: list[Piece], most: int, offset: int) -> CompletionLogprobs:
    logprobs = CompletionLogprobs([], [], [], [])
    for piece in pieces:
        tops = {raw.decode(errors="replace"): value for raw, value in ranked(piece, max(1, most))}
        token, logprob = next(iter(tops.items()))
        logprobs.text_offset.append(offset)
        logprobs.token_logprobs.append(logprob)
        logprobs.tokens.append(token)
        logprobs.top_logprobs.append(tops)
        offset += len(token)
    return logprobs
