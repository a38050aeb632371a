"""Who cannot serve a call, and why: one small policy for each reason.

A policy sees one endpoint at a time, keeps nothing, and answers with a sentence or None. All of them are hard; what is
merely slow or dear is for the estimate. These reasons hold until the call or the configuration changes; the one that
passes by waiting, unavailability, is no policy but a finding of the fleet, and the pipeline takes it from the `Load`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from routing.types import NO_DEMANDS, Call, Endpoint, Trust

if TYPE_CHECKING:
    from routing.types import Demands

Reject = Callable[[Call, Endpoint], str | None]

LEAST_SHARE_OF_PROMPT = 0.5
"""Share of the estimated prompt that it has at the least. The estimate is made from bytes, and code or text of one
long word after another comes to half of it; the worker, which tokenizes, refuses what truly does not fit."""


DEPARTURE_MARGIN = 2.0
"""Times as long as expected that a call must have left at an endpoint that has said when it leaves: half of all calls write
more than the mean."""


def fits(call: Call, context_tokens: float) -> bool:
    """Whether the call may fit a context of so many tokens."""
    return call.prompt_tokens * LEAST_SHARE_OF_PROMPT + (call.max_tokens or 0) <= context_tokens


def context(call: Call, endpoint: Endpoint) -> str | None:
    """Prompt and output must fit the context. The prompt is an estimate, so only a clear excess is refused."""
    if endpoint.context_tokens is None or fits(call, endpoint.context_tokens):
        return None
    return (
        f"about {call.prompt_tokens} prompt tokens and up to {call.max_tokens or 0} of output do not fit "
        f"its context of {endpoint.context_tokens}"
    )


def capability(call: Call, endpoint: Endpoint) -> str | None:
    """What the call needs must be among what the endpoint declares; one that declares nothing is given the chance."""
    if endpoint.capabilities is None or call.needs <= endpoint.capabilities:
        return None
    return f"does not offer {', '.join(sorted(call.needs - endpoint.capabilities))}"


def trust(call: Call, endpoint: Endpoint) -> str | None:
    """Trusted at least as far as asked."""
    least = call.demands.least_trust
    if endpoint.trust >= least:
        return None
    return f"its trust is {endpoint.trust.name.lower()}, asked for at least {least.name.lower()}"


def region(call: Call, endpoint: Endpoint) -> str | None:
    """In one of the regions asked for. Where it runs must be declared: a guess is no answer to a hard demand."""
    regions = call.demands.regions
    if not regions or endpoint.region in regions:
        return None
    where = f"is in {endpoint.region}" if endpoint.region is not None else "declares no region"
    return f"{where}, asked for {' or '.join(sorted(regions))}"


def price(call: Call, endpoint: Endpoint) -> str | None:
    """At most as dear per token as asked, input and output each on its own.

    Cached tokens are never dearer than that: without a price of their own they cost what others do. Embeddings have no
    output, so no cap on its price keeps them from an endpoint.
    """
    demands, cost = call.demands, endpoint.cost
    misses = []
    most = demands.max_input_pico_usd
    if most is not None and cost.input_pico_usd > most:
        misses.append(_too_dear("input", cost.input_pico_usd, most))
    most = demands.max_output_pico_usd
    if most is not None and cost.output_pico_usd > most and "embeddings" not in call.needs:
        misses.append(_too_dear("output", cost.output_pico_usd, most))
    return " and ".join(misses) or None


def _too_dear(what: str, pico_usd: int, most_pico_usd: int) -> str:
    # A pico-USD per token is a micro-USD per million tokens.
    return (
        f"{what} costs {pico_usd / 1e6:g} USD per million tokens, asked for at most {most_pico_usd / 1e6:g}"
    )


def named(call: Call, endpoint: Endpoint) -> str | None:
    """Among `only`, where that is given, and not among `ignore`."""
    demands = call.demands
    if endpoint.name in demands.ignore:
        return "the call ignores it"
    if demands.only and endpoint.name not in demands.only:
        return f"the call allows only {', '.join(sorted(demands.only))}"
    return None


def departure(expected_s: float, left_s: float) -> str | None:
    """One that has said when it leaves gets what is expected to be done well before. No policy, since it takes an estimate."""
    if expected_s * DEPARTURE_MARGIN <= left_s:
        return None
    return f"leaves in {max(0.0, left_s):.3g} s, and the call is expected to take {expected_s:.3g} s"


def filters_for(call: Call) -> tuple[tuple[str, Reject], ...]:
    """The filters that can have something to say on `call`, with their names.

    What holds for every endpoint alike is settled here, once a call: most calls demand nothing and pay for one filter.
    """
    chosen: list[tuple[str, Reject]] = []
    if call.demands is not NO_DEMANDS:
        chosen += _demanded(call.demands)
    if call.needs:
        chosen.append(("capability", capability))
    chosen.append(("context", context))
    return tuple(chosen)


def _demanded(demands: Demands) -> list[tuple[str, Reject]]:
    chosen: list[tuple[str, Reject]] = []
    if demands.only or demands.ignore:
        chosen.append(("named", named))
    if demands.least_trust > Trust.COMMUNITY:
        chosen.append(("trust", trust))
    if demands.regions:
        chosen.append(("region", region))
    if demands.max_input_pico_usd is not None or demands.max_output_pico_usd is not None:
        chosen.append(("price", price))
    return chosen
