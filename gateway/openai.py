"""OpenAI's wire format on the way in: a request body becomes a `Request`, typed where the gateway looks and raw elsewhere.

The top level is read twice: into typed fields, so that a wrong type is reported with its name, and into raw pieces, so
that what goes on to the endpoint is the client's own bytes but for `model` and `stream_options`. Since the body sent on
is put together from the very pieces that were checked, a field given twice cannot mean one thing here and another there.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct, structs

from backends.usage import MOST_TOKENS
from gateway.customer import CUSTOMER, HEADER_PREFIX, customer
from gateway.errors import ApiError
from gateway.malformed import invalid_field, place_of
from gateway.turns import ends_of
from routing.prefix import Ends  # noqa: TC001 - a field of a Struct
from routing.types import NO_DEMANDS, Capability, Demands, TierName, Trust

Api = Literal["chat", "completions", "embeddings"]
PATHS: dict[bytes, Api] = {
    b"/v1/chat/completions": "chat",
    b"/v1/completions": "completions",
    b"/v1/embeddings": "embeddings",
}
BYTES_PER_TOKEN = 4
"""Of prompt text, for estimates before the endpoint has counted: English in current tokenizers."""
MEDIA_TOKENS = 1000
"""For each picture or piece of sound, whatever the length of its encoding."""


_Count = int | float | None
"""Python's servers take 100.0 for 100, and some clients know no integers."""
_Positive = Annotated[float, Meta(gt=0, le=1e12)]
_Usd = Annotated[float, Meta(ge=0, le=1e6)]
_Names = Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=64)]


class _MaxPrice(Struct, forbid_unknown_fields=True):
    input: _Usd | None = None
    output: _Usd | None = None


class Routing(Struct, forbid_unknown_fields=True):
    """The `routing` object of a body, or the `x-tidegate-*` headers that say the same."""

    max_ttft_ms: _Positive | None = None
    min_tokens_per_s: _Positive | None = None
    max_price: _MaxPrice | None = None
    trust: Literal["provider", "verified", "community"] | None = None
    regions: _Names | None = None
    only: _Names | None = None
    ignore: _Names | None = None
    session_id: Annotated[str, Meta(max_length=256)] | None = None
    """Taken and not used yet: calls are not kept together by session."""
    hedge: bool | None = None
    """False: no second attempt beside one that is late."""
    explain: bool | None = None
    """No demand: the reply is to carry the plan."""

    def demands(self) -> Demands:
        price = self.max_price or _MaxPrice()
        return Demands(
            max_ttft_s=None if self.max_ttft_ms is None else self.max_ttft_ms / 1000,
            min_tokens_per_s=self.min_tokens_per_s,
            max_input_pico_usd=_pico_usd(price.input),
            max_output_pico_usd=_pico_usd(price.output),
            least_trust=Trust.COMMUNITY if self.trust is None else Trust[self.trust.upper()],
            regions=frozenset(self.regions or ()),
            only=frozenset(self.only or ()),
            ignore=frozenset(self.ignore or ()),
        )


class _StreamOptions(Struct):
    include_usage: bool | None = None


class _Common(Struct, kw_only=True):
    model: str
    service_tier: str | None = None
    routing: Routing | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: _Count = None
    max_tokens: _Count = None
    max_completion_tokens: _Count = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Raw] | None = None
    logprobs: bool | int | None = None


class _Chat(_Common, kw_only=True):
    messages: list[Raw]
    tools: list[Raw] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _Completions(_Common, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None
    prompt_embeds: Any = None
    suffix: str | None = None


class _Embeddings(Struct, kw_only=True):
    model: str
    input: Raw
    service_tier: str | None = None
    routing: Routing | None = None
    user: str | None = None
    safety_identifier: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


_DECODE: dict[Api, Any] = {
    "chat": msgspec.json.Decoder(_Chat).decode,
    "completions": msgspec.json.Decoder(_Completions).decode,
    "embeddings": msgspec.json.Decoder(_Embeddings).decode,
}
_decode_messages = msgspec.json.Decoder(list[Raw]).decode
_ESCAPE = re.compile(rb"\\(?:u00(5[fF]|6[1-9a-fA-F]|7[0-9aA])|.)")
"""Any; of a lower-case letter or an underscore with its number."""
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_MEDIA = re.compile(rb';base64,[A-Za-z0-9+/=_\\-]+|"data"\s*:\s*"[A-Za-z0-9+/=_\\-]+"')
"""Encoded media; with backslashes, since some write them as \\/ or \\u002B."""
_PICTURE = re.compile(rb'"image_url"\s*:')


class Request(Struct, kw_only=True):
    """A call as the client asked for it."""

    api: Api
    model: str
    """As the client wrote it."""
    fields: dict[str, Raw]
    """The top level of the body."""
    stream: bool = False
    shows_usage: bool = False
    choices: int = 1
    max_tokens: int | None = None
    tier: TierName = "default"
    tier_asked: bool = False
    """Whether it names a tier, so that the reply is to name one."""
    tier_insisted: bool = False
    """Whether it is not `auto`."""
    prompt_tokens: int = 0
    """Estimated."""
    prompt: bytes = b""
    """Its text as the client wrote it, in the order of a chat template: tools, then messages. Embeddings have none: what
    they read is not kept in a prefix cache."""
    ends: Ends | None = None
    """Of `prompt`, where it is a chat's and long enough to be looked for in caches."""
    cache_salt: bytes = b""
    """vLLM's, as the client wrote it."""
    tenant_salt: bytes = b""
    """What a worker is sent in its place where tenants' caches are kept apart."""
    needs: frozenset[Capability] = frozenset()
    demands: Demands = NO_DEMANDS
    hedge: bool = True
    """Whether a second attempt may race one that is late."""
    explain: bool = False
    """Whether the reply carries the plan."""
    customer: str = ""
    """Whom the tenant makes it for, in its own words."""

    def body_for(self, served_model: str, *, worker: bool = False, ids: bool = False) -> bytes:
        """The body for an endpoint. Streams report usage, for metering; only a `worker` knows the tenant's salt, and `ids`."""
        fields = self.fields.copy()
        fields["model"] = Raw(_encode(served_model))
        if worker and self.tenant_salt:
            fields["cache_salt"] = Raw(b'"%b"' % self.tenant_salt)
        fields.pop("routing", None)
        if ids:
            fields["return_token_ids"] = Raw(b"true")
        if self.stream:
            given = fields.get("stream_options")
            options = {} if given is None or bytes(given) == b"null" else _decode_fields(given)
            options["include_usage"] = Raw(b"true")
            fields["stream_options"] = Raw(_encode(options))
        return _encode(fields)


def parse(api: Api, body: bytes, headers: dict[bytes, bytes]) -> Request:
    """The request in `body`, with the demands that its headers add. Raises ApiError."""
    try:
        # What the endpoint cannot decode must not look like the endpoint's fault.
        _ = body.isascii() or str(body, "utf-8")
        typed = _DECODE[api](body)
        fields = _decode_fields(body)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError("invalid_json", f"the body is no JSON: {place_of(body, error)}") from None
    except RecursionError:
        raise ApiError("invalid_json", "the body is nested too deeply") from None
    request = Request(api=api, model=typed.model, fields=fields)
    if CUSTOMER in headers or typed.safety_identifier or typed.user:
        request.customer = customer(headers, typed.safety_identifier, typed.user)
    if typed.service_tier is not None:
        request.tier, request.tier_asked = _tier(typed.service_tier), True
        request.tier_insisted = typed.service_tier != "auto"
    routing = typed.routing
    for name in headers:
        if name.startswith(HEADER_PREFIX):
            routing = _with_headers(routing, headers)
            break
    if routing is not None:
        request.demands, request.explain = routing.demands(), bool(routing.explain)
        request.hedge = routing.hedge is not False
    if isinstance(typed, _Embeddings):
        request.prompt_tokens = _tokens(fields["input"])
        request.needs = frozenset({"embeddings"})
        return request
    _generation(request, typed)
    return request


def _generation(request: Request, typed: _Chat | _Completions) -> None:
    """What only calls that generate have."""
    salt = request.fields.get("cache_salt")
    if salt is not None:
        request.cache_salt = bytes(salt)
    request.stream = bool(typed.stream)
    if typed.stream_options is not None:
        request.shows_usage = bool(typed.stream_options.include_usage)
    if typed.max_completion_tokens is not None and isinstance(typed, _Chat):
        request.max_tokens = _whole(typed.max_completion_tokens, "max_completion_tokens", 0)
        if typed.max_tokens is not None:  # an endpoint may know only this one
            request.fields["max_tokens"] = request.fields["max_completion_tokens"]
    elif typed.max_tokens is not None:
        request.max_tokens = _whole(typed.max_tokens, "max_tokens", 0)
    if typed.n is not None:
        request.choices = _whole(typed.n, "n", 1)
    if isinstance(typed, _Chat):
        _chat(request, typed)
    else:
        _completion(request, typed)
    if typed.logprobs not in (None, False):
        request.needs |= {"logprobs"}
    if (
        typed.response_format is not None
        and bytes(typed.response_format.get("type", b"")) == b'"json_schema"'
    ):
        request.needs |= {"json_schema"}


def _chat(request: Request, typed: _Chat) -> None:
    messages = bytes(request.fields["messages"])
    if b"\\u00" in messages:
        messages = _with_letters(messages)
        request.fields["messages"], typed.messages = Raw(messages), _decode_messages(messages)
    request.prompt = messages
    request.prompt_tokens = _tokens(messages)
    if b"_" in messages and b'"image_url"' in messages and _PICTURE.search(messages):
        request.needs = frozenset({"vision"})
    if typed.tools:
        tools = bytes(request.fields["tools"])
        request.prompt_tokens += len(tools) // BYTES_PER_TOKEN
        request.prompt = tools + messages
        request.needs |= {"tools"}
    request.ends = ends_of(request.prompt, typed.messages)


def _with_letters(text: bytes) -> bytes:
    """JSON with its letters written as themselves: who looks for a field's name then finds it, as the endpoint does."""
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else found[0], text)


def _completion(request: Request, typed: _Completions) -> None:
    if typed.prompt is None and typed.prompt_embeds is None:
        raise ApiError("missing_required_parameter", "prompt is missing", param="prompt")
    request.choices *= _prompts(typed.prompt)
    prompt = request.fields.get("prompt", Raw())
    request.prompt_tokens = _prompt_tokens(typed.prompt, prompt)
    request.prompt = bytes(prompt)


def _whole(count: float, param: str, least: int) -> int:
    """As a number to plan with; the endpoint gets the client's own, and says what it thinks of it."""
    if isinstance(count, int) and least <= count <= MOST_TOKENS:
        return count
    if isinstance(count, float) and not count.is_integer():
        raise ApiError("invalid_type", f"{param}: expected `int | null`, got `float`", param=param)
    return max(least, min(int(count), MOST_TOKENS))


def _tokens(text: bytes | Raw) -> int:
    text = bytes(text)
    # To look for one byte costs next to nothing, and where it is missing so is the whole.
    if (b";" in text and b";base64," in text) or (b"_" in text and b'"input_audio"' in text):
        text, media = _MEDIA.subn(b"", text)
        return len(text) // BYTES_PER_TOKEN + media * MEDIA_TOKENS
    return len(text) // BYTES_PER_TOKEN


_Prompt = str | list[str | int | list[int]] | None


def _prompts(prompt: _Prompt) -> int:
    """How many prompts a completion has: a list of numbers is one, given as token ids."""
    if not isinstance(prompt, list):
        return 1
    return max(1, sum(not isinstance(part, int) for part in prompt))


def _prompt_tokens(prompt: _Prompt, raw: Raw) -> int:
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], str):
        return _tokens(raw)
    return sum(len(part) if isinstance(part, list | str) else 1 for part in prompt)


def _tier(service_tier: str) -> TierName:
    match service_tier:
        case "auto" | "default":
            return "default"
        case "flex" | "priority":
            return service_tier
    raise ApiError(
        "invalid_value",
        f"service_tier is one of auto, default, flex and priority, not {service_tier[:40]!r}",
        param="service_tier",
    )


def _with_headers(routing: Routing | None, headers: dict[bytes, bytes]) -> Routing:
    """The demands in headers, over which the body's own win."""
    given: dict[str, Any] = {}
    for header, value in headers.items():
        if header.startswith(HEADER_PREFIX) and header != CUSTOMER:
            name = header[len(HEADER_PREFIX) :].decode("latin-1").replace("-", "_")
            text = value.decode("latin-1").strip()
            if name in ("regions", "only", "ignore"):
                given[name] = [part.strip() for part in text.split(",") if part.strip()]
            elif name in ("max_price_input", "max_price_output"):
                given.setdefault("max_price", {})[name.removeprefix("max_price_")] = text
            elif name == "max_price":
                param = header.decode()
                raise ApiError(
                    "invalid_value", f"{param}: there are {param}-input and {param}-output", param=param
                )
            else:
                given[name] = text
    try:
        from_headers = msgspec.convert(given, Routing, strict=False)
    except msgspec.ValidationError as error:
        failure = invalid_field(str(error))
        header_name = (failure.param or "").replace("_", "-").replace(".", "-")
        raise ApiError("invalid_value", failure.message, param=f"x-tidegate-{header_name}") from None
    if routing is None:
        return from_headers
    if routing.max_price is not None and from_headers.max_price is not None:
        routing.max_price = _over(from_headers.max_price, routing.max_price)
    return _over(from_headers, routing)


_Fields = TypeVar("_Fields", bound=Struct)


def _over(below: _Fields, above: _Fields) -> _Fields:
    """`below` with what `above` says put over it."""
    said = {name: value for name, value in structs.asdict(above).items() if value is not None}
    return structs.replace(below, **said)


def _pico_usd(usd_per_million: float | None) -> int | None:
    """Pico-USD per token. The shortest text of the float is what the caller wrote."""
    return None if usd_per_million is None else int(Decimal(repr(usd_per_million)) * 1_000_000)
