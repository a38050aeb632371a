"""OpenAI's wire format on the way in: a request body becomes a `Request`, typed where the gateway looks and raw elsewhere.

The top level is read twice: into typed fields, so that a wrong type is reported with its name, and into raw pieces, so
that what goes on to the endpoint is the client's own bytes but for `model` and `stream_options`. Since the body sent on
is put together from the very pieces that were checked, a field given twice cannot mean one thing here and another there.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from gateway.errors import ApiError
from routing.types import NO_DEMANDS, Capability, Demands, TierName, Trust

Api = Literal["chat", "completions", "embeddings"]
PATHS: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
}
BYTES_PER_TOKEN = 4
"""Of prompt text, for estimates before the endpoint has counted: English in current tokenizers."""
IMAGE_TOKENS = 1000
HEADER_PREFIX = b"x-tidegate-"


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
    """Taken and not used yet: nothing is hedged, so false is what happens."""

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
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Raw] | None = None


class _Chat(_Common, kw_only=True):
    messages: list[Raw]
    tools: list[Raw] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class _Completions(_Common, kw_only=True):
    prompt: str | list[Any]
    logprobs: int | bool | None = None
    suffix: str | None = None


class _Embeddings(Struct, kw_only=True):
    model: str
    input: Raw
    service_tier: str | None = None
    routing: Routing | None = None
    user: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


_DECODE: dict[Api, Any] = {
    "chat": msgspec.json.Decoder(_Chat).decode,
    "completions": msgspec.json.Decoder(_Completions).decode,
    "embeddings": msgspec.json.Decoder(_Embeddings).decode,
}
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>[^`]+)`")
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]+)`")
_BASE64 = re.compile(rb";base64,[A-Za-z0-9+/=_-]+")


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
    prompt_tokens: int = 0
    """Estimated."""
    needs: frozenset[Capability] = frozenset()
    demands: Demands = NO_DEMANDS

    def body_for(self, served_model: str) -> bytes:
        """The body for an endpoint where the model has this name. Streams always report usage, for metering."""
        fields = self.fields.copy()
        fields["model"] = Raw(_encode(served_model))
        fields.pop("routing", None)
        if self.stream:
            given = fields.get("stream_options")
            options = {} if given is None or bytes(given) == b"null" else _decode_fields(given)
            options["include_usage"] = Raw(b"true")
            fields["stream_options"] = Raw(_encode(options))
        return _encode(fields)


def parse(api: Api, body: bytes, headers: dict[bytes, bytes]) -> Request:
    """The request in `body`, with the demands that its headers add. Raises ApiError."""
    try:
        typed = _DECODE[api](body)
        fields = _decode_fields(body)
        # What the endpoint cannot decode must not look like the endpoint's fault.
        str(body, "utf-8")
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError("invalid_json", f"the body is no JSON: {_where(body, error)}") from None
    except RecursionError:
        raise ApiError("invalid_json", "the body is nested too deeply") from None
    request = Request(api=api, model=typed.model, fields=fields)
    if typed.service_tier is not None:
        request.tier, request.tier_asked = _tier(typed.service_tier), True
    routing = typed.routing
    if any(name.startswith(HEADER_PREFIX) for name in headers):
        routing = _with_headers(routing, headers)
    if routing is not None:
        request.demands = routing.demands()
    if isinstance(typed, _Embeddings):
        request.prompt_tokens = _tokens(bytes(fields["input"]))
        request.needs = frozenset({"embeddings"})
        return request
    request.stream = bool(typed.stream)
    options = typed.stream_options
    request.shows_usage = options is not None and bool(options.include_usage)
    request.max_tokens = (
        typed.max_tokens if typed.max_completion_tokens is None else typed.max_completion_tokens
    )
    request.choices = max(1, typed.n or 1)
    if isinstance(typed, _Completions):
        request.choices *= _prompts(typed.prompt)
        request.prompt_tokens = _completion_tokens(typed.prompt, fields)
    else:
        request.prompt_tokens, request.needs = _chat_tokens_and_needs(typed, fields)
    return request


def _chat_tokens_and_needs(chat: _Chat, fields: dict[str, Raw]) -> tuple[int, frozenset[Capability]]:
    messages = bytes(fields["messages"])
    tokens = _tokens(messages)
    needs: set[Capability] = set()
    if chat.tools:
        needs.add("tools")
        tokens += len(bytes(fields["tools"])) // BYTES_PER_TOKEN
    if chat.logprobs:
        needs.add("logprobs")
    if chat.response_format is not None and bytes(chat.response_format.get("type", b"")) == b'"json_schema"':
        needs.add("json_schema")
    # Unescaped quotes cannot stand inside a JSON string, so this is a part's type and not somebody's text.
    if b'"image_url"' in messages:
        needs.add("vision")
    return tokens, frozenset(needs)


def _tokens(text: bytes) -> int:
    if b";base64," in text:
        text, images = _BASE64.subn(b"", text)
        return len(text) // BYTES_PER_TOKEN + images * IMAGE_TOKENS
    return len(text) // BYTES_PER_TOKEN


def _prompts(prompt: str | list[Any]) -> int:
    """How many prompts a completion has: a list of numbers is one, given as token ids."""
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return 1
    return len(prompt)


def _completion_tokens(prompt: str | list[Any], fields: dict[str, Raw]) -> int:
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], str):
        return len(prompt) if isinstance(prompt[0], int) else sum(map(len, prompt))
    return _tokens(bytes(fields["prompt"]))


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
        if header.startswith(HEADER_PREFIX):
            name = header[len(HEADER_PREFIX) :].decode("latin-1").replace("-", "_")
            text = value.decode("latin-1").strip()
            if name in ("regions", "only", "ignore"):
                given[name] = [part.strip() for part in text.split(",") if part.strip()]
            elif name in ("max_price_input", "max_price_output"):
                given.setdefault("max_price", {})[name.removeprefix("max_price_")] = text
            else:
                given[name] = text
    try:
        from_headers = msgspec.convert(given, Routing, strict=False)
    except msgspec.ValidationError as error:
        failure = _invalid_field(str(error))
        header_name = (failure.param or "").replace("_", "-").replace(".", "-")
        raise ApiError("invalid_value", failure.message, param=f"x-tidegate-{header_name}") from None
    if routing is not None:
        for name in routing.__struct_fields__:
            if getattr(routing, name) is not None:
                setattr(from_headers, name, getattr(routing, name))
    return from_headers


def _pico_usd(usd_per_million: float | None) -> int | None:
    """Pico-USD per token. The shortest text of the float is what the caller wrote."""
    return None if usd_per_million is None else int(Decimal(repr(usd_per_million)) * 1_000_000)


def _invalid_field(text: str) -> ApiError:
    """A field of the wrong type, as msgspec puts it, in words and with the field's name."""
    place = _PLACE.match(text)
    what, path = (text, "") if place is None else (place["what"], place["path"] or "")
    path = path.removeprefix(".")
    if missing := _MISSING.search(what):
        param = f"{path}.{missing['name']}" if path else missing["name"]
        return ApiError("missing_required_parameter", f"{param} is missing", param=param)
    unknown = _UNKNOWN.search(what)
    if unknown:
        path = f"{path}.{unknown['name']}" if path else unknown["name"]
        return ApiError("invalid_value", f"{path} is no field of this object", param=path)
    code = "invalid_type" if ", got `" in what else "invalid_value"
    subject = path or "the body"
    return ApiError(code, f"{subject}: {what[:1].lower()}{what[1:]}", param=path or None)


def _where(body: bytes, error: Exception) -> str:
    """The decoder's words, with line and column in place of an offset."""
    text = str(error)
    if not body:
        return "it is empty"
    offset = error.start if isinstance(error, UnicodeDecodeError) else None
    if offset is None and (found := re.search(r" \(byte (\d+)\)", text)):
        offset = int(found[1])
        text = text.replace(found[0], "")
    if offset is None:
        return text
    before = body[:offset]
    line, column = before.count(b"\n") + 1, offset - before.rfind(b"\n")
    return f"{text} at line {line}, column {column}"
