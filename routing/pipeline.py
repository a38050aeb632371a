"""How a call becomes a plan: filter, estimate, choose.

This is the whole decision, free of I/O: the same call, snapshot and roll give the same plan, in a test, in a
simulation and when `explain` asks a month later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from routing.estimate import MEAN_OUTPUT_TOKENS, ask, estimate
from routing.filters import filters_for
from routing.objective import rank
from routing.types import NO_DEMANDS, Plan, Rejection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from routing.types import Call, Demands, Endpoint, Estimate, Load


def plan(
    call: Call,
    snapshot: Sequence[tuple[Endpoint, Load]],
    roll: float,
    expected_output_tokens: float = MEAN_OUTPUT_TOKENS,
) -> Plan:
    """The plan for `call` over `snapshot`, the endpoints of its model. Each is ranked or rejected, exactly once.

    `roll`, uniform in [0, 1), settles exact ties; `expected_output_tokens` is the running mean of the model's calls.
    """
    filters = filters_for(call)
    asked = ask(call, expected_output_tokens)
    strict = None if call.demands is NO_DEMANDS else call.demands
    estimated: list[tuple[Endpoint, Estimate]] = []
    rejected: list[Rejection] = []
    for endpoint, load in snapshot:
        for name, reject in filters:
            reason = reject(call, endpoint, load)
            if reason is not None:
                waits_s = load.retry_after_s if name == "availability" else None
                rejected.append(Rejection(endpoint, name, reason, waits_s))
                break
        else:
            expected = estimate(asked, endpoint, load)
            if strict is not None and (miss := missed(strict, expected)) is not None:
                rejected.append(Rejection(endpoint, *miss))
            else:
                estimated.append((endpoint, expected))
    return Plan(rank(call.tier, estimated, asked.output_tokens, roll), tuple(rejected))


def missed(demands: Demands, expected: Estimate) -> tuple[str, str] | None:
    """Which demand on speed an estimate misses, and by what figure; None where it meets them."""
    if demands.max_ttft_s is not None and expected.ttft_s > demands.max_ttft_s:
        reason = (
            f"expected first token in {expected.ttft_s:.3g} s, asked for at most {demands.max_ttft_s:g} s"
        )
        return "max_ttft", reason
    # 1/itl >= least, written so that an endpoint with nothing learned (itl 0) divides nothing.
    if demands.min_tokens_per_s is not None and expected.itl_s * demands.min_tokens_per_s > 1.0:
        reason = (
            f"expected {1.0 / expected.itl_s:.3g} tokens per second, "
            f"asked for at least {demands.min_tokens_per_s:g}"
        )
        return "min_tokens_per_s", reason
    return None


def describe(plan: Plan) -> str:
    """The plan in lines for a person: the ranking with its figures, then who was rejected and why."""
    lines = [
        f"{place}. {c.endpoint.name}: first token {c.estimate.ttft_s:.3g} s, "
        f"then {c.estimate.itl_s * 1000:.3g} ms a token, delays others {c.estimate.imposed_s:.3g} s, "
        f"costs {c.estimate.cost_nano_usd} nano-USD, score {c.score_nano_usd:.6g}"
        f"{'' if c.on_time else ' (late for its tier)'}"
        for place, c in enumerate(plan.ranked, start=1)
    ]
    lines += [f"-  {r.endpoint.name}: {r.reason} ({r.filter})" for r in plan.rejected]
    return "\n".join(lines)
