"""OpenTelemetry's words for what the gateway serves, in the two generations of its GenAI conventions.

What was written down as v1.36 is still the default of most instrumentations; the conventions that followed name the system
a provider, and are chosen by `gen_ai_latest_experimental` in `OTEL_SEMCONV_STABILITY_OPT_IN`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from routing.types import Endpoint

Semconv = Literal["v1.36", "latest"]

OPT_IN = "gen_ai_latest_experimental"
_OPERATIONS: dict[str, str] = {
    "chat": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""Where litellm has another name for a provider than OpenTelemetry."""


def generation(chosen: Semconv | None, environ: Mapping[str, str]) -> Semconv:
    """The one that is chosen, else what the environment opts into."""
    if chosen is not None:
        return chosen
    opted = {each.strip() for each in environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")}
    return "latest" if OPT_IN in opted else "v1.36"


def operation_of(api: str) -> str:
    return _OPERATIONS[api]


def provider_of(endpoint: Endpoint) -> str:
    """Who is behind an endpoint, or whose API it speaks."""
    match endpoint.kind:
        case "worker":
            return "vllm"
        case "openai":
            return "openai"
        case "litellm":
            provider = endpoint.served_model.partition("/")[0]
            return _PROVIDERS.get(provider, provider)
