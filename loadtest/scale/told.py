"""What processes of gateways tell each other: bytes, datagrams and processor time, by how many they are.

Each of them has a pool of the same endpoints and its share of the calls; what they say goes through the gateway's own
`Exchange`, over a link that counts. Time is a clock of its own: twenty rounds a second, as the gateway has them.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs

from gateway.gossip import EVERY_S, Exchange
from loadtest.plan_bench import TIER
from loadtest.scale.routed import CALL_S, OWN_PIECES, SYSTEM_PIECES
from routing.gossip import Batch, Gossip
from routing.pool import Pool
from routing.prefix import PIECE_TOKENS
from routing.types import Call, Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from routing.run import Run

WARM_UP_S = 1.5
"""So long it takes until what goes on is said again."""
_WORKER = "http://10.{}.{}.{}:8000"


class Told(Struct, frozen=True):
    """One of so many processes, as it talks and listens."""

    processes: int
    endpoints: int
    calls_per_s: float
    """Of all of them together."""
    batches_per_s: float
    batch_bytes: float
    standings_per_batch: float
    prompts_per_s: float
    """That it tells of."""
    out_bytes_per_s: float
    """Once for each of the others by datagrams, once in all by Redis."""
    in_per_s: float
    in_bytes_per_s: float
    saying_us: float
    """Processor time of a batch, encoding included."""
    standing_us: float
    """Of an endpoint that is heard of."""
    prompt_us: float
    """Of a prompt that is heard of."""
    core_share: float
    """Of one process, for talking and for listening."""


class _Counted:
    """A link that keeps what is sent."""

    def __init__(self, others: int) -> None:
        self._others = others
        self.sent: list[bytes] = []

    async def send(self, message: bytes) -> int:
        self.sent.append(message)
        return self._others

    @asynccontextmanager
    async def receiving(self, take: Callable[[bytes], None]) -> AsyncIterator[None]:
        del take
        yield


class _Teller:
    """A process with its share of the calls."""

    def __init__(self, number: int, processes: int, endpoints: int, clock: Callable[[], float]) -> None:
        self.link = _Counted(processes - 1)
        self._pool = Pool()
        self._under_way: list[tuple[float, Run]] = []
        for place in range(endpoints):
            url = _WORKER.format(place >> 16, place >> 8 & 255, place & 255)
            self._pool.add(Endpoint(name=f"node-{place}", model="m", served_model="m", gpu="h100", url=url))
        self._standings = list(self._pool)
        self.exchange = Exchange(Gossip(f"process-{number}", lambda: [self._pool]), clock)

    def work(self, calls: int, now_s: float, dice: random.Random) -> None:
        """So many calls come in; those there are have a first token, or end."""
        going = []
        for ends_s, run in self._under_way:
            if run.first_s is None:
                run.first_token(now_s)
            if ends_s <= now_s:
                run.ended(now_s, 60)
            else:
                going.append((ends_s, run))
        self._under_way = going
        for _ in range(calls):
            pieces = tuple(dice.getrandbits(64) for _ in range(SYSTEM_PIECES + OWN_PIECES))
            call = Call("m", TIER, len(pieces) * PIECE_TOKENS, pieces=pieces)
            run = dice.choice(self._standings).begin(call, now_s)
            going.append((now_s + dice.uniform(0.5, 1.5) * CALL_S, run))
        self._pool.snapshot(now_s)


def told(processes: int, endpoints: int, calls_per_s: float, seconds: float = 1.0, seed: int = 1) -> Told:
    return asyncio.run(_told(processes, endpoints, calls_per_s, seconds, random.Random(seed)))


async def _told(
    processes: int, endpoints: int, calls_per_s: float, seconds: float, dice: random.Random
) -> Told:
    now_s = 0.0
    tellers = [_Teller(number, processes, endpoints, lambda: now_s) for number in range(processes)]
    seen, owed, share = _Tally(), [dice.random() for _ in tellers], calls_per_s / processes * EVERY_S
    before, rounds = round(WARM_UP_S / EVERY_S), round(seconds / EVERY_S)
    for number_of_round in range(before + rounds):
        now_s = number_of_round * EVERY_S
        watched = number_of_round >= before
        for number, teller in enumerate(tellers):
            owed[number] += share
            teller.work(int(owed[number]), now_s, dice)
            owed[number] %= 1.0
            begun_ns = time.thread_time_ns()
            await teller.exchange.round(teller.link, now_s)
            took_ns = time.thread_time_ns() - begun_ns
            for message in teller.link.sent:
                if number:
                    seen.heard(tellers[0].exchange, message, watched=watched)
                elif watched:
                    seen.said(message, took_ns)
            teller.link.sent.clear()
    return seen.result(processes, endpoints, calls_per_s, seconds)


class _Tally:
    """What the first of them said, and what it heard."""

    def __init__(self) -> None:
        self._out = self._out_bytes = self._out_standings = self._out_prompts = self._saying_ns = 0
        self._in = self._in_bytes = self._in_standings = self._in_prompts = 0
        self._standings_ns = self._prompts_ns = 0

    def said(self, message: bytes, took_ns: int) -> None:
        batch = msgspec.msgpack.decode(message, type=Batch)
        self._out += 1
        self._out_bytes += len(message)
        self._out_standings += len(batch.standings)
        self._out_prompts += len(batch.placed)
        self._saying_ns += took_ns

    def heard(self, by: Exchange, message: bytes, *, watched: bool) -> None:
        """Endpoints and prompts one after the other, as two batches: so it is seen what each of them takes."""
        batch = msgspec.msgpack.decode(message, type=Batch)
        encode = msgspec.msgpack.encode
        standings = encode(structs.replace(batch, number=2 * batch.number, placed=[]))
        prompts = encode(structs.replace(batch, number=2 * batch.number + 1, standings=[]))
        begun_ns = time.thread_time_ns()
        by.take(standings)
        between_ns = time.thread_time_ns()
        by.take(prompts)
        ended_ns = time.thread_time_ns()
        if watched:
            self._in += 1
            self._in_bytes += len(message)
            self._in_standings += len(batch.standings)
            self._in_prompts += len(batch.placed)
            self._standings_ns += between_ns - begun_ns
            self._prompts_ns += ended_ns - between_ns

    def result(self, processes: int, endpoints: int, calls_per_s: float, seconds: float) -> Told:
        all_ns = self._saying_ns + self._standings_ns + self._prompts_ns
        return Told(
            processes=processes,
            endpoints=endpoints,
            calls_per_s=calls_per_s,
            batches_per_s=self._out / seconds,
            batch_bytes=self._out_bytes / max(1, self._out),
            standings_per_batch=self._out_standings / max(1, self._out),
            prompts_per_s=self._out_prompts / seconds,
            out_bytes_per_s=self._out_bytes / seconds,
            in_per_s=self._in / seconds,
            in_bytes_per_s=self._in_bytes / seconds,
            saying_us=self._saying_ns / max(1, self._out) / 1e3,
            standing_us=self._standings_ns / max(1, self._in_standings) / 1e3,
            prompt_us=self._prompts_ns / max(1, self._in_prompts) / 1e3,
            core_share=all_ns / 1e9 / seconds,
        )
