"""What can be done for a stream that has broken: the arithmetic and the one table that decides.

While the client has seen nothing of an answer, it is begun anew anywhere. After that it can only be gone on with: from
the very token where it stopped, where the ids of all tokens are known, or by reading the text so far once more, which may
cut it into other tokens. Some answers allow neither, since what makes them (a parser, a grammar, a second choice) has to
see them from the beginning; those end in an error at once, which is better than a client that waits for nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Collection

    from routing.types import Endpoint

LEAST_STALL_S = 5.0
"""Silence of a stream that has begun is no sign of anything before: other prompts are read, requests preempted."""

STALL_GAPS = 50.0
"""So many of the gaps predicted between two of its tokens, beyond which a stream is taken for dead. A healthy worker that
is slower than predicted by half of that and stutters is not."""


class Way(Enum):
    """How an answer comes to its end elsewhere."""

    RESTART = "restarted"
    TOKENS = "from the token"
    TEXT = "from the text"
    ERROR = "error"


class Trait(Enum):
    """What matters of a call, or of what has been shown of its answer."""

    PLAIN = "text, with or without sampling parameters, `logprobs`, `stop`, `min_tokens`"
    PROMPT_IDS = "prompt given as token ids"
    MEDIA = "images or sound in the prompt"
    TOOLS = "tools offered, only text shown so far"
    TOOL_CALL = "a call of a tool shown, whole or in part"
    REASONING = "in the middle of its reasoning"
    REASONED = "text shown after reasoning"
    HIDDEN_REASONING = "`include_reasoning: false`"
    GRAMMAR = "`response_format`, `structured_outputs` or another grammar"
    CHOICES = "`n` over 1, or several prompts"
    BEAM = "beam search"
    ECHO = "`echo` or `prompt_logprobs`"
    EMBEDS = "`prompt_embeds`"
    SUFFIX = "`suffix`"
    TRUNCATED = "`truncate_prompt_tokens`"
    UNCLEAR = "a refusal, or content that is no text"


class Rule(Struct, frozen=True):
    tokens: bool
    """Whether it can be gone on with from the token."""
    text: bool
    """Whether from the text."""
    why: str


RULES: dict[Trait, Rule] = {
    Trait.PLAIN: Rule(tokens=True, text=True, why="the engine needs nothing but what is written so far"),
    Trait.PROMPT_IDS: Rule(tokens=True, text=False, why="text cannot be put behind ids"),
    Trait.MEDIA: Rule(tokens=False, text=True, why="a prompt of ids cannot hold them"),
    Trait.TOOLS: Rule(
        tokens=False, text=True, why="a call that follows has to go through the worker's parser"
    ),
    Trait.TOOL_CALL: Rule(
        tokens=False,
        text=False,
        why="the parser has to see a call from its beginning, and would show it twice; so it is held back until it is whole",
    ),
    Trait.REASONING: Rule(
        tokens=False,
        text=False,
        why="the parser has to see where it began, and no message may hold half of it",
    ),
    Trait.REASONED: Rule(
        tokens=True, text=False, why="the parser of another worker would take what follows for reasoning"
    ),
    Trait.HIDDEN_REASONING: Rule(tokens=False, text=False, why="what has been written is not known"),
    Trait.GRAMMAR: Rule(
        tokens=False,
        text=False,
        why="the engine begins its grammar anew and does not advance it over a prefix",
    ),
    Trait.CHOICES: Rule(tokens=False, text=False, why="one request cannot go on with several answers"),
    Trait.BEAM: Rule(tokens=False, text=False, why="the other beams are not known"),
    Trait.ECHO: Rule(tokens=False, text=False, why="the answer so far would be echoed as well"),
    Trait.EMBEDS: Rule(tokens=False, text=False, why="nothing can be put behind them"),
    Trait.SUFFIX: Rule(tokens=False, text=False, why="the answer so far would stand on the wrong side of it"),
    Trait.TRUNCATED: Rule(tokens=False, text=False, why="the answer so far would be cut off as well"),
    Trait.UNCLEAR: Rule(tokens=False, text=False, why="what has been shown cannot be written back"),
}
"""The README's table is made of it."""


def ways(traits: Collection[Trait], *, shown: bool, knows_ids: bool) -> tuple[Way, ...]:
    """How a stream with these traits may come to its end, the best way first; none where it is an error.

    `shown`: whether the client has seen anything of the answer. `knows_ids`: whether the ids of all its tokens are known.
    """
    if not shown:
        return (Way.RESTART,)
    rules = [RULES[trait] for trait in traits]
    found = []
    if knows_ids and all(rule.tokens for rule in rules):
        found.append(Way.TOKENS)
    if all(rule.text for rule in rules):
        found.append(Way.TEXT)
    return tuple(found)


def goes_on(way: Way, begun: Endpoint, other: Endpoint) -> bool:
    """Whether `other` can bring to its end by this way what `begun` has begun.

    Only the same weights write on as the others would have. A provider has them only where it is declared to, and is
    sent text, and only where it is declared to go on with that.
    """
    if way is Way.RESTART:
        return True
    if begun.weights is None or begun.weights != other.weights:
        return False
    if other.kind == "worker":
        return True
    return way is Way.TEXT and other.continues


def stall_s(itl_s: float, most_s: float) -> float:
    """After how long a silence a stream that has begun is taken for dead, where a token is predicted every `itl_s`.

    At most `most_s`, the silence that no stream may keep.
    """
    return min(most_s, max(LEAST_STALL_S, STALL_GAPS * itl_s))
