"""What a call has only by URL, found before litellm sees it.

litellm fetches such pictures and files itself for providers that take none, from wherever the client says. A gateway does
not open connections on the word of strangers: for those providers a URL is refused, and the call is tried elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.base import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEMES = ("http://", "https://")
_PASSED_ON = {"azure": _SCHEMES, "openai": _SCHEMES, "anthropic": ("https://",)}
"""By litellm's name of the provider: URLs that it hands on as they are, and the provider fetches."""


def refuse_urls(messages: Any, model: str) -> None:
    """Raises Unsupported where litellm would fetch something for this call."""
    passed_on = _PASSED_ON.get(model.partition("/")[0], ())
    for url in _urls(messages):
        if not url.startswith(passed_on):
            raise Unsupported(
                "a picture or file given by its URL, which this provider does not take: send a data: URL"
            )


def _urls(messages: Any) -> Iterator[str]:
    contents = (message.get("content") for message in messages if isinstance(message, dict))
    for content in contents:
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") != "text":
                yield from _remote(part)


def _remote(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        # Anywhere in it: some of litellm's providers look no closer.
        known = value.lstrip().lower()
        if not known.startswith("data:") and any(scheme in known for scheme in _SCHEMES):
            yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _remote(each)
