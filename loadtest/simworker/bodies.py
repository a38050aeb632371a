"""The request bodies a worker reads: the fields it acts on. Others are ignored, as vLLM does."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from loadtest.simworker.errors import Refused
from loadtest.simworker.faults import Fault  # noqa: TC001 - msgspec reads the annotation at run time

Body = TypeVar("Body")


class Part(Struct):
    type: str = "text"
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    video_url: Any = None


class Message(Struct):
    role: str
    content: str | list[Part] | None = None
    tool_calls: list[Any] | None = None


class StreamOptions(Struct):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class FunctionSpec(Struct):
    name: str
    parameters: dict[str, Any] | None = None


class ToolSpec(Struct):
    function: FunctionSpec
    type: str = "function"


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction


class SchemaFormat(Struct):
    name: str = ""
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    type: str
    json_schema: SchemaFormat | None = None


class GenerateBody(Struct, kw_only=True):
    """What chat and plain completions have in common."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int | None = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    echo: bool | None = False
    priority: int = 0
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    request_id: str | None = None
    sim_fault: Fault | None = None
    response_format: ResponseFormat | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(filter(None, self.stop or ()))


class ChatBody(GenerateBody, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionBody(GenerateBody, kw_only=True):
    prompt: str | list[int | str | list[int]] | None = None
    logprobs: int | None = None


class TokenizeBody(Struct, kw_only=True):
    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False


class DetokenizeBody(Struct, kw_only=True):
    model: str | None = None
    tokens: list[int]


class EmbeddingBody(Struct, kw_only=True):
    model: str | None = None
    input: str | list[int | str | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class FaultOrder(Struct):
    sim_fault: Fault | None = None


def read_body(body: bytes, kind: type[Body]) -> Body:
    """The body as `kind`, or vLLM's 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        param = path.rstrip("`") or None
        detail = f"1 validation error:\n  {{'type': 'value_error', 'loc': ('body', {param!r}), 'msg': '{message}'}}"
        raise Refused(400, detail, "Bad Request", param) from error
    except msgspec.DecodeError as error:
        raise _not_json(body, str(error)) from error


def _not_json(body: bytes, reason: str) -> Refused:
    """Python's own parser says where a body is broken in the words that vLLM passes on."""
    at = 0
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        at, reason = error.pos, error.msg
    except UnicodeDecodeError as error:
        at, reason = error.start, error.reason
    detail = (
        f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', "
        f"'input': '<dict of 0 items>', 'ctx': {{'error': '{reason}'}}}}"
    )
    return Refused(400, detail, "Bad Request", f"body.{at}")
