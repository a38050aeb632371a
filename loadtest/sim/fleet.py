"""The fleets that are simulated: which workers and hosted endpoints there are, and what befalls the workers.

The pool of twelve unequal workers is the one that Tidegate is for: cards of three classes at different people's homes
and halls. The equal one is a rack, which is what most routers are measured on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec import Struct, structs

from loadtest.sim.worker import MAX_SEQUENCES, Spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

FAST = Spec(work_per_s=12_000, step_s=0.010, sequence_s=0.00016, kv_tokens=500_000)
MIDDLE = Spec(work_per_s=6_000, step_s=0.020, sequence_s=0.00033, kv_tokens=250_000)
SLOW = Spec(work_per_s=2_500, step_s=0.033, sequence_s=0.00055, kv_tokens=80_000)

CLASSES = {"a100": FAST, "rtx-4090": MIDDLE, "a10g": SLOW}
"""By the GPU they declare. What a class can do is a little better or worse than what `routing` guesses of it."""

WORKER_USD_PER_MILLION = (0.06, 0.12)
"""What serving it at any of them costs, input and output. Assumed: a share of what hosted endpoints take."""

CACHE_SHARE = 0.5
"""Of a KV cache, for prefixes that are kept; the rest is for sequences that run."""


class Node(Struct, frozen=True):
    """A worker: what it is, and what it says it is."""

    name: str
    spec: Spec
    gpu: str
    rtt_s: float
    input_usd_per_million: float
    output_usd_per_million: float


class Hosted(Struct, frozen=True):
    """A provider: never full, nothing cached, always about as fast."""

    name: str
    ttft_s: float
    work_per_s: float
    itl_s: float
    input_usd_per_million: float
    output_usd_per_million: float
    spread: float = 0.25
    """Standard deviation of the logarithm of its time to first token."""

    def first_token_s(self, prompt_tokens: int, dice: Random) -> float:
        return (self.ttft_s + prompt_tokens / self.work_per_s) * dice.lognormvariate(0.0, self.spread)


HOSTED = (
    Hosted("hosted-fast", 0.45, 40_000, 0.011, 0.88, 0.88),
    Hosted("hosted-cheap", 0.60, 20_000, 0.028, 0.23, 0.40),
)
"""About the list prices in 2025 of two providers of Llama 3.3 70B, and their speeds. Of a model as small as those that
such cards serve fast, hosted tokens cost so little that there would be nothing to decide."""


def unequal(dice: Random) -> tuple[Node, ...]:
    """Four workers of each class, 2 to 120 ms away."""
    gpus = [gpu for gpu in CLASSES for _ in range(4)]
    rtts_s = [0.002 * 60.0 ** (place / (len(gpus) - 1)) for place in range(len(gpus))]
    dice.shuffle(rtts_s)
    return tuple(_node(index, gpu, rtts_s[index]) for index, gpu in enumerate(gpus))


def equal() -> tuple[Node, ...]:
    """Twelve of the middle class, 2 ms away."""
    return tuple(_node(index, "rtx-4090", 0.002) for index in range(12))


def _node(index: int, gpu: str, rtt_s: float) -> Node:
    return Node(f"w{index:02}-{gpu}", CLASSES[gpu], gpu, rtt_s, *WORKER_USD_PER_MILLION)


def misdeclared(nodes: tuple[Node, ...], share: float, dice: Random) -> tuple[Node, ...]:
    """The same workers, `share` of which say that they are of another class."""
    liars = set(dice.sample(range(len(nodes)), round(share * len(nodes))))
    return tuple(
        structs.replace(node, gpu=dice.choice([gpu for gpu in CLASSES if gpu != node.gpu]))
        if index in liars
        else node
        for index, node in enumerate(nodes)
    )


class Shape(Struct, frozen=True):
    """A workload in the figures that its load depends on."""

    work: float
    """Token-equivalents of prefill per call that no cache saves."""
    prompt_tokens: float
    output_tokens: float


def capacity_per_s(nodes: tuple[Node, ...], shape: Shape) -> float:
    """Calls per second that keep every worker just busy: the time that a call takes of each, at the batch that fits."""
    total = 0.0
    for node in nodes:
        spec = node.spec
        room = (1.0 - CACHE_SHARE) * spec.kv_tokens
        batch = max(1.0, min(MAX_SEQUENCES, room / (shape.prompt_tokens + shape.output_tokens)))
        token_s = spec.step_s / batch + spec.sequence_s
        total += 1.0 / (shape.work / spec.work_per_s + shape.output_tokens * token_s)
    return total


class Churn(Struct, frozen=True):
    """How often workers leave, and are slow."""

    session_s: float | None
    """Mean time for which a worker stays; None: all stay."""
    away_s: tuple[float, float] = (60.0, 180.0)
    announced: float = 0.3
    """Share of those leaving that say so first; of the others half reset their connections, half fall silent."""
    notice_s: float = 30.0
    silence_s: float = 5.0
    """After which a silent worker is seen to be gone."""
    slow_every_s: float | None = 1800.0
    slow_for_s: tuple[float, float] = (60.0, 180.0)
    slowness: float = 5.0


CHURNS: dict[str, Churn] = {
    "none": Churn(session_s=None, slow_every_s=None),
    "slow": Churn(session_s=None),
    "20min": Churn(session_s=1200.0),
    "60min": Churn(session_s=3600.0),
}

Kind = Literal["notice", "reset", "silence", "back", "slow", "recover", "blip"]
"""`blip`: it loses all its connections and is there again at once, with nothing in its cache."""


class Mishap(Struct, frozen=True, order=True):
    at_s: float
    index: int
    kind: Kind


def mishaps(churn: Churn, workers: int, until_s: float, dice: Random) -> list[Mishap]:
    """What befalls each worker, in order of time. The same dice, the same fate, whatever the policy does."""
    found: list[Mishap] = []
    for index in range(workers):
        found += _sessions(churn, index, until_s, dice)
        found += _slow_times(churn, index, until_s, dice)
    return sorted(found)


def _sessions(churn: Churn, index: int, until_s: float, dice: Random) -> Iterator[Mishap]:
    at_s = 0.0
    while churn.session_s is not None:
        at_s += dice.expovariate(1.0 / churn.session_s)
        kind = dice.random()
        if at_s > until_s:
            return
        if kind < churn.announced:
            yield Mishap(max(0.0, at_s - churn.notice_s), index, "notice")
        yield Mishap(at_s, index, "silence" if kind > (1.0 + churn.announced) / 2 else "reset")
        at_s += dice.uniform(*churn.away_s)
        yield Mishap(at_s, index, "back")


def _slow_times(churn: Churn, index: int, until_s: float, dice: Random) -> Iterator[Mishap]:
    at_s = 0.0
    while churn.slow_every_s is not None:
        at_s += dice.expovariate(1.0 / churn.slow_every_s)
        if at_s > until_s:
            return
        yield Mishap(at_s, index, "slow")
        at_s += dice.uniform(*churn.slow_for_s)
        yield Mishap(at_s, index, "recover")
