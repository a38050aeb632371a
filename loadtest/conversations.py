"""Calls that share what they begin with, as they come over the wire: who asks what and when, and how it went.

Conversations arrive independently of how they are served; within one, the next turn comes some time after the answer
and carries everything said so far, the answer as it was received. Prompts are made of the simulated worker's own words,
one token each. Answers depend on the prompt alone, so every router is sent the same calls.
"""

from __future__ import annotations

import asyncio
import json
import time
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Literal

import httpx2
from msgspec import Struct

from loadtest.sample import OK, StreamTally
from loadtest.simworker.tokenizer import WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadtest.proxies import Running

WorkloadName = Literal["chat", "little"]

_SYSTEM_PROMPTS = 8
_SYSTEM_TOKENS = 800
_THINKING_S = 1.5
_SPOKEN = tuple(word.decode() for word in WORDS if word.isascii())
_DRAWN_FOR_MEAN = 1000


class Turn(Struct, frozen=True):
    text: str
    tokens: int
    """Of the text."""
    max_tokens: int
    pause_s: float
    """Between the answer before and this turn."""


class Conversation(Struct, frozen=True):
    start_s: float
    system: str
    """Shared with other conversations; empty: there is none."""
    turns: tuple[Turn, ...]

    @property
    def new_tokens(self) -> int:
        """What must be read of it even if every prefix is found again."""
        return sum(turn.tokens for turn in self.turns)


class Call(Struct, frozen=True):
    """One call as its client saw it."""

    outcome: str
    ttft_s: float | None
    e2e_s: float
    late_s: float = 0.0
    """By how much it was begun too late; the times above count it in."""


def conversations(
    kind: WorkloadName, seed: int, seconds: float, new_tokens_per_s: float
) -> list[Conversation]:
    """Those that begin within `seconds`, so many that their `new_tokens` come at that rate on average."""
    dice = Random(seed)
    systems = [_text(dice, _SYSTEM_TOKENS) for _ in range(_SYSTEM_PROMPTS)] if kind == "chat" else [""]
    weights = [1 / (rank + 1) for rank in range(len(systems))]
    drawn = (_conversation(kind, dice, systems, weights, 0.0) for _ in range(_DRAWN_FOR_MEAN))
    per_s = new_tokens_per_s / fmean(each.new_tokens for each in drawn)
    begun, at_s = [], 0.0
    while (at_s := at_s + dice.expovariate(per_s)) < seconds:
        begun.append(_conversation(kind, dice, systems, weights, at_s))
    return begun


def _conversation(
    kind: WorkloadName, dice: Random, systems: Sequence[str], weights: Sequence[float], start_s: float
) -> Conversation:
    [system] = dice.choices(systems, weights)
    turns = [_turn(dice, 0.0, 5.7 if kind == "chat" else 6.4)]
    while kind == "chat" and len(turns) < 8 and dice.random() < 0.8:  # four turns on average, about
        turns.append(_turn(dice, dice.expovariate(1 / _THINKING_S), 5.7))
    return Conversation(start_s, system, tuple(turns))


def _turn(dice: Random, pause_s: float, log_tokens: float) -> Turn:
    tokens = min(4000, max(16, int(dice.lognormvariate(log_tokens, 0.8))))
    return Turn(_text(dice, tokens), tokens, dice.randint(20, 80), pause_s)


def _text(dice: Random, tokens: int) -> str:
    return "".join(dice.choices(_SPOKEN, k=tokens))


async def hold(
    all_of_them: Sequence[Conversation], target: Running, model: str, timeout_s: float
) -> list[Call]:
    """Hold all conversations with `target`; one that fails ends there. The calls, in the order in which they ended."""
    calls: list[Call] = []
    headers = {"authorization": f"Bearer {target.key}", "content-type": "application/json"}
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(
        base_url=target.url, headers=headers, limits=limits, timeout=None, trust_env=False
    ) as client:
        begun_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for each in all_of_them:
                group.create_task(_hold(each, begun_s + each.start_s, client, model, timeout_s, calls))
    return calls


async def _hold(
    conversation: Conversation,
    due_s: float,
    client: httpx2.AsyncClient,
    model: str,
    timeout_s: float,
    calls: list[Call],
) -> None:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    messages = list(system)
    for turn in conversation.turns:
        due_s += turn.pause_s
        await asyncio.sleep(due_s - time.perf_counter())
        messages.append({"role": "user", "content": turn.text})
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": turn.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        call, answer = await _ask(client, json.dumps(body).encode(), due_s, timeout_s)
        calls.append(call)
        if call.outcome != OK:
            return
        messages.append({"role": "assistant", "content": answer})
        due_s = time.perf_counter()


async def _ask(client: httpx2.AsyncClient, body: bytes, due_s: float, timeout_s: float) -> tuple[Call, str]:
    """Make one call; its times count from when it was due."""
    tally, pieces = StreamTally(), []
    late_s = time.perf_counter() - due_s
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("POST", "/chat/completions", content=body) as reply,
        ):
            async for piece in reply.aiter_bytes():
                pieces.append(piece)
                if reply.status_code == 200:
                    tally.feed(piece, time.perf_counter() - due_s)
        outcome = tally.outcome if reply.status_code == 200 else f"status_{reply.status_code}"
    except TimeoutError:
        outcome = "timeout"
    except httpx2.TransportError as error:
        outcome = type(error).__name__
    call = Call(outcome, tally.first_token_s, time.perf_counter() - due_s, late_s)
    return call, _content(b"".join(pieces)) if outcome == OK else ""


def _content(stream: bytes) -> str:
    """The text of a whole stream."""
    events = [line[5:].strip() for line in stream.splitlines() if line.startswith(b"data:")]
    choices = [
        choice for event in events if event != b"[DONE]" for choice in json.loads(event).get("choices", ())
    ]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
