"""Whether what an endpoint says it has used can be true.

Tenants are charged and nodes are paid by what workers report, and whoever runs a worker can have it report anything. What no
honest worker could have used is not believed: the call is then charged as one whose usage is not known, by the gateway's own
count. Bounds are wide, so that no honest report is doubted; within them a worker can still exaggerate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.traits import traits_of
from routing.resume import Trait
from routing.types import Usage

if TYPE_CHECKING:
    from backends.said import Said
    from gateway.openai import Request
    from routing.types import Endpoint

TOKENS_PER_BYTE = 2
"""No token is less than a byte of the text; a template may write tools and documents longer than they came."""

TEMPLATE_TOKENS = 8192
"""What a template may add of its own, such as a model's usual system prompt."""

LONGEST_CONTEXT_TOKENS = 2**21
"""Where neither the call nor the endpoint says how much there may be."""

_WRITES_MORE = frozenset({"best_of", "use_beam_search"})
"""Fields with which more is written than is shown."""


def plausible(
    usage: Usage, request: Request, endpoint: Endpoint, *, seen_tokens: int = 0, read_tokens: int = 0
) -> bool:
    """Whether `usage` can be what `endpoint` has used for the call, `seen_tokens` of whose answer have been seen here.

    `read_tokens` of an answer are a part of its prompt, where it has gone on with that. A provider sends its invoice by what
    it reports, so of those it is only seen whether they report at all.
    """
    if usage.completion_tokens == 0 and seen_tokens > 0 and request.max_tokens != 0:
        return False
    if endpoint.kind != "worker":
        return True
    as_asked = request.max_tokens is not None and usage.completion_tokens <= request.max_tokens
    if not as_asked and usage.completion_tokens > most_written(request, endpoint):
        return False
    most = TOKENS_PER_BYTE * len(request.prompt) + TEMPLATE_TOKENS + read_tokens
    return 0 < usage.prompt_tokens <= most or (
        usage.prompt_tokens > most and _may_be_long(usage.prompt_tokens - read_tokens, request, endpoint)
    )


def as_seen(request: Request, endpoint: Endpoint, said: Said | None, tokens: int) -> Usage:
    """What an answer has used of which so many tokens have been seen, where nobody has reported it: the prompt's tokens by
    their ids, if the endpoint has shown them.
    """
    if said is not None and said.prompt_tokens is not None:
        shown = Usage(said.prompt_tokens, 0, tokens, estimated=True)
        if plausible(shown, request, endpoint, seen_tokens=tokens):
            return shown
    return Usage(request.prompt_tokens, 0, tokens, estimated=True)


def most_written(request: Request, endpoint: Endpoint) -> int:
    """Tokens that an answer of the endpoint can have."""
    context_tokens = endpoint.context_tokens or LONGEST_CONTEXT_TOKENS
    most = context_tokens
    if request.max_tokens is not None and _WRITES_MORE.isdisjoint(request.fields):
        most = min(most, max(1, request.max_tokens))
    return most * request.choices


def _may_be_long(prompt_tokens: int, request: Request, endpoint: Endpoint) -> bool:
    """Whether what the client has sent can be so many tokens: looked at closely, as it need not be for most calls."""
    context_tokens = endpoint.context_tokens or LONGEST_CONTEXT_TOKENS
    if prompt_tokens > context_tokens * request.choices:
        return False
    if request.api != "embeddings" and not {Trait.MEDIA, Trait.EMBEDS}.isdisjoint(traits_of(request)):
        return True
    sent_bytes = sum(len(bytes(value)) for value in request.fields.values())
    return prompt_tokens <= TOKENS_PER_BYTE * sent_bytes + TEMPLATE_TOKENS
