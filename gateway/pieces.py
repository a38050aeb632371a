"""An answer that several endpoints have written, one after another: whose work each piece was, and what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.ledger import answer, waste
from gateway.plausible import plausible
from routing.types import Endpoint, Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.ledger import Share
    from gateway.openai import Request


class Piece(Struct, frozen=True):
    """What one endpoint wrote of it."""

    endpoint: Endpoint
    reported: Usage | None
    kept_tokens: int


def shares_of(
    pieces: Sequence[Piece], usage: Usage, request: Request, charged_nano_usd: Callable[[Usage], int]
) -> list[Share]:
    """Of each endpoint that wrote a piece. Together they are what the client received, `usage`, and is charged."""
    shares: list[Share] = []
    read = Usage(usage.prompt_tokens, usage.cached_tokens, estimated=usage.estimated)
    so_far_nano_usd = written = 0
    for piece in pieces:
        if shares:
            again = _read_again(piece, request, usage.prompt_tokens, written)
            shares.append(waste(piece.endpoint, again, "read_again"))
            read = Usage(estimated=usage.estimated)
        tokens = min(piece.kept_tokens, usage.completion_tokens - written)
        thought = min(tokens, max(0, usage.reasoning_tokens - written))  # it comes first
        written += tokens
        reasoning_tokens = min(written, usage.reasoning_tokens)
        so_far = Usage(usage.prompt_tokens, usage.cached_tokens, written, reasoning_tokens=reasoning_tokens)
        charge_nano_usd = charged_nano_usd(so_far) - so_far_nano_usd
        so_far_nano_usd += charge_nano_usd
        wrote = Usage(read.prompt_tokens, read.cached_tokens, tokens, usage.estimated, thought)
        shares.append(answer(piece.endpoint, wrote, charge_nano_usd))
    return shares


def _read_again(piece: Piece, request: Request, prompt_tokens: int, written: int) -> Usage:
    """What an endpoint has read that went on behind so much of an answer."""
    reported = piece.reported
    if reported is not None and plausible(reported, request, piece.endpoint, read_tokens=written):
        return Usage(reported.prompt_tokens, reported.cached_tokens, estimated=reported.estimated)
    return Usage(prompt_tokens + written, estimated=True)
