"""The values that routing decides on.

Everything here is immutable and free of I/O, so that a plan can be computed, replayed, simulated and tested from
values alone. They are `msgspec.Struct`s rather than dataclasses because some of them are made for every endpoint of
every call, and a frozen Struct is made about five times as fast as a frozen dataclass.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

EndpointKind = Literal["worker", "openai", "litellm"]
TierName = Literal["priority", "default", "flex"]

Capability = Literal["tools", "vision", "json_schema", "logprobs", "embeddings"]


class Trust(IntEnum):
    """How far the operator of an endpoint is trusted; a call may ask for a least level."""

    COMMUNITY = 0
    VERIFIED = 1
    PROVIDER = 2


class Price(Struct, frozen=True, gc=False):
    """Prices in pico-USD (1e-12 USD) per token: USD per million tokens to six decimals is then a whole number."""

    input_pico_usd: int = 0
    output_pico_usd: int = 0
    cached_input_pico_usd: int | None = None
    """None: cached tokens cost what uncached ones do."""
    reasoning_pico_usd: int | None = None
    """None: tokens of reasoning cost what others of the output do."""
    parts: int = 1
    """All four are in so many parts of a pico-USD: what is multiplied, as for a tier or a tenant, stays a whole number."""


class Endpoint(Struct, frozen=True):
    """One routable target for one model, as configured. What changes by the second is in `Load`."""

    name: str
    """Unique within its model."""
    model: str
    """The public name of the model that this endpoint serves."""
    served_model: str
    """The model's name at the endpoint."""
    kind: EndpointKind = "worker"
    url: str = ""
    region: str | None = None
    trust: Trust = Trust.COMMUNITY
    gpu: str | None = None
    capabilities: frozenset[Capability] | None = None
    """None: not declared, so nothing is ruled out by it."""
    context_tokens: int | None = None
    cost: Price = Price()
    """What serving it there costs us."""
    weights: str | None = None
    """What it computes with: endpoints of one model with the same name for that write the same. None: nobody knows."""
    continues: bool = False
    """Whether a provider goes on with an answer that another one has begun."""


class Demands(Struct, frozen=True):
    """What a caller insists on. All of them are hard."""

    max_ttft_s: float | None = None
    min_tokens_per_s: float | None = None
    max_input_pico_usd: int | None = None
    max_output_pico_usd: int | None = None
    least_trust: Trust = Trust.COMMUNITY
    regions: frozenset[str] = frozenset()
    """Empty: any."""
    only: frozenset[str] = frozenset()
    """Endpoint names; empty: any."""
    ignore: frozenset[str] = frozenset()


NO_DEMANDS = Demands()


class Tier(Struct, frozen=True):
    """What an hour of waiting is worth to a call of this tier, and the time to first token it aims at."""

    name: TierName
    max_ttft_s: float
    """A target: where nothing meets it, the fastest wins."""
    waiting_nano_usd_per_s: float


class Turn(Struct, frozen=True, gc=False):
    """Where a prompt stands in its conversation. Prompts go by the names of `routing.prefix`."""

    whole: int
    """This prompt, to its very end, which `Call.pieces` does not reach."""
    asked: int = 0
    """The prompt that the last answer in it was given to; 0: there is no answer in it."""
    answered: int = 0
    """How many pieces there are up to the end of that answer."""


class Call(Struct, frozen=True, gc=False):
    """One request as routing sees it."""

    model: str
    """Public name, aliases resolved."""
    tier: Tier
    prompt_tokens: int
    """Estimated: the gateway does not tokenize."""
    max_tokens: int | None = None
    needs: frozenset[Capability] = frozenset()
    demands: Demands = NO_DEMANDS
    tenant: str = ""
    """Who pays, where that is known: tenants differ in how much they have written."""
    pieces: tuple[int, ...] = ()
    """Names of the prompt's prefixes, shortest first; see `routing.prefix`."""
    turn: Turn | None = None
    """Where it is a turn of a conversation."""


class Load(Struct, frozen=True, gc=False):
    """What the gateway knows of an endpoint at one moment."""

    inflight: int = 0
    """Calls there that have not ended, those of others included as far as it tells."""
    pending_work: float = 0.0
    """Token-equivalents of prefill sent there whose first token has not come."""
    work_per_s: float = 1.0
    """Token-equivalents of prefill per second, learned."""
    base_ttft_s: float = 0.0
    """Network and fixed costs before the first token, learned."""
    itl_s: float = 0.0
    """Seconds per output token for one more call there, learned."""
    decoding: int = 0
    """Calls there that are past their first token, or whose first token cannot be seen."""
    crowding: float = 0.0
    """By which share one call more makes each decode step there longer."""
    arrivals_per_s: float = 0.0
    """Calls sent there per second, of late."""
    busy: float = 0.0
    """Share of its time, 0 to 1, that prefilling what was sent there of late takes."""
    unavailable: str | None = None
    """Why it gets no call now, or None."""
    retry_after_s: float | None = None
    """With `unavailable`: in how many seconds it may be available again, where that is known."""
    resort_s: float | None = None
    """With `unavailable`: in how many seconds it may be asked all the same, where nobody else could serve the call."""


class Estimate(Struct, frozen=True, gc=False):
    """What serving a call at one endpoint is expected to take and cost."""

    ttft_s: float
    itl_s: float
    imposed_s: float
    """Seconds by which it delays others at that endpoint."""
    cost_nano_usd: int
    """Expected price paid for it."""


class Candidate(Struct, frozen=True, gc=False):
    endpoint: Endpoint
    estimate: Estimate
    score_nano_usd: float
    """Price plus value of waiting; the least is the best."""
    on_time: bool
    """Whether the estimate meets the tier's target."""
    cached_tokens: int = 0
    """Of the prompt, expected in its prefix cache."""


class Rejection(Struct, frozen=True, gc=False):
    endpoint: Endpoint
    filter: str
    reason: str
    retry_after_s: float | None = None
    """Where waiting can help: in how many seconds. None: waiting does not help."""


class Plan(Struct, frozen=True, gc=False):
    """A ranking with every estimate and every rejection in it. The ranking is the order of failover."""

    ranked: Sequence[Candidate]
    rejected: Sequence[Rejection]
    passed_over: Sequence[Endpoint] = ()
    """Could serve the call, but others were drawn to be looked at; only where there are very many."""
    last_resort: bool = False
    """Whether those ranked are all out, and are asked since nobody else could serve the call."""

    @property
    def retry_after_s(self) -> float | None:
        """In how many seconds the first of the rejected may be back; None where none will by waiting."""
        waits = [r.retry_after_s for r in self.rejected if r.retry_after_s is not None]
        return min(waits, default=None)


class Usage(Struct, frozen=True, gc=False):
    """Tokens of one call."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt tokens, those found in the worker's prefix cache."""
    completion_tokens: int = 0
    estimated: bool = False
    """True where the worker did not report and the gateway counted what it saw itself."""
    reasoning_tokens: int = 0
    """Of the completion tokens, those that the client is not shown as the answer."""
