"""GET /admin/fleet: every endpoint as the gateway knows it now, hosted ones too, and what it has done of late."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Self

from fastapi import APIRouter
from pydantic import BaseModel, Field

from gateway.admin_nodes import State, state_of
from gateway.beside import place_of
from gateway.node_history import DAY_MS, HOUR_MS, LOOK_BACK_MS, History, history
from gateway.output import iso
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from backends.member import Member
    from gateway.beside import Beside, Told
    from gateway.nodes import Nodes
    from gateway.store import Store
    from gateway.usage_totals import Measures

FRESH_S = 0.9
"""For so long what has been looked up is shown to others as well."""
WORK_FRESH_S = 5.0
"""The same of what the database says."""


class DoneShown(BaseModel):
    """What an endpoint has done within the last day, as far as it is in the database."""

    calls: int
    errors: int
    tokens: int = Field(description="Read and written.")
    cached_tokens: int
    earned_nano_usd: int = Field(description="What it has earned, or a provider is owed.")
    wasted_tokens: int


class EndpointShown(BaseModel):
    name: str
    model: str
    served_model: str
    kind: str = Field(description="`worker`, `openai` or `litellm`.")
    source: str = Field(description="`config`, `registered`, or the discovery that has found it.")
    state: State
    reason: str | None = Field(description="Why it gets no calls now.")
    gpu: str | None
    region: str | None
    trust: str
    context_tokens: int | None
    inflight: int = Field(description="Calls there now, those of others included as far as it tells.")
    decoding: int
    waiting: int | None = Field(description="Calls that wait there, as it says.")
    prefill_tokens_per_s: float = Field(description="As learned, like all speeds.")
    decode_tokens_per_s: float | None = Field(description="Of one stream.")
    base_ttft_ms: float
    busy: float = Field(description="Share of its time that reading prompts takes, 0 to 1.")
    kv_usage: float | None = Field(description="Share of its KV cache that calls under way hold, 0 to 1.")
    kv_tokens: int | None
    cache_hits: float | None = Field(
        description="Of the prompt tokens that it has looked up in its prefix cache, the share it found."
    )
    attempts: dict[str, int] = Field(description="Ended since the gateway's start, by outcome.")
    ejections: int
    leaves_in_s: float | None
    lease_left_s: float | None
    done: DoneShown | None = Field(description="Null: nothing, or the database is away.")
    history: History | None = Field(description="Of a node that has registered, how long it stays.")

    @classmethod
    def of(cls, member: Member, now_s: float, nodes: Nodes, past: Past) -> Self:
        endpoint, load = member.endpoint, member.load(now_s)
        scraped = member.scraped if member.scraped is not None and member.scraped.fresh(now_s) else None
        node = nodes.find(endpoint.name) if member.source == "registered" else None
        departs_s = member.departs_s
        looked_up = scraped.queried_tokens if scraped else 0
        return cls(
            name=endpoint.name,
            model=endpoint.model,
            served_model=endpoint.served_model,
            kind=endpoint.kind,
            source=member.source,
            state=state_of(member, now_s),
            reason=load.unavailable,
            gpu=endpoint.gpu,
            region=endpoint.region,
            trust=endpoint.trust.name.lower(),
            context_tokens=endpoint.context_tokens,
            inflight=load.inflight,
            decoding=load.decoding,
            waiting=scraped.waiting if scraped else None,
            prefill_tokens_per_s=round(load.work_per_s, 1),
            decode_tokens_per_s=round(1 / load.itl_s, 1) if load.itl_s > 0 else None,
            base_ttft_ms=round(load.base_ttft_s * 1000, 1),
            busy=round(load.busy, 3),
            kv_usage=round(scraped.kv_usage, 3) if scraped else None,
            kv_tokens=scraped.kv_tokens if scraped else None,
            cache_hits=round(scraped.hit_tokens / looked_up, 3) if scraped and looked_up else None,
            attempts=dict(member.attempts),
            ejections=member.ejection.ejections,
            leaves_in_s=None if departs_s is None else round(departs_s - now_s, 1),
            lease_left_s=None if node is None else round(node.lease_until_s - now_s, 1),
            done=past.done.get((endpoint.name, endpoint.model)),
            history=past.histories.get(endpoint.name),
        )


class FleetShown(BaseModel):
    at: str
    processes: int = Field(description="Of this gateway; what is said is of all of them.")
    running: int = Field(description="Calls under way at this gateway.")
    endpoints: list[EndpointShown]


class Past(BaseModel):
    """What the database knows of endpoints."""

    done: dict[tuple[str, str], DoneShown] = {}
    histories: dict[str, History] = {}


class FleetBoard:
    """What many may look at, looked up no more often than it changes."""

    def __init__(self, nodes: Nodes, store: Store, beside: Beside) -> None:
        self.beside = beside
        self._nodes = nodes
        self._store = store
        self._shown: FleetShown | None = None
        self._until_s = 0.0
        self._past = Past()
        self._past_until_s = 0.0

    async def look(self) -> FleetShown:
        now_s = time.monotonic()
        if now_s >= self._past_until_s:
            self._past_until_s = now_s + WORK_FRESH_S
            self._past = await self._read_past()
            now_s = time.monotonic()
        if self._shown is None or now_s >= self._until_s:
            self._until_s = now_s + FRESH_S
            self._shown = self._look(now_s, await self.beside.stand())
        return self._shown

    def _look(self, now_s: float, others: list[Told]) -> FleetShown:
        endpoints = []
        for member in self._nodes.everywhere():
            shown = EndpointShown.of(member, now_s, self._nodes, self._past)
            for load in (told.loads.get(place_of(member)) for told in others):
                if load is not None:
                    shown.attempts = dict(Counter(shown.attempts) + Counter(load.attempts))
                    shown.ejections += load.ejections
            endpoints.append(shown)
        return FleetShown(
            at=iso(time.time_ns() // 1_000_000),
            processes=1 + len(others),
            running=self.beside.running_here() + sum(told.running for told in others),
            endpoints=endpoints,
        )

    async def _read_past(self) -> Past:
        now_ms = time.time_ns() // 1_000_000
        # Sums are kept by the hour.
        since_ms = (now_ms - DAY_MS) // HOUR_MS * HOUR_MS
        question = Question(since_ms, now_ms + HOUR_MS, ("endpoint", "model"))
        totals = await asyncio.to_thread(self._store.usage, question)
        stays = await self._nodes.sessions(now_ms - LOOK_BACK_MS)
        return Past(
            done={(each.group[0], each.group[1]): _done(each.sums) for each in totals},
            histories={name: history(sessions, now_ms) for name, sessions in stays.items()},
        )


def _done(sums: Measures) -> DoneShown:
    return DoneShown(
        calls=sums.calls + sums.helped_calls,
        errors=sums.errors,
        tokens=sums.prompt_tokens + sums.completion_tokens,
        cached_tokens=sums.cached_tokens,
        earned_nano_usd=sums.cost_nano_usd,
        wasted_tokens=sums.wasted_tokens,
    )


def fleet_routes(board: FleetBoard) -> APIRouter:
    """To be mounted where only administrators are let in."""
    routes = APIRouter(prefix="/fleet")

    @routes.get("")
    async def fleet() -> FleetShown:
        """Every endpoint, hosted ones too: its state, the speed learned, its load and cache, and what it has done."""
        return await board.look()

    return routes
