"""How a fleet of gateways grows beyond one machine: what each part was measured to take, multiplied.

N processes share C calls a second over E endpoints. Of its core each of them spends

    C / N calls            x  what a call takes of a gateway with eight endpoints
    C / N plans            x  what a plan over E takes more than one over the fewest measured
    B batches a second     x  what it takes to say one, with  s  endpoints
    B (N - 1) batches      x  what it takes to hear one, with  s  endpoints and  C / B N  prompts

where B is twenty, and fewer among many (`gateway.gossip.pause_s`), and s how many endpoints a process speaks of in a batch:
those at which one of its calls has begun, had its first token or ended since the last one, by chance
E (1 - exp(-3 C / B N E)), and each of them once a second at least. All processes hear of all prompts, however many there are:
that is what adding processes does not make less. Shared by all are

    the ledger             C rows a second, one transaction at a time
    Redis                  2 N exchanges of the accounts that were used since, and B N batches passed on to N - 1 others

A part is full when it is used up to a level; the first to be so is the bottleneck. What the model leaves out: the network,
load balancers, PostgreSQL's disk when its data outgrow memory, and the endpoints themselves.
"""

from __future__ import annotations

from math import ceil, exp
from typing import TYPE_CHECKING

from msgspec import Struct

from gateway.gossip import pause_s

if TYPE_CHECKING:
    from collections.abc import Mapping

EXCHANGES_PER_S = 2
FULL = 0.7
"""Of a core, or of what a database takes: beyond it calls wait for each other."""
MOST_PROCESSES = 4096
WORTH_IT = 0.9
MOST_CALLS_PER_S = 1e6
_KINDS = 3
"""Accounts of a tenant: requests, tokens, money."""


class Costs(Struct, frozen=True):
    """What each part was measured to take, in microseconds of processor time."""

    call_us: float
    plan_us: Mapping[int, float]
    """By endpoints."""
    said_us: float
    """Gossip: for an endpoint spoken of."""
    standing_us: float
    prompt_us: float
    """And for an endpoint and a prompt heard of."""
    rows_per_s: float
    """That the ledger takes, from several writers."""
    exchange_us: float
    account_us: float
    """Redis: for an exchange, and for each account in it."""
    batch_us: float
    listener_us: float
    """Redis: for a batch, and for each that it is passed on to."""


class Use(Struct, frozen=True):
    """What is used of each part, 1 being all of it."""

    processes: int
    gateway: float
    routing: float
    gossip: float
    """These three of the core that each process has."""
    redis: float
    """Of the one core that Redis uses."""
    ledger: float

    @property
    def core(self) -> float:
        return self.gateway + self.routing + self.gossip


class Row(Struct, frozen=True):
    """So many calls a second over so many endpoints."""

    calls_per_s: float
    endpoints: int
    use: Use
    """With as few processes as can serve them; where none can, with as many as are still worth it."""

    @property
    def parts(self) -> dict[str, float]:
        """What is used of each, the most used first. The CPU of processes is no bound by itself: there can be more of them."""
        use = self.use
        parts = {
            "gateway CPU": use.gateway,
            "routing CPU": use.routing,
            "gossip CPU": use.gossip,
            "Redis": use.redis,
            "ledger rows": use.ledger,
        }
        return dict(sorted(parts.items(), key=lambda part: -part[1]))

    @property
    def too_small(self) -> list[str]:
        """Parts that cannot do it; of a core that is too small, what takes most of it whatever the number of processes."""
        found = {"Redis": self.use.redis, "ledger rows": self.use.ledger, "gossip CPU": self.use.core}
        return [part for part, used in found.items() if used > FULL]


def use(costs: Costs, calls_per_s: float, endpoints: int, processes: int, tenants: int) -> Use:
    others, each = processes - 1, calls_per_s / processes
    batches_per_s = 1 / pause_s(others)
    changes, again = 3 * each / endpoints, min(1.0, each / endpoints)
    spoken = endpoints * max(1 - exp(-changes / batches_per_s), again / batches_per_s)
    heard_us = spoken * costs.standing_us + each / batches_per_s * costs.prompt_us
    gossip_us = batches_per_s * (spoken * costs.said_us + others * heard_us) if others else 0.0
    used = tenants * _KINDS * (1 - exp(-each / EXCHANGES_PER_S / tenants))
    redis_us = processes * EXCHANGES_PER_S * (costs.exchange_us + used * costs.account_us)
    if others:
        redis_us += processes * batches_per_s * (costs.batch_us + others * costs.listener_us)
    fewest = min(costs.plan_us)
    return Use(
        processes=processes,
        gateway=each * costs.call_us / 1e6,
        routing=each * max(0.0, costs.plan_us[endpoints] - costs.plan_us[fewest]) / 1e6,
        gossip=gossip_us / 1e6,
        redis=redis_us / 1e6,
        ledger=calls_per_s / costs.rows_per_s,
    )


def row(costs: Costs, calls_per_s: float, endpoints: int, tenants: int) -> Row:
    """With the fewest processes that can serve them."""
    processes = max(1, ceil(calls_per_s * costs.call_us / 1e6 / FULL))
    best = use(costs, calls_per_s, endpoints, processes, tenants)
    while best.core > FULL and processes < MOST_PROCESSES:
        processes = ceil(processes * 1.02)
        found = use(costs, calls_per_s, endpoints, processes, tenants)
        if found.core <= FULL or found.core < WORTH_IT * best.core:
            best = found
    return Row(calls_per_s, endpoints, best)


def full_at(costs: Costs, endpoints: int, tenants: int) -> dict[str, float]:
    """As calls grow and processes are added, the calls a second at which each part is too small, the first first."""
    found: dict[str, float] = {}
    calls_per_s = 100.0
    while calls_per_s < MOST_CALLS_PER_S and len(found) < 3:
        for part in row(costs, calls_per_s, endpoints, tenants).too_small:
            found.setdefault(part, calls_per_s)
        calls_per_s *= 1.02
    return found
