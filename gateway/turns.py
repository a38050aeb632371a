"""Where the turns of a chat begin and end in its prompt.

An endpoint that was sent a turn has in its cache not only that prompt but the answer that it wrote to it, which the
gateway does not read. The next turn's prompt holds both: once the place is known where the turn before ended, whoever was
sent that one is known to hold the answer as well.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from routing.prefix import PIECE_BYTES, Ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msgspec import Raw

_ANSWER = re.compile(rb'"role"\s*:\s*"assistant"')
"""In a message: quotes within its text are escaped."""


def ends_of(prompt: bytes, messages: Sequence[Raw]) -> Ends | None:
    """Where `prompt` ends, whose last part are `messages`, and where the last answer in it begins and ends; None for one
    so short that nobody's cache is asked for it.

    It ends with its last message, without the bracket behind it: the next turn's has a comma there.
    """
    if len(prompt) < PIECE_BYTES:
        return None
    end = before = prompt.rfind(b"}") + 1
    if len(messages) == 1 or b'"assistant"' not in prompt:
        return Ends(end)
    for message in reversed(messages):
        after, text = before, bytes(message)
        before = prompt.rfind(b"}", 0, max(0, after - len(text))) + 1
        if b'"assistant"' in text and _ANSWER.search(text):
            return Ends(end, before, after) if before else Ends(end)
    return Ends(end)
