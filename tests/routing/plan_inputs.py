"""Calls, endpoints and loads of all kinds, for properties of plans."""

from __future__ import annotations

from hypothesis import strategies as st

from routing.types import NO_DEMANDS, Call, Demands, Endpoint, Load, Price, Tier, Trust

TIERS = (
    Tier(name="priority", max_ttft_s=1.0, waiting_nano_usd_per_s=2.8e7),
    Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=1.1e6),
    Tier(name="flex", max_ttft_s=600.0, waiting_nano_usd_per_s=0.0),
)
DEFAULT = TIERS[1]
REGIONS = ["eu", "us"]
CAPABILITIES = ["tools", "vision"]


def maybe(strategy: st.SearchStrategy):
    return st.none() | strategy


def endpoints(name: str):
    return st.builds(
        Endpoint,
        name=st.just(name),
        model=st.just("m"),
        served_model=st.just("m"),
        region=maybe(st.sampled_from(REGIONS)),
        trust=st.sampled_from(Trust),
        capabilities=maybe(st.frozensets(st.sampled_from(CAPABILITIES))),
        context_tokens=maybe(st.sampled_from([2048, 8192])),
        cost=st.builds(Price, st.integers(0, 10**6), st.integers(0, 10**6)),
    )


LOADS = st.builds(
    Load,
    inflight=st.integers(0, 50),
    pending_work=st.floats(0, 1e5),
    work_per_s=st.floats(1, 1e5),
    base_ttft_s=st.floats(0, 2),
    itl_s=st.floats(0, 1),
    unavailable=maybe(st.just("draining")),
    retry_after_s=maybe(st.floats(0, 60)),
)
SNAPSHOTS = st.integers(0, 6).flatmap(
    lambda n: st.tuples(*(st.tuples(endpoints(f"e{i}"), LOADS) for i in range(n)))
)
DEMANDS = st.builds(
    Demands,
    max_ttft_s=maybe(st.floats(0.01, 20)),
    min_tokens_per_s=maybe(st.floats(0.1, 200)),
    max_input_pico_usd=maybe(st.integers(0, 10**6)),
    max_output_pico_usd=maybe(st.integers(0, 10**6)),
    least_trust=st.sampled_from(Trust),
    regions=st.frozensets(st.sampled_from(REGIONS)),
    only=st.frozensets(st.sampled_from(["e0", "e1", "e2"])),
    ignore=st.frozensets(st.sampled_from(["e0", "e1", "e2"])),
)
CALLS = st.builds(
    Call,
    model=st.just("m"),
    tier=st.sampled_from(TIERS),
    prompt_tokens=st.integers(0, 20_000),
    max_tokens=maybe(st.integers(0, 4000)),
    needs=st.frozensets(st.sampled_from(CAPABILITIES)),
    demands=st.just(NO_DEMANDS) | DEMANDS,
)
ROLLS = st.floats(0, 1, exclude_max=True)
