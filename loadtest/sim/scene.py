"""What a simulated run depends on, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.sim.calls import SimCall
    from loadtest.sim.fleet import Churn, Hosted, Mishap, Node
    from loadtest.sim.policy import Flight, Story


class Scene(Struct, frozen=True):
    """All that a run depends on but its policy."""

    nodes: tuple[Node, ...]
    hosted: tuple[Hosted, ...]
    calls: Sequence[SimCall]
    page_tokens: int
    mishaps: Sequence[Mishap]
    churn: Churn
    seed: int
    replicas: int = 1
    gossip_s: float | None = None
    """Between two batches that a replica tells the others; None: they tell each other nothing."""
    scrape_s: float = 0.05
    """Between two scrapes of the workers' metrics, for policies that use them (llm-d's default)."""


class Done(Struct, frozen=True, gc=False):
    """What became of a call."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None
    e2e_s: float | None
    """None: it broke off, or nothing came of it."""
    cached_tokens: int
    endpoint: int
    """The last one tried; -1: there was nobody."""
    attempts: int
    cost_usd: float
    whole: bool = False
    """Whether its reply was wanted in one piece: then nothing comes before its end."""


def unserved(story: Story, attempts: int) -> Done:
    """What became of a call for which nobody is left."""
    call = story.call
    ttft_s = None if story.first_s is None or call.whole else story.first_s - call.at_s
    return Done(
        call.at_s, call.prompt_tokens, call.output_tokens, ttft_s, None, 0, -1, attempts, 0.0, call.whole
    )


def done_of(scene: Scene, flight: Flight, now_s: float, *, whole: bool) -> Done:
    """What became of the call whose last attempt this is."""
    story, served = flight.story, flight.endpoint
    call = story.call
    by = scene.nodes[served] if served < len(scene.nodes) else scene.hosted[served - len(scene.nodes)]
    first_s = story.first_s
    if call.whole:
        first_s = now_s if whole else None
    usd = call.prompt_tokens * by.input_usd_per_million + call.output_tokens * by.output_usd_per_million
    return Done(
        at_s=call.at_s,
        prompt_tokens=call.prompt_tokens,
        output_tokens=call.output_tokens,
        ttft_s=None if first_s is None else first_s - call.at_s,
        e2e_s=now_s - call.at_s if whole else None,
        cached_tokens=flight.cached_tokens,
        endpoint=served,
        attempts=len(flight.tried) + 1,
        cost_usd=usd / 1e6,
        whole=call.whole,
    )


class Sample(Struct, frozen=True):
    at_s: float
    inflight: int
    waiting: int


class Toll(Struct):
    """What churn, and hiding it, has cost over a run. In tokens, read or made by workers."""

    worked_tokens: int = 0
    wasted_tokens: int = 0
    """Of these: made for nobody, or read for a second time."""
    hedges: int = 0
    resumes: int = 0
    moves: int = 0
    """Streams that ran slowly and went on elsewhere."""
    anew: int = 0
    """Replies in one piece that took too long and were had elsewhere."""


class Result(Struct, frozen=True):
    done: list[Done]
    samples: list[Sample]
    events: int
    toll: Toll
