"""A plan in words and figures: for `POST /admin/explain`, the command line, and a header of the reply.

The estimates are those that routing decided by, in its units; nothing here is worked out again.
"""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import Raw, Struct
from pydantic import BaseModel, Field

from backends.base import UNREADABLE
from gateway.auth import Key
from gateway.catalog import charged_within
from gateway.errors import ApiError
from gateway.malformed import invalid_field
from gateway.openai import Api, parse
from routing.estimate import ask
from routing.types import TierName  # noqa: TC001 - pydantic reads annotations at run time

if TYPE_CHECKING:
    from gateway.auth import Keyring
    from gateway.catalog import Catalog
    from gateway.planning import Planner
    from routing.decision import Decision
    from routing.types import Candidate, Plan, Rejection

HEADER_BYTES = 4096
"""Of the whole line: with the other headers it stays below what any client or proxy takes."""
_HEADER_ROWS = 10
_HEADER_REASON = 160
_API_BY_FIELD: dict[str, Api] = {"messages": "chat", "input": "embeddings", "prompt": "completions"}

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode


class CandidateShown(BaseModel):
    """An endpoint that can serve the call, and what is expected of it there."""

    endpoint: str
    ttft_s: float = Field(description="Expected time to first token.")
    ms_per_token: float = Field(description="Expected milliseconds per output token after it.")
    imposed_s: float = Field(description="Seconds by which it delays other calls there.")
    cached_tokens: int = Field(description="Of the prompt, expected in the prefix cache there.")
    cost_nano_usd: int = Field(description="What serving it there is expected to cost.")
    score_nano_usd: float = Field(
        description="Cost plus value of waiting; among those on time the least wins."
    )
    on_time: bool = Field(description="Whether the first token is expected within the tier's target.")

    @classmethod
    def of(cls, candidate: Candidate) -> Self:
        estimate = candidate.estimate
        return cls(
            endpoint=candidate.endpoint.name,
            ttft_s=estimate.ttft_s,
            ms_per_token=estimate.itl_s * 1000,
            imposed_s=estimate.imposed_s,
            cached_tokens=candidate.cached_tokens,
            cost_nano_usd=estimate.cost_nano_usd,
            score_nano_usd=candidate.score_nano_usd,
            on_time=candidate.on_time,
        )


class RejectionShown(BaseModel):
    """An endpoint that cannot serve the call."""

    endpoint: str
    filter: str = Field(description="What rejected it.")
    reason: str
    retry_after_s: float | None = Field(
        None, description="Where waiting helps: in how many seconds it may do."
    )

    @classmethod
    def of(cls, rejection: Rejection) -> Self:
        return cls(
            endpoint=rejection.endpoint.name,
            filter=rejection.filter,
            reason=rejection.reason,
            retry_after_s=rejection.retry_after_s,
        )


class Explanation(BaseModel):
    """The plan for a call: the candidates in the order in which they would be tried, and who was rejected and why."""

    model: str = Field(description="The model's public name.")
    tier: TierName
    tenant: str = Field("", description="Whose call it would be, where that was said.")
    held_to: str = Field("", description="What the tenant's policy and the key's hold it to, in words.")
    prompt_tokens: int = Field(description="Estimated from the body: the gateway does not tokenize.")
    output_tokens: int = Field(description="Expected.")
    candidates: list[CandidateShown]
    last_resort: bool = Field(
        False,
        description="Whether the candidates are all out, and are asked since nobody else could serve it.",
    )
    rejected: list[RejectionShown]
    passed_over: list[str] = Field(description="Endpoints that could serve it and were not looked at.")
    fallbacks: list[Explanation] = Field(
        description="The plans for the models to fall back on, where nobody serves it by this one."
    )

    @classmethod
    def of(cls, caller: Key, decision: Decision, *fallbacks: Decision) -> Self:
        call, plan = decision.call, decision.plan()
        return cls(
            model=call.model,
            tier=call.tier.name,
            tenant=caller.tenant,
            held_to="" if caller.policy is None else caller.policy.described(),
            prompt_tokens=call.prompt_tokens,
            output_tokens=ask(call, decision.expected_output_tokens).output_tokens,
            candidates=[CandidateShown.of(candidate) for candidate in plan.ranked],
            last_resort=plan.last_resort,
            rejected=[RejectionShown.of(rejection) for rejection in plan.rejected],
            passed_over=[endpoint.name for endpoint in plan.passed_over],
            fallbacks=[Explanation.of(caller, each) for each in fallbacks],
        )


class Question(Struct, frozen=True):
    """What is to be explained: a call as a client would send it, byte for byte, since sizes are estimated from bytes."""

    api: Api
    body: bytes
    headers: dict[bytes, bytes]
    tenant: str = ""
    """Whose call it is. Empty: that of `key`, or nobody's."""
    key: str = ""
    """The id of the key it is made with, or enough of its start. Empty: one that is bounded as its tenant is."""

    @classmethod
    def read(cls, given: bytes) -> Self:
        """From `{"request": {...}}` with `api`, `headers`, `tenant` and `key` where they are to be said, or from the plain
        body of a call. Raises ApiError.
        """
        try:
            fields = _decode_fields(given)
        except UNREADABLE:
            return cls("chat", given, {})  # whoever parses it says what is wrong with it
        if "request" not in fields or "model" in fields:
            return cls(api_of(fields), given, {})
        try:
            wrapped = msgspec.json.decode(given, type=_Wrapped)
        except msgspec.ValidationError as error:
            raise invalid_field(str(error)) from None
        except UNREADABLE as error:
            raise ApiError("invalid_json", f"the body is no JSON: {error}") from None
        return cls(
            wrapped.api or api_of(wrapped.request),
            msgspec.json.encode(wrapped.request),
            {
                _header(name.lower(), name): _header(value.strip(), name)
                for name, value in wrapped.headers.items()
            },
            wrapped.tenant,
            wrapped.key,
        )

    def encoded(self) -> bytes:
        """As it is read again."""
        try:
            fields = _decode_fields(self.body)
        except UNREADABLE:
            return self.body
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}
        return msgspec.json.encode(_Wrapped(fields, self.api, headers, self.tenant, self.key))

    def caller(self, keys: Keyring) -> Key:
        """Who calls. Raises ApiError where there is no such key, or another tenant has it."""
        if not self.key:
            return keys.of_tenant(self.tenant) if self.tenant else Key("", "")
        key = keys.identified(self.key)
        if self.tenant not in ("", key.tenant):
            message = f"{key.id} is not a key of {self.tenant[:100]}, but of {key.tenant}."
            raise ApiError("invalid_value", message, param="tenant")
        return key

    def decisions(self, catalog: Catalog, caller: Key, planner: Planner) -> list[Decision]:
        """For the models on offer, as if the call had come. Raises ApiError where it would be refused before that."""
        request = parse(self.api, self.body, self.headers)
        policy, asked = caller.policy, request.demands
        if policy is not None:
            policy.bind(request)
        offer = catalog.offer(request.model, request.tier, policy)
        offer = charged_within(offer, asked, request, caller.tenant)
        return planner.decisions(request, offer, caller.tenant)


class _Wrapped(Struct, forbid_unknown_fields=True):
    request: dict[str, Raw]
    api: Api | None = None
    headers: dict[str, str] = {}
    tenant: str = ""
    key: str = ""


def api_of(fields: dict[str, Raw]) -> Api:
    """Which call has such a body."""
    return next((api for field, api in _API_BY_FIELD.items() if field in fields), "chat")


def _header(text: str, name: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        param = f"headers.{name[:100]}"
        raise ApiError("invalid_value", f"{param}: no header can hold that", param=param) from None


def plan_line(plan: Plan) -> bytes:
    """The plan as one header line: the best candidates and the first rejections, and how many more there are."""
    candidates = [_rounded(CandidateShown.of(each)) for each in islice(plan.ranked, _HEADER_ROWS)]
    rejected = [_rounded(RejectionShown.of(each)) for each in plan.rejected[:_HEADER_ROWS]]
    while True:
        shown = {
            "candidates": candidates,
            "more_candidates": len(plan.ranked) - len(candidates),
            "rejected": rejected,
            "more_rejected": len(plan.rejected) - len(rejected),
            "passed_over": len(plan.passed_over),
            **({"last_resort": True} if plan.last_resort else {}),
        }
        # JSON escapes all that is no visible ASCII but DEL.
        text = json.dumps(shown, separators=(",", ":")).replace("\x7f", "\\u007f")
        line = b"x-tidegate-plan: %b\r\n" % text.encode()
        if len(line) <= HEADER_BYTES:
            return line
        (candidates if len(candidates) > len(rejected) else rejected).pop()


def _rounded(row: BaseModel) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in row:
        if isinstance(value, float):
            shown[name] = float(f"{value:.4g}")
        elif name == "reason":
            shown[name] = value[:_HEADER_REASON]
        elif value is not None:
            shown[name] = value
    return shown
