"""How many tokens a prompt has for a hosted model of OpenAI's, by its own vocabulary, where tiktoken and that are at hand.

Elsewhere, and until a vocabulary is there, prompts are estimated by their bytes. tiktoken would fetch a vocabulary from the
network when it is first asked for it, which a gateway does not: it uses what lies in tiktoken's cache. What takes long is
done in a thread of its own, and of a long text only samples are looked at, so no call waits for either.
"""

from __future__ import annotations

import logging
import os
import tempfile
from hashlib import sha1
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.openai import Request

log = logging.getLogger(__name__)

SAMPLED = 4096
"""Characters looked at; a millisecond's work at most."""
_SAMPLES = 4
_PER_MESSAGE, _PER_CHAT = 4, 3
"""What OpenAI's template puts around them."""
_FILE = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
_FILES = {
    **{name: name for name in ("o200k_base", "cl100k_base", "p50k_base", "r50k_base")},
    "o200k_harmony": "o200k_base",
}


class Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


class _Part(Struct):
    text: str | None = None


class _Message(Struct):
    content: str | list[_Part] | None = None


_decode_messages = msgspec.json.Decoder(list[_Message]).decode
_decode_texts = msgspec.json.Decoder(str | list[str]).decode


def vocabulary(model: str) -> Encoding | None:
    """That of a model of OpenAI's; None for any other. Blocks. Raises ImportError, OSError or ValueError."""
    # Imported here: it is an extra, and takes a while.
    import tiktoken  # noqa: PLC0415  as above

    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        return None
    if name in _FILES and not (path := _cached(_FILES[name])).exists():
        raise FileNotFoundError(f"the vocabulary {name} is not in tiktoken's cache ({path})")
    return tiktoken.get_encoding(name)


class Vocabularies:
    """Those of the models that have been called so far."""

    def __init__(self, find: Callable[[str], Encoding | None] = vocabulary) -> None:
        self._find = find
        self._of: dict[str, Encoding | None] = {}
        """By the model's name at its provider; None where there is none, or not yet."""

    def count(self, request: Request, served_model: str) -> None:
        """Put the right number in the place of the request's estimate, if it is known."""
        try:
            encoding = self._of[served_model]
        except KeyError:
            self._of[served_model] = None
            Thread(target=self._look, args=(served_model,), name="vocabulary", daemon=True).start()
            return
        if encoding is not None and (tokens := prompt_tokens(encoding, request)) is not None:
            request.prompt_tokens = tokens

    def _look(self, served_model: str) -> None:
        try:
            self._of[served_model] = self._find(served_model.rpartition("/")[2])
        except (ImportError, OSError, ValueError) as failure:
            log.warning("prompts for %s are counted by their bytes: %s", served_model, failure)


def _cached(file: str) -> Path:
    """Where tiktoken looks for it."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    url = _FILE.format(file).encode()
    return (
        Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
        / sha1(url, usedforsecurity=False).hexdigest()
    )


def prompt_tokens(encoding: Encoding, request: Request) -> int | None:
    """None where it is not text, and has been counted otherwise."""
    fields = request.fields
    try:
        if request.api == "chat":
            return _of_chat(encoding, request)
        texts = _decode_texts(fields["input" if request.api == "embeddings" else "prompt"])
    except (KeyError, msgspec.DecodeError):
        return None
    return _tokens(encoding, texts if isinstance(texts, str) else "\n".join(texts))


def _of_chat(encoding: Encoding, request: Request) -> int | None:
    if "vision" in request.needs or b"audio" in request.prompt:
        return None
    messages = _decode_messages(request.fields["messages"])
    texts = []
    for message in messages:
        content = message.content
        texts += [content] if isinstance(content, str) else [part.text or "" for part in content or ()]
    # Tools and calls of them are written in a way that OpenAI does not tell: by their bytes.
    beside = len(request.prompt) - sum(len(text) for text in texts) if "tools" in request.needs else 0
    tokens = _tokens(encoding, "\n".join(texts))
    return tokens + max(0, beside) // 4 + _PER_MESSAGE * len(messages) + _PER_CHAT


def _tokens(encoding: Encoding, text: str) -> int:
    if len(text) <= SAMPLED:
        return len(encoding.encode_ordinary(text))
    each = SAMPLED // _SAMPLES
    apart = (len(text) - each) // (_SAMPLES - 1)
    found = sum(len(encoding.encode_ordinary(text[at * apart : at * apart + each])) for at in range(_SAMPLES))
    return found * len(text) // SAMPLED
