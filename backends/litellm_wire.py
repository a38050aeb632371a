"""OpenAI's wire format to litellm's arguments, and litellm's objects back to OpenAI's wire format.

Only fields that are listed here reach litellm: it takes `api_base`, `api_key`, `mock_response`, paths of credentials and
much else as arguments beside the call's own, and those are not the client's to give.

A text completion is asked as a chat with one message, here rather than by litellm: its own way of doing that hides how a
stream has ended.
"""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from backends.base import StreamTruncated, Unsupported
from backends.litellm_media import refuse_urls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SAMPLING = (
    *(
        "frequency_penalty",
        "logit_bias",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "temperature",
    ),
    *("top_p", "user", "stream"),
)
_CHAT = (
    *_SAMPLING,
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("max_completion_tokens", "modalities", "audio", "prediction", "response_format", "logprobs"),
    *("top_logprobs", "reasoning_effort", "verbosity", "web_search_options", "safety_identifier"),
    *("prompt_cache_key", "thinking", "top_k"),  # the last two are Anthropic's and Gemini's
)
FIELDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "/chat/completions": ("acompletion", _CHAT),
    "/completions": ("acompletion", _SAMPLING),
    "/embeddings": ("aembedding", ("input", "dimensions", "user")),
}
"""By API: litellm's function for it, and the fields that are passed on. What else a body holds is left out."""
_NO_CHAT_HAS = ("best_of", "echo", "logprobs", "suffix")
_GOOGLE = ("gemini", "vertex_ai", "vertex_ai_beta")
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class Wire:
    """One call: its arguments for litellm, and the bytes of what comes back. Raises Unsupported."""

    def __init__(self, api: str, body: bytes, model: str) -> None:
        given = msgspec.json.decode(body)
        self.function, fields = FIELDS[api]
        self.arguments: dict[str, Any] = {name: given[name] for name in fields if given.get(name) is not None}
        self._text = api == "/completions"
        self._base64 = api == "/embeddings" and given.get("encoding_format") == "base64"
        if self._text:
            self.arguments["messages"] = _messages(given)
        refuse_urls(self.arguments.get("messages", ()), model)
        if "tools" in self.arguments:
            # Tools are the client's to run. litellm would look whether any is one of its proxy's, and call it.
            self.arguments["_skip_mcp_handler"] = True
        if self.arguments.get("stream"):
            self.arguments["stream_options"] = {"include_usage": True}

    def whole(self, reply: Any) -> bytes:
        shown = _shown(reply)
        for choice in shown.get("choices", ()):
            choice.setdefault("logprobs", None)
            choice["message"].setdefault("content", None)
            if self._text:
                choice["text"] = choice.pop("message")["content"] or ""
        if self._text:
            shown["object"] = "text_completion"
        if self._base64:
            for each in shown["data"]:
                numbers = each["embedding"]
                each["embedding"] = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        return _encode(shown)

    async def events(self, stream: Any) -> AsyncIterator[bytes]:
        """A stream as server-sent events.

        Raises StreamTruncated where the provider has given no finish_reason: litellm then makes up a "stop".
        """
        ending = await _Ending.of(stream)
        async for chunk in stream:
            shown = _shown(chunk)
            choices = shown.setdefault("choices", [])
            if not ending.has_come and any(choice.get("finish_reason") for choice in choices):
                raise StreamTruncated("the provider's stream ended without a finish_reason")
            if "usage" in shown:
                if not ending.with_usage:
                    del shown["usage"]  # litellm has counted words itself
                if not any(choice.get("finish_reason") or choice.get("delta") for choice in choices):
                    choices.clear()
            for choice in choices:
                choice.setdefault("finish_reason", None)
                if self._text:
                    choice["text"] = choice.pop("delta", {}).get("content") or ""
            if self._text:
                shown["object"] = "text_completion"
            yield b"data: %b\n\n" % _encode(shown)
        yield DONE


class _Ending:
    """What a provider's own stream has said of its end, as opposed to what litellm makes of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._google: bool | None = None

    @classmethod
    async def of(cls, stream: Any) -> _Ending:
        ending = cls(stream)
        if getattr(stream, "custom_llm_provider", None) in _GOOGLE:
            # For these litellm reads a "stop" into every chunk, so the chunks themselves are looked at.
            await stream.fetch_stream()
            chunks = stream.completion_stream
            if hasattr(chunks, "chunk_parser"):
                ending._google = False
                chunks.chunk_parser = ending._looking_at(chunks.chunk_parser)
        return ending

    def _looking_at(self, parse: Any) -> Any:
        def chunk_parser(chunk: dict[str, Any]) -> Any:
            finished = any(candidate.get("finishReason") for candidate in chunk.get("candidates") or ())
            self._google = self._google or finished or "promptFeedback" in chunk
            return parse(chunk)

        return chunk_parser

    @property
    def has_come(self) -> bool:
        """Whether it has given a finish_reason."""
        if self._google is not None:
            return self._google
        return getattr(self._stream, "received_finish_reason", "") is not None

    @property
    def with_usage(self) -> bool:
        """Whether it has said how many tokens there were."""
        chunks = getattr(self._stream, "chunks", None)
        return chunks is None or any(getattr(chunk, "usage", None) is not None for chunk in chunks)


def _messages(given: dict[str, Any]) -> list[dict[str, str]]:
    """The chat that stands for a text completion."""
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Unsupported("a hosted model takes one prompt at a time, as text")
    asked = [name for name in _NO_CHAT_HAS if given.get(name) not in (None, False)]
    if asked:
        raise Unsupported(f"a hosted model cannot be asked for {' and '.join(asked)} of a text completion")
    return [{"role": "user", "content": prompt}]


def _shown(reply: Any) -> dict[str, Any]:
    """Its fields, without what litellm thinks that it cost: that is ours to know."""
    shown: dict[str, Any] = reply.model_dump(mode="json", exclude_none=True, warnings=False)
    if "usage" in shown:
        shown["usage"].pop("cost", None)
    return shown
