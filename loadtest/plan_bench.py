"""Microseconds per plan, because the plan is made on every call: `python -m loadtest.plan_bench`.

The pool is unequal and loaded, as in production: equal idle endpoints would all tie. Making the loads from what has
been learned is part of every plan and is timed with it in the second column.
"""

from __future__ import annotations

import argparse
import random
from timeit import repeat
from typing import TYPE_CHECKING

from msgspec import structs

from routing.estimate import prefill_work
from routing.pipeline import plan
from routing.pool import Pool
from routing.prefix import pieces_of
from routing.speed import Speed
from routing.types import Call, Demands, Endpoint, Price, Tier

if TYPE_CHECKING:
    from collections.abc import Callable

    from routing.types import Load

TIER = Tier(name="default", max_ttft_s=5.0, waiting_nano_usd_per_s=4e9 / 3600)
DEMANDS = Demands(max_ttft_s=30.0, min_tokens_per_s=1.0, regions=frozenset({"eu-west", "us-east"}))
GPUS = ("h100", "a100", "rtx-4090", "l4")
TARGETS_US = {8: 20, 64: 60, 256: 150}


def pool(size: int, dice: random.Random) -> list[tuple[Endpoint, Speed]]:
    """`size` endpoints with some calls running on each."""
    members = []
    for index in range(size):
        gpu = dice.choice(GPUS)
        cost = Price(
            input_pico_usd=dice.randint(10_000, 60_000), output_pico_usd=dice.randint(20_000, 90_000)
        )
        endpoint = Endpoint(
            name=f"node-{index}",
            model="m",
            served_model="m",
            gpu=gpu,
            region="eu-west",
            context_tokens=131_072,
            cost=cost,
        )
        speed = Speed(gpu)
        for start in range(8):
            ticket = speed.start(start * 0.1, prefill_work(dice.randint(100, 8000)))
            if start % 2:
                speed.first_token(ticket, start * 0.1 + 0.3)
        members.append((endpoint, speed))
    return members


def snapshot(members: list[tuple[Endpoint, Speed]]) -> list[tuple[Endpoint, Load]]:
    return [(endpoint, speed.load(1.2, 8)) for endpoint, speed in members]


def holding(members: list[tuple[Endpoint, Speed]], prompt: bytes, dice: random.Random) -> Pool:
    """A pool of the same endpoints, half of which have been sent some of `prompt`."""
    known = Pool()
    for endpoint, _ in members:
        standing = known.add(endpoint)
        for start in range(8):
            run = standing.begin(Call("m", TIER, dice.randint(100, 8000)), start * 0.1)
            if start % 2:
                run.first_token(start * 0.1 + 0.3)
        if dice.random() < 0.5:
            known.prefixes.place(standing.place, pieces_of(prompt[: dice.randrange(len(prompt))]))
    return known


def best_us(run: Callable[[], object]) -> float:
    """The least of several runs: what the code takes when nothing else disturbs the machine."""
    number = 100
    return min(repeat(run, number=number, repeat=15)) / number * 1e6


def whole(known: Pool, call: Call, prompt: bytes) -> Callable[[], object]:
    """From a prompt to a plan."""
    return lambda: known.plan(structs.replace(call, pieces=pieces_of(prompt)), 1.2, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192, help="length of the prompt")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    call = Call(model="m", tier=TIER, prompt_tokens=args.tokens, max_tokens=512)
    demanding = Call(model="m", tier=TIER, prompt_tokens=args.tokens, max_tokens=512, demands=DEMANDS)
    prompt = random.Random(args.seed).randbytes(4 * args.tokens)
    columns = ("endpoints", "plan", "+ loads", "demands", "whole", "target")
    print(" ".join(f"{column:>9}" for column in columns), "  us, best of 15")
    for size, target_us in TARGETS_US.items():
        members = pool(size, random.Random(args.seed))
        ready = snapshot(members)
        figures = (
            best_us(lambda ready=ready: plan(call, ready, 0.5)),  # type: ignore[misc]
            best_us(lambda members=members: plan(call, snapshot(members), 0.5)),  # type: ignore[misc]
            best_us(lambda ready=ready: plan(demanding, ready, 0.5)),  # type: ignore[misc]
            best_us(whole(holding(members, prompt, random.Random(args.seed)), call, prompt)),
        )
        print(f"{size:>9} " + " ".join(f"{figure:>9.1f}" for figure in figures) + f" {target_us:>9}")


if __name__ == "__main__":
    main()
