"""What befalls workers in a chaos run: a schedule that a seed decides, and the hand that carries it out.

At any moment some workers are left alone, so that every call could be answered, whatever happens to the others. Only the
gateway under test is told beforehand of what operators announce (drain, preempt); others see such a worker go.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Literal, Self, get_args

import httpx2
from msgspec import Struct

from loadtest.process import WorkerProcess, worker_process
from loadtest.proxies import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["kill", "stall", "slow", "restart", "drain", "preempt", "half"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS: dict[Kind, str] = {
    "kill": "kill -9, and started again later",
    "stall": "SIGSTOP: connections stay open, nothing is answered; SIGCONT later",
    "slow": "ten times as slow for those calls that come meanwhile",
    "restart": "SIGTERM as vLLM takes it: open streams hang in silence; started again later",
    "drain": "an operator drains it, then it is killed",
    "preempt": "it gives notice, then it is killed",
    "half": "half of all workers killed in the same moment",
}
SLOWNESS = 10.0
_WARM_UP_S = 1.0
LEFT_ALONE = 2
_PATIENCE_S = 60.0
_STARTS_S = 6.0
"""Until a worker that is back gets calls again: it is found by a health check, and probed."""


class Mishap(Struct, frozen=True):
    at_s: float
    kind: Kind
    workers: tuple[int, ...]
    for_s: float
    """Until it is over, and the worker as before."""


def schedule(
    seed: int, seconds: float, workers: int, every_s: float, kinds: Sequence[Kind] = KINDS
) -> list[Mishap]:
    """All kinds in turn, in an order that changes; nobody is struck twice at a time, and two at least are left alone."""
    dice = Random(seed)
    busy_until_s = [0.0] * workers
    found: list[Mishap] = []
    at_s = _WARM_UP_S
    turn: list[Kind] = []
    while True:
        turn = turn or dice.sample(list(kinds), len(kinds))
        kind = turn.pop()
        wanted = workers // 2 if kind == "half" else 1
        # Where too few would be left alone, it is waited for those that come back.
        at_s = max(at_s, sorted(busy_until_s)[wanted + LEFT_ALONE - 1])
        if at_s >= seconds:
            return found
        free = [number for number, until_s in enumerate(busy_until_s) if until_s <= at_s]
        for_s = dice.uniform(1.0, 2.5) * every_s
        struck = tuple(sorted(dice.sample(free, wanted)))
        for number in struck:
            busy_until_s[number] = at_s + for_s + _STARTS_S
        found.append(Mishap(at_s, kind, struck, for_s))
        at_s += dice.uniform(0.5, 1.5) * every_s


class Workers:
    """Worker processes, each at a port of its own that it comes back to."""

    def __init__(self, number: int, options: dict[str, object]) -> None:
        self._options = options
        self._ports = [free_port() for _ in range(number)]
        self._stacks = [AsyncExitStack() for _ in range(number)]
        self._running: list[WorkerProcess | None] = [None] * number

    async def __aenter__(self) -> Self:
        try:
            for number in range(len(self._ports)):  # all at once would be too much for a small machine
                await self.start(number)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for number in range(len(self._ports)):
            await self.kill(number)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"http://127.0.0.1:{port}" for port in self._ports)

    def name(self, number: int) -> str:
        """As Tidegate calls it where nobody has given it one."""
        return f"127.0.0.1:{self._ports[number]}"

    def __getitem__(self, number: int) -> WorkerProcess:
        process = self._running[number]
        if process is None:
            raise LookupError(f"worker {number} does not run")
        return process

    async def start(self, number: int) -> None:
        process = worker_process(port=self._ports[number], **self._options)
        self._running[number] = await self._stacks[number].enter_async_context(process)

    async def kill(self, number: int) -> None:
        process, self._running[number] = self._running[number], None
        if process is not None:
            process.kill()
        await self._stacks[number].aclose()


class Hand:
    """Carries a schedule out on workers."""

    def __init__(self, workers: Workers, admin_url: str | None, key: str) -> None:
        """`admin_url` is that of a gateway that takes notice of what is announced, and `key` its master key."""
        self._workers = workers
        self._whole_from_s = [0.0] * len(workers.urls)
        """When each can be taken for one that serves; infinite while it is struck."""
        self.carried_out: list[Mishap] = []
        self.waited_s = 0.0
        """For workers to be back, before the next mishap could come: on a slow machine they are slow."""
        self.left_out: list[Mishap] = []
        """For which not enough came back."""
        self.is_done = False
        """Whether all have come."""
        self._admin_url = admin_url
        self._http = httpx2.AsyncClient(
            headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    async def carry_out(self, mishaps: Sequence[Mishap]) -> None:
        """All of them, in their order, whatever the gateway: where too few would be left alone, it is waited. Returns when the
        last is over.
        """
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        try:
            async with asyncio.TaskGroup() as group:
                for mishap in mishaps:
                    await asyncio.sleep(begun_s + self.waited_s + mishap.at_s - loop.time())
                    due_s = loop.time()
                    while not self._may_strike(mishap) and loop.time() - due_s < _PATIENCE_S:  # noqa: ASYNC110 - time alone makes it true
                        await asyncio.sleep(0.05)
                    self.waited_s += loop.time() - due_s
                    if self._may_strike(mishap):
                        self.carried_out.append(mishap)
                        for number in mishap.workers:
                            self._whole_from_s[number] = math.inf
                        group.create_task(self._strike(mishap))
                    else:
                        self.left_out.append(mishap)
                self.is_done = True
        finally:
            self.is_done = True

    def _may_strike(self, mishap: Mishap) -> bool:
        now_s = asyncio.get_running_loop().time()
        whole = {number for number, from_s in enumerate(self._whole_from_s) if from_s <= now_s}
        return whole.issuperset(mishap.workers) and len(whole) - len(mishap.workers) >= LEFT_ALONE

    async def _strike(self, mishap: Mishap) -> None:
        await self._do(mishap)
        for number in mishap.workers:
            self._whole_from_s[number] = asyncio.get_running_loop().time() + _STARTS_S

    async def _do(self, mishap: Mishap) -> None:
        workers, (first, *_) = self._workers, mishap.workers
        match mishap.kind:
            case "kill" | "half":
                await asyncio.gather(*(workers.kill(number) for number in mishap.workers))
                await asyncio.sleep(mishap.for_s)
                for number in mishap.workers:
                    await workers.start(number)
            case "stall":
                workers[first].stop()
                await asyncio.sleep(mishap.for_s)
                workers[first].resume()
            case "slow":
                await self._order(first, [{"kind": "slow", "factor": SLOWNESS}])
                await asyncio.sleep(mishap.for_s)
                await self._order(first, [])
            case "restart":
                workers[first].terminate()
                await asyncio.sleep(mishap.for_s)
                await workers.kill(first)
                await workers.start(first)
            case "drain" | "preempt":
                await self._leave(first, mishap)

    async def _leave(self, number: int, mishap: Mishap) -> None:
        notice_s = mishap.for_s / 2
        field = "within_s" if mishap.kind == "drain" else "in_s"
        await self._announce("POST", number, mishap.kind, {field: notice_s})
        await asyncio.sleep(notice_s)
        await self._workers.kill(number)
        await asyncio.sleep(notice_s)
        await self._workers.start(number)
        await self._announce("DELETE", number, "drain")

    async def _announce(
        self, method: str, number: int, what: str, body: dict[str, float] | None = None
    ) -> None:
        if self._admin_url is not None:
            url = f"{self._admin_url}/admin/nodes/{self._workers.name(number)}/{what}"
            (await self._http.request(method, url, json=body)).raise_for_status()

    async def _order(self, number: int, faults: list[dict[str, object]]) -> None:
        (await self._http.post(f"{self._workers.urls[number]}/faults", json=faults)).raise_for_status()
