"""The bodies a worker sends, field for field and in the order of vLLM 0.32.

A field that vLLM leaves out in some places is UNSET there; one that it sends as null is None.
"""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class PromptDetails(Struct, gc=False):
    cached_tokens: int
    created_cache_tokens: int | UnsetType | None = UNSET
    multimodal_tokens: UnsetType | None = UNSET


class UsageBody(Struct, gc=False):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails | UnsetType | None = UNSET
    completion_tokens_details: UnsetType | None = UNSET


class TopLogprob(Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, gc=False):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, gc=False):
    content: list[TokenLogprob]


class CompletionLogprobs(Struct, gc=False):
    text_offset: list[int]
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]


class FunctionCall(Struct, gc=False):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(Struct, gc=False):
    id: str
    type: str
    function: FunctionCall


class ToolCallDelta(Struct, gc=False, kw_only=True):
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int
    function: FunctionCall


class AssistantMessage(Struct, gc=False, kw_only=True):
    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: None = None


class ChatChoice(Struct, gc=False):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | None
    routed_experts: None = None


class ChatReply(Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None
    system_fingerprint: str
    usage: UsageBody
    prompt_logprobs: None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: None = None


class Delta(Struct, gc=False):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, gc=False):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class ChatChunk(Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET
    prompt_text: UnsetType | None = UNSET
    system_fingerprint: str | UnsetType = UNSET


class CompletionChoice(Struct, gc=False):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: list[int] | None
    prompt_logprobs: None
    prompt_token_ids: list[int] | None
    routed_experts: None = None


class CompletionReply(Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None
    system_fingerprint: str
    usage: UsageBody
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    metrics: None = None


class CompletionChunkChoice(Struct, gc=False):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None


class CompletionChunk(Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: UsageBody | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET


class ModelPermission(Struct):
    id: str
    object: str
    created: int
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: None = None
    is_blocking: bool = False


class ModelCard(Struct):
    id: str
    object: str
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    permission: list[ModelPermission]


class ModelList(Struct):
    object: str
    data: list[ModelCard]


class TokenizeReply(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(Struct):
    prompt: str


class Embedding(Struct):
    index: int
    object: str
    embedding: list[float] | str


class EmbeddingReply(Struct):
    id: str
    object: str
    created: int
    model: str
    data: list[Embedding]
    usage: UsageBody
