"""The clients of an endurance run: several tenants, and what each of them may be refused.

A client chats: turn after turn on what was said before, streams and whole replies, now and then an embedding, and sometimes it
leaves before it has all of an answer. Half of the clients keep their connection from call to call. None tries a call again that
has failed: it would hide what is to be seen. One that is refused for its tenant's limits comes back when it has been told to.
"""

from __future__ import annotations

import asyncio
import time
from random import Random
from typing import TYPE_CHECKING, Any

from msgspec import Struct, structs

from loadtest.reckoning import Called
from loadtest.sample import OK
from loadtest.witness import Line, Question, ask, compared, question

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtest.witness import Reply, Seen

MODEL = "sim"
LEFT = "left"
REFUSED = "refused"
_LONGEST_PAUSE_S = 5.0
_LEAVES = 0.03
_EMBEDS = 0.1
_TURNS = 3


class Tenant(Struct, frozen=True):
    name: str
    part: float
    """Of the clients."""
    policy: dict[str, Any]
    right: frozenset[str] = frozenset()
    """By which codes its calls may rightly be refused, each with status 429."""


def tenants(budget_usd: float) -> tuple[Tenant, ...]:
    """`budget_usd` is what the last may spend, and does."""
    ample = {"requests_per_min": 60_000, "tokens_per_min": 100_000_000, "concurrency": 500}
    return (
        Tenant("ample", 0.4, {**ample, "budgets": {"day": 1000, "month": 10_000}}),
        Tenant("plain", 0.3, {}),
        Tenant("brisk", 0.1, {"requests_per_min": 30}, frozenset({"rate_limit_exceeded"})),
        Tenant(
            "spent",
            0.2,
            {"concurrency": 100, "budgets": {"total": budget_usd}},
            frozenset({"insufficient_quota", "budget_held"}),
        ),
    )


class Chat(Struct, frozen=True):
    """Questions that follow each other, each with all before it and their answers."""

    turns: tuple[Question, ...]


async def chats(
    dice: Random, number: int, tokens: tuple[int, int], url: str
) -> tuple[list[Chat], dict[Question, Reply]]:
    """So many, and what the undisturbed worker at `url` says to each question."""
    made: list[Chat] = []
    expected: dict[Question, Reply] = {}
    for _ in range(number):
        turns: tuple[Question, ...] = ()
        for _ in range(_TURNS):
            asked = question(dice, tokens, stream=dice.random() < 0.5)
            if dice.random() < _EMBEDS:
                asked = structs.replace(asked, max_tokens=0, stream=False)
            else:
                before = tuple((each.prompt, expected[each].text) for each in turns if each.max_tokens)
                asked = structs.replace(asked, before=before)
            seen = await ask(f"{url}/v1", "none", MODEL, asked, 60.0)
            if seen.outcome != OK:
                raise RuntimeError(f"an undisturbed worker gave {seen.outcome}")
            expected[asked] = seen.reply
            turns = (*turns, asked)
        made.append(Chat(turns))
    return made, expected


class Clients:
    """All of them, of all tenants."""

    def __init__(
        self, url: str, chats: Sequence[Chat], expected: dict[Question, Reply], *, timeout_s: float, seed: int
    ) -> None:
        self.calls: list[Called] = []
        self.failures: list[str] = []
        """Of calls that were neither answered rightly nor refused rightly: what was seen."""
        self.again = 0
        """Calls sent anew on another connection, since a kept one was closed as they were sent."""
        self._url = url
        self._chats = chats
        self._expected = expected
        self._timeout_s = timeout_s
        self._seed = seed

    async def run(self, tenant: Tenant, key: str, number: int, on: Callable[[], bool]) -> None:
        """One client, for as long as `on` says so."""
        dice = Random(f"{self._seed} {tenant.name} {number}")
        line = Line() if number % 2 else None
        await asyncio.sleep(dice.random())  # not all in step
        count = 0
        try:
            while on():
                for asked in dice.choice(self._chats).turns:
                    count += 1
                    request_id = f"{tenant.name}-{number}-{count}"
                    call = await self._call(tenant, key, asked, dice, line, request_id)
                    self.calls.append(call)
                    if call.seen.outcome not in (OK, LEFT):
                        await asyncio.sleep(_pause_s(call.seen))
                    if not on():
                        return
        finally:
            if line is not None:
                self.again += line.again
                line.close()

    async def _call(
        self, tenant: Tenant, key: str, asked: Question, dice: Random, line: Line | None, request_id: str
    ) -> Called:
        leaves = dice.random() < _LEAVES
        patience_s = dice.uniform(0.05, 1.0) if leaves else self._timeout_s
        began_ms = int(time.time() * 1000)
        seen = await ask(self._url, key, MODEL, asked, patience_s, line=line, request_id=request_id)
        outcome = compared(seen, self._expected[asked])
        if leaves and outcome == "timeout":
            outcome = LEFT
        elif outcome != OK and not (outcome.startswith("status 429") and seen.reply.error in tenant.right):
            failed_ms = int(time.time() * 1000)
            attempts = seen.headers.get("x-tidegate-attempts", "-")
            what = f"{request_id} after {failed_ms - began_ms} ms, {attempts} attempts: {outcome}"
            self.failures.append(f"{what}: {seen.reply.message}" if seen.reply.message else what)
        # What was said is known from the question.
        seen.reply.text = ""
        return Called(tenant.name, request_id, began_ms, structs.replace(seen, outcome=outcome), leaves)


def _pause_s(seen: Seen) -> float:
    """Before the next call of a client that was refused, or whose call has failed."""
    told = seen.headers.get("retry-after", "")
    return min(_LONGEST_PAUSE_S, max(0.5, float(told))) if told.isdecimal() else 1.0
