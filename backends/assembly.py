"""The reply that a worker would have given whole, put together from its stream.

A call whose answer takes seconds is sent to a worker as a stream though its client wants the reply in one piece: only so
can it be watched, raced, and gone on with elsewhere. The client must not be able to tell, so what is made here is equal,
field for field, to what vLLM (0.32) sends without `stream`, but for `id` and `created`, which no two replies share.

Only those calls are run so of which that is known: see `can_be_assembled`. Not among them are tools, since vLLM finds
calls of tools in a whole text with other code than in pieces of it; several choices or prompts; a prompt echoed or
scored; and any field of the body that is not listed here, whatever it may mean.
"""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from backends.base import ReplyMalformed, ReplyOversized

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELDS = frozenset({
    *("model", "messages", "prompt", "stream", "n", "user", "metadata", "store", "routing"),
    *("service_tier", "max_tokens", "max_completion_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty"),
    *("frequency_penalty", "repetition_penalty", "length_penalty", "logit_bias", "bad_words", "allowed_token_ids"),
    *("logprobs", "top_logprobs", "response_format", "structured_outputs", "skip_special_tokens"),
    *("spaces_between_special_tokens", "add_special_tokens", "add_generation_prompt", "continue_final_message"),
    *("chat_template", "chat_template_kwargs", "reasoning_effort", "include_reasoning", "documents", "priority"),
    *("cache_salt", "request_id", "return_token_ids", "truncate_prompt_tokens", "prompt_cache_key"),
})  # fmt: skip
"""Of a body, with which the reply is known to be the same in pieces."""

FOLD_BYTES = 32_768
"""Of events that are kept as they came, until they are folded into the reply."""


def can_be_assembled(fields: Iterable[str], choices: int) -> bool:
    """Whether a call with these fields in its body may be run as a stream though its client wants none."""
    return choices == 1 and FIELDS.issuperset(fields)


class _Delta(Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class _Logprobs(Struct):
    """Chat's, or those of plain completions."""

    content: list[Raw] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[Raw] | None = None
    top_logprobs: list[Raw] | None = None

    @property
    def size(self) -> int:
        """Bytes, about."""
        raw = chain(self.content or (), self.token_logprobs or (), self.top_logprobs or ())
        return sum(len(bytes(each)) for each in raw) + sum(map(len, self.tokens or ()))

    def copied(self) -> _Logprobs:
        """Without what it was decoded from, which a Raw holds on to."""
        raws = (
            None if found is None else [each.copy() for each in found]
            for found in (self.content, self.token_logprobs, self.top_logprobs)
        )
        content, token_logprobs, top_logprobs = raws
        return _Logprobs(content, self.tokens, token_logprobs, top_logprobs)


class _Choice(Struct):
    delta: _Delta | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: Raw | UnsetType = UNSET
    token_ids: list[int] | None = None
    prompt_token_ids: Raw | UnsetType = UNSET


class _Chunk(Struct):
    choices: list[_Choice] = []


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_NULL = Raw(b"null")
_OF_EVERY_CHUNK = frozenset({"id", "object", "created", "model", "choices", "usage"})


class Assembly:
    """One reply in the making: `write` what is to be seen of its stream, then ask for the `body`."""

    def __init__(self, *, chat: bool, limit_bytes: int) -> None:
        self._chat = chat
        self._limit_bytes = limit_bytes
        self._size = 0
        """Of what the reply has so far, about."""
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._head: dict[str, Raw] | None = None
        """The fields that all chunks have, as the first one has them."""
        self._beside: dict[str, Raw] = {}
        """The other fields of the first chunk, and of those without choices."""
        self._usage: dict[str, Raw] | None = None
        self._role = "assistant"
        self._said: dict[str, list[str]] = {
            "content": [],
            "reasoning": [],
            "reasoning_content": [],
            "refusal": [],
        }
        """By field of the message. The text of a plain completion is its content."""
        self._logprobs: list[_Logprobs] = []
        self._finish_reason: str | None = None
        self._stop_reason: Raw = _NULL
        self._token_ids: list[int] | None = None
        self._prompt_token_ids: Raw = _NULL

    def write(self, block: bytes) -> None:
        """Whole events, as `CompletionStream` gives them.

        Raises ReplyMalformed, or ReplyOversized where the reply exceeds the limit.
        """
        self._waiting.append(block)
        self._waiting_bytes += len(block)
        if self._waiting_bytes >= FOLD_BYTES:
            self._fold()

    def body(self) -> bytes:
        """The whole reply. Raises what `write` raises."""
        self._fold()
        if self._head is None:
            raise ReplyMalformed("a stream without a chunk")
        head = self._head
        reply: dict[str, Any] = {
            "id": head.get("id", _NULL),
            "object": "chat.completion" if self._chat else "text_completion",
            "created": head.get("created", _NULL),
            "model": head.get("model", _NULL),
            "choices": [self._chat_choice() if self._chat else self._completion_choice()],
            "service_tier": None,
            "system_fingerprint": None,
        }
        if self._usage is not None:
            reply["usage"] = _whole_usage(self._usage)
        if self._chat:
            reply |= {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        reply |= {"kv_transfer_params": None, "ec_transfer_params": None, "metrics": None}
        return _encode(reply | self._beside)

    def _fold(self) -> None:
        """Take in what has been written."""
        text, self._waiting_bytes = b"".join(self._waiting), 0
        self._waiting.clear()
        for event in text.split(b"\n\n"):
            lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                self._take(b" ".join(lines))
        if self._size > self._limit_bytes:
            raise ReplyOversized(f"a reply of more than {self._limit_bytes} bytes")

    def _take(self, content: bytes) -> None:
        try:
            chunk = _decode_chunk(content)
            if self._head is None or not chunk.choices:
                self._take_fields(_decode_fields(content))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReplyMalformed(f"a stream event that is no completion chunk: {error}") from None
        for choice in chunk.choices:
            self._take_choice(choice)

    def _take_fields(self, fields: dict[str, Raw]) -> None:
        # What is kept is copied: a Raw holds on to all that it was decoded from.
        kept = {name: value.copy() for name, value in fields.items()}
        if self._head is None:
            self._head = kept
        usage = kept.get("usage")
        if usage is not None and bytes(usage) != b"null":
            self._usage = _decode_fields(usage)
        self._beside |= {name: value for name, value in kept.items() if name not in _OF_EVERY_CHUNK}

    def _take_choice(self, choice: _Choice) -> None:
        delta = choice.delta
        if delta is not None:
            self._role = delta.role or self._role
            self._say("content", delta.content)
            self._say("reasoning", delta.reasoning)
            self._say("reasoning_content", delta.reasoning_content)
            self._say("refusal", delta.refusal)
        self._say("content", choice.text)
        if choice.logprobs is not None:
            self._logprobs.append(choice.logprobs.copied())
            self._size += choice.logprobs.size
        if choice.token_ids is not None:
            self._token_ids = (self._token_ids or []) + choice.token_ids
            self._size += 8 * len(choice.token_ids)
        if choice.prompt_token_ids not in (UNSET, _NULL):
            self._prompt_token_ids = choice.prompt_token_ids.copy()
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
            if choice.stop_reason is not UNSET:
                self._stop_reason = choice.stop_reason.copy()

    def _say(self, field: str, words: str | None) -> None:
        if words:
            self._said[field].append(words)
            self._size += len(words)

    def _chat_choice(self) -> dict[str, Any]:
        said = {field: "".join(words) or None for field, words in self._said.items()}
        thought = said["reasoning"] or said["reasoning_content"]
        message: dict[str, Any] = {
            "role": self._role,
            # Where there was something else to say, nothing said is null.
            "content": said["content"] if said["content"] or thought else "",
            "refusal": said["refusal"],
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": said["reasoning"],
        }
        if said["reasoning_content"]:
            message["reasoning_content"] = said["reasoning_content"]
        logprobs = None
        if self._logprobs:
            logprobs = {"content": [each for part in self._logprobs for each in part.content or ()]}
        return {
            "index": 0,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._finish_reason,
            "stop_reason": self._stop_reason,
            "token_ids": self._token_ids,
            "routed_experts": None,
        }

    def _completion_choice(self) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            parts = self._logprobs
            tokens = [token for part in parts for token in part.tokens or ()]
            logprobs = {
                "text_offset": list(accumulate(map(len, tokens), initial=0))[:-1],
                "token_logprobs": [each for part in parts for each in part.token_logprobs or ()],
                "tokens": tokens,
                "top_logprobs": [each for part in parts for each in part.top_logprobs or ()],
            }
        return {
            "index": 0,
            "text": "".join(self._said["content"]),
            "logprobs": logprobs,
            "finish_reason": self._finish_reason,
            "stop_reason": self._stop_reason,
            "token_ids": self._token_ids,
            "prompt_logprobs": None,
            "prompt_token_ids": self._prompt_token_ids,
            "routed_experts": None,
        }


def _whole_usage(usage: dict[str, Raw]) -> dict[str, Any]:
    """Usage as whole replies have it, where the last chunk of a stream leaves out what is null."""
    whole: dict[str, Any] = {
        "prompt_tokens": 0,
        "total_tokens": 0,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
        **usage,
    }
    details = usage.get("prompt_tokens_details", _NULL)
    if bytes(details) != b"null":
        nothing = {"cached_tokens": None, "created_cache_tokens": None, "multimodal_tokens": None}
        whole["prompt_tokens_details"] = nothing | _decode_fields(details)
    return whole
