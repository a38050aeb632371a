"""The section of the configuration that says where a model is served: a worker, an API like OpenAI's, or through litellm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr
from pydantic import Secret as SecretValue

from backends.litellm_prices import Known, known
from backends.litellm_thread import INSTALL, is_installed
from gateway.config_section import (
    ApiKey,
    AuthorityFile,
    Count,
    LiteLLMModel,
    LiteLLMParams,
    Location,
    Name,
    OpenAIUrl,
    Section,
    ServedName,
    Usd,
    WorkerUrl,
    ZmqAddress,
    pico_usd_per_token,
)
from gateway.policy import TrustName  # noqa: TC001 - pydantic reads annotations at run time
from routing.types import Capability, Endpoint, EndpointKind, Price, Trust


class PriceTable(Section):
    input: Usd = Field(description="USD per million prompt tokens, at most six decimals.")
    output: Usd = Field(description="USD per million completion tokens.")
    cached_input: Usd | None = Field(
        None, description="USD per million prompt tokens found in the prefix cache; without it, as `input`."
    )
    reasoning: Usd | None = Field(
        None,
        description="USD per million completion tokens of reasoning, where they are reported; without it, as `output`.",
    )

    def price(self) -> Price:
        cached, reasoning = self.cached_input, self.reasoning
        return Price(
            pico_usd_per_token(self.input),
            pico_usd_per_token(self.output),
            None if cached is None else pico_usd_per_token(cached),
            None if reasoning is None else pico_usd_per_token(reasoning),
        )


class EndpointSection(Section):
    worker: WorkerUrl | None = Field(
        None,
        description="URL of a vLLM server, without a path. Exactly one of `worker`, `openai`, `litellm`.",
    )
    openai: OpenAIUrl | None = Field(
        None, description="Base URL of an OpenAI-compatible API, with its path (`/v1`)."
    )
    litellm: LiteLLMModel | None = Field(
        None, description="`PROVIDER/MODEL` of anything that litellm speaks; takes the extra `litellm`."
    )
    params: LiteLLMParams = Field(
        SecretValue({}),
        description="Of a `litellm` endpoint: further arguments of litellm's, such as `aws_region_name`.",
    )
    name: Name | None = Field(
        None,
        description="Unique within the model; without it, `host:port` of the URL, or what `litellm` says.",
    )
    model: ServedName | None = Field(None, description="The model's name there; without it, the public name.")
    api_key: ApiKey | None = Field(None, description="Sent there as a bearer token.")
    api_keys: tuple[ApiKey, ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Several keys of an `openai` endpoint in place of `api_key`, used in turn.",
    )
    gpu: Name | None = Field(None, description="The card it runs on, for reports.")
    region: Name | None = Field(None, description="Where it is; calls may ask for regions.")
    trust: TrustName | None = Field(
        None,
        description="How far its operator is trusted; without it, `community` for a worker, `provider` for the others.",
    )
    cost: PriceTable | None = Field(
        None,
        description="What serving it there costs us; without it, nothing, or for `litellm` what its price table says.",
    )
    capabilities: frozenset[Capability] | None = Field(
        None, description="What it can do; without it, as the model's, or for `litellm` as its table says."
    )
    context_tokens: Count | None = Field(
        None, description="Longest context; without it, as the model's, or for `litellm` as its table says."
    )
    weights: ServedName | None = Field(
        None,
        description="What it computes with, quantization included: a stream that breaks goes on only where this is the same. "
        "Without it, a worker's `model`; of the others, nobody knows.",
    )
    continues: bool = Field(
        default=False,
        description="Of an `openai` endpoint with `weights`: it takes `continue_final_message`, as vLLM does, and so goes on with "
        "an answer that another one has begun.",
    )
    ca_file: AuthorityFile | None = Field(None, description="PEM file with the CA to trust for https.")
    kv_events: ZmqAddress | None = Field(
        None,
        description="Where a worker publishes its KV events, such as `tcp://10.0.0.5:5557`; needs the extra `kv-events`.",
    )
    kv_replay: ZmqAddress | None = Field(None, description="Where it sends events again that were missed.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        targets = [kind for kind in ("worker", "openai", "litellm") if given.get(kind) is not None]
        if len(targets) != 1:
            what = " and ".join(targets) or "none"
            yield (), f"needs exactly one of worker, openai and litellm, and has {what}"
            return
        if given.get("api_keys") is not None:
            if given.get("api_key") is not None:
                yield ("api_keys",), "stands in place of api_key; give one of the two"
            if targets != ["openai"]:
                yield ("api_keys",), "is for openai endpoints; use api_key"
        if targets == ["litellm"]:
            yield from _litellm_problems(given)
        elif given.get("params"):
            yield ("params",), "is for litellm endpoints"
        if given.get("ca_file") is not None and str(given[targets[0]]).lower().startswith("http:"):
            yield ("ca_file",), "is of use only with an https URL"
        yield from _kv_events_problems(given)

    @property
    def kind(self) -> EndpointKind:
        return "worker" if self.worker is not None else "openai" if self.openai is not None else "litellm"

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        return self.api_keys or (() if self.api_key is None else (self.api_key,))

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return self.worker or self.openai or ""

    @property
    def resolved_name(self) -> str:
        return self.name or self.litellm or name_by_url(self.url)

    @property
    def resolved_trust(self) -> TrustName:
        return self.trust or ("community" if self.kind == "worker" else "provider")

    @property
    def known(self) -> Known | None:
        """What litellm's table says of it."""
        return None if self.litellm is None else known(self.litellm, self.params.get_secret_value())

    @property
    def price(self) -> Price:
        """What serving it there costs us."""
        if self.cost is not None:
            return self.cost.price()
        table = self.known
        return Price() if table is None else table.price

    def endpoint(
        self, model: str, capabilities: frozenset[Capability] | None, context_tokens: int | None
    ) -> Endpoint:
        """As routing sees it, with what its model has where it does not say."""
        known = self.known
        capabilities = capabilities if self.capabilities is None else self.capabilities
        context_tokens = self.context_tokens or context_tokens
        if known is not None:
            capabilities = known.capabilities if capabilities is None else capabilities
            context_tokens = context_tokens or known.context_tokens
        return Endpoint(
            name=self.resolved_name,
            model=model,
            served_model=self.litellm or self.model or model,
            kind=self.kind,
            url=self.url,
            region=self.region,
            trust=Trust[self.resolved_trust.upper()],
            gpu=self.gpu,
            capabilities=capabilities,
            context_tokens=context_tokens,
            cost=self.price,
            weights=self.weights or (self.model or model if self.kind == "worker" else None),
            continues=self.continues,
        )


def _litellm_problems(given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    """What is wrong with a litellm endpoint, as given."""
    for name in ("model", "ca_file"):
        if given.get(name) is not None:
            yield (name,), "is not for litellm endpoints"
    model, params = given["litellm"], given.get("params")
    if not is_installed():
        yield ("litellm",), f"litellm is not installed; get it by {INSTALL}"
    elif given.get("cost") is None and isinstance(model, str):
        table = known(model, params if isinstance(params, Mapping) else {})
        if table is None:
            yield ("litellm",), f"litellm's table has no price per token for {model}; give one as `cost`"


def _kv_events_problems(given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
    if given.get("kv_events") is None:
        if given.get("kv_replay") is not None:
            yield ("kv_replay",), "is of use only with kv_events"
    elif given.get("worker") is None:
        yield ("kv_events",), "is for workers"
    elif find_spec("zmq") is None:
        yield ("kv_events",), "needs pyzmq: pip install 'tidegate[kv-events]'"


def name_by_url(url: Any) -> str:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{host}:{port}" if host else ""
