"""What is taken out of text before anybody is shown it: what looks like a key, and in prompts what names a person.

It is found by its form, so it is never all of it: prompts that must not be read by those who read the log are not to be
logged at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

GONE = "[redacted]"

_KEYS = re.compile(
    r"(?P<head>(?i:bearer)\s+)[^\s\"'\\]{4,}"
    r"|(?P<user>://[^/\s:@]*:)[^\s/@]+(?=@)"  # passwords in URLs
    r"|\b(?:(?:sk|tg|tga|glpat|xox[abp])-|(?:sk|pk|rk|ghp|gho|hf)_)[A-Za-z0-9_-]{12,}"
    r"|\bAKIA[A-Z0-9]{16}|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"  # JSON web tokens
)
_PERSONAL = re.compile(
    r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"  # mail addresses
    r"|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"  # bank accounts
    r"|\+?\d(?:[ ./()-]{0,2}\d){6,18}"  # telephones, cards and other long numbers
)


def without_keys(text: str) -> str:
    """Without what looks like a key."""
    return _KEYS.sub(lambda found: f"{found['head'] or found['user'] or ''}{GONE}", text)


class Redaction:
    """Of prompts: keys, what names a person, and what the operator names beside."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def of(self, text: str) -> str:
        text = _PERSONAL.sub(GONE, without_keys(text))
        for pattern in self._patterns:
            text = pattern.sub(GONE, text)
        return text
