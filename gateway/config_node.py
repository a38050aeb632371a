"""What a node says of itself when it registers: the same kinds of value as stand in the configuration, with the same checks."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from gateway.config_endpoint import EndpointSection, PriceTable
from gateway.config_file import Problem, path_of
from gateway.config_section import (
    ApiKey,
    Count,
    Location,
    Name,
    Seconds,
    Section,
    ServedName,
    WorkerUrl,
    ZmqAddress,
    no_boolean,
)
from gateway.errors import ApiError
from gateway.policy import TrustName  # noqa: TC001 - pydantic reads annotations at run time
from routing.types import Capability  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_Some = TypeVar("_Some", bound=Section)
_ACTIONS = ("/heartbeat", "/drain", "/preempt")
"""What follows a node's name in the paths below /admin/nodes."""


def _by_public_name(given: Any) -> Any:
    """A list of models is short for each being served by its public name."""
    return {name: name for name in given} if isinstance(given, list) and _all_text(given) else given


def _all_text(given: list[Any]) -> bool:
    return all(isinstance(each, str) for each in given)


class NodeSection(Section):
    name: Name = Field(description="Unique among nodes, and among the endpoints of each of its models.")
    url: WorkerUrl = Field(description="URL of its vLLM server, without a path.")
    models: Annotated[dict[Name, ServedName], BeforeValidator(_by_public_name)] = Field(
        min_length=1,
        max_length=1000,
        description="Its models by public name, with their names there; or a list.",
    )
    api_key: ApiKey | None = Field(None, description="Sent there as a bearer token. It is not written down.")
    gpu: Name | None = Field(None, description="The card it runs on.")
    region: Name | None = Field(None, description="Where it is.")
    trust: TrustName | None = Field(None, description="How far its operator is trusted; else `community`.")
    cost: PriceTable | None = Field(None, description="What serving there costs us.")
    capabilities: frozenset[Capability] | None = Field(None, description="What it can do; else as its model.")
    context_tokens: Count | None = Field(
        None, description="Longest context; else its model's, or as it says."
    )
    kv_events: ZmqAddress | None = Field(None, description="Where it publishes its KV events.")
    kv_replay: ZmqAddress | None = Field(None, description="Where it sends those again that were missed.")
    lease_s: (
        Annotated[float, BeforeValidator(no_boolean), Field(ge=1, le=86_400, allow_inf_nan=False)] | None
    ) = Field(None, description="How long it may go without a heartbeat; else `nodes.lease_s`.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> Iterator[tuple[Location, str]]:
        if str(given.get("name")).endswith(_ACTIONS):
            yield (
                ("name",),
                f"should not end in any of {', '.join(_ACTIONS)}: so do paths that mean another node",
            )
        if given.get("kv_events") is not None or given.get("kv_replay") is not None:
            yield from EndpointSection.cross_check({"worker": given.get("url"), **_events(given)})

    def endpoint(self, model: str) -> EndpointSection:
        """The endpoint that it is of one of its models."""
        return EndpointSection(
            worker=self.url,
            name=self.name,
            model=self.models[model],
            api_key=self.api_key,
            gpu=self.gpu,
            region=self.region,
            trust=self.trust,
            cost=self.cost,
            capabilities=self.capabilities,
            context_tokens=self.context_tokens,
            kv_events=self.kv_events,
            kv_replay=self.kv_replay,
        )


class DrainSection(Section):
    within_s: Seconds | None = Field(
        None, description="When its running calls are taken from it; else after `timeouts.total_s`."
    )
    own: bool = Field(
        False,
        description="The node says so itself: it is over when it registers anew. An operator's drain holds until it is taken back.",
    )


class NoticeSection(Section):
    in_s: Seconds = Field(description="When it will be gone. Until then it gets what is done in time.")


def _events(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: given.get(key) for key in ("kv_events", "kv_replay")}


def read_section(kind: type[_Some], body: bytes) -> _Some:
    """A section sent as JSON; no body is an empty one. Raises ApiError with every problem, each at its path."""
    try:
        given = json.loads(body or b"{}", parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise ApiError("invalid_json", f"The body is no JSON: {error}") from None
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = [Problem(path_of(detail["loc"]), detail["msg"]) for detail in details]
        raise invalid(*problems) from None


def invalid(*problems: Problem) -> ApiError:
    text = "; ".join(f"{path}: {message}" if path else message for path, message in problems)
    return ApiError("invalid_value", text, param=problems[0].path or None)
