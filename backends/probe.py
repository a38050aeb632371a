"""What is asked of a worker that joins, before it gets calls: whether it has the model, and whether it answers.

That it accepts connections says little: a server may serve another model, or answer /health while its engine is gone. So
its list of models is read, which tells its context length as well, and it is sent a completion of a single token.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from backends.base import UNREADABLE, AttemptFailed, CallRejected
from backends.worker import Outgoing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backends.member import Member
    from routing.types import Endpoint

log = logging.getLogger(__name__)

ProbeOutcome = Literal["ok", "unreachable", "no_models", "model_missing", "no_answer"]
OUTCOMES: tuple[ProbeOutcome, ...] = get_args(ProbeOutcome)

MODELS_BYTES = 4 * 1_048_576
"""Of a list of models: some servers have hundreds of adapters."""
ANSWER_BYTES = 1_048_576
MOST_NAMED = 5


class Probed(Struct, frozen=True):
    outcome: ProbeOutcome
    detail: str = ""
    context_tokens: int | None = None
    """As it says itself."""


class Card(Struct):
    """A model that a server says it has."""

    id: str
    max_model_len: int | None = None


class _Models(Struct):
    data: list[Card]


class _Completion(Struct):
    choices: Annotated[list[Any], Meta(min_length=1)]


class _Vector(Struct):
    embedding: Any


class _Embedding(Struct):
    data: Annotated[list[_Vector], Meta(min_length=1)]


ASKS: dict[str, tuple[dict[str, Any], Any]] = {
    "/completions": ({"prompt": "Hi", "max_tokens": 1, "temperature": 0}, _Completion),
    "/embeddings": ({"input": "Hi"}, _Embedding),
}
"""By API, what is asked for, and what the answer has to be."""


@asynccontextmanager
async def probing(member: Member, timeout_s: float, answer_s: float) -> AsyncIterator[None]:
    """Probe the member until it passes, for as long as the block runs."""
    name = f"probing {member.endpoint.name}"
    task = asyncio.create_task(_until_passed(member, timeout_s, answer_s), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until_passed(member: Member, timeout_s: float, answer_s: float) -> None:
    said, endpoint = "", member.endpoint
    while True:
        try:
            probed = await probe(member, timeout_s, answer_s)
        except AttemptFailed as failure:
            probed = Probed("unreachable", str(failure))
        pause_s = member.probed(probed, time.monotonic(), random.random())  # noqa: S311 - jitter
        if probed.outcome == "ok":
            log.info("%s of %s is there, and gets calls", endpoint.name, endpoint.model)
            return
        if probed.detail != said:
            said = probed.detail
            log.warning("%s of %s gets no calls yet: %s", endpoint.name, endpoint.model, said)
        await asyncio.sleep(pause_s)


async def probe(member: Member, timeout_s: float, answer_s: float) -> Probed:
    """What the worker is found to be. Raises AttemptFailed where it cannot be asked."""
    status, page = await member.backend.get("/v1/models", timeout_s, MODELS_BYTES)
    if status != 200:
        return Probed("no_models", f"/v1/models answered {status}")
    try:
        cards = models_in(page)
    except UNREADABLE:
        return Probed("no_models", "/v1/models is no list of models")
    wanted = member.endpoint.served_model
    card = next((card for card in cards if card.id == wanted), None)
    if card is None:
        return Probed("model_missing", f"it does not serve {wanted}, but {named(cards)}")
    refusal = ""
    for api in apis(member.endpoint):
        failure = await _ask(member, api, answer_s)
        if failure is None:
            return Probed("ok", context_tokens=card.max_model_len)
        refusal = refusal or f"a completion of one token failed: {failure}"
    return Probed("no_answer", refusal)


def models_in(page: bytes) -> list[Card]:
    """What a list of models says. Raises one of UNREADABLE."""
    return msgspec.json.decode(page, type=_Models).data


def apis(endpoint: Endpoint) -> list[str]:
    """What to try in turn: a model for embeddings completes nothing, and seldom is said to be one."""
    capabilities = endpoint.capabilities
    if capabilities is None:
        return list(ASKS)
    return ["/embeddings" if "embeddings" in capabilities else "/completions"]


async def _ask(member: Member, api: str, answer_s: float) -> str | None:
    """Why it gave no answer; None where it gave one."""
    fields, kind = ASKS[api]
    body = msgspec.json.encode({"model": member.endpoint.served_model, **fields})
    ends_s = time.monotonic() + answer_s
    try:
        async with member.backend.open(
            Outgoing(api, body, "tidegate-probe", stream=False, ends_s=ends_s)
        ) as reply:
            msgspec.json.decode(await reply.read_whole(ANSWER_BYTES), type=kind)
    except (AttemptFailed, CallRejected) as failure:
        return str(failure)
    except UNREADABLE:
        return "the answer is none"
    return None


def named(cards: list[Card]) -> str:
    names = [card.id[:100] for card in cards[:MOST_NAMED]]
    if len(cards) > MOST_NAMED:
        names.append(f"{len(cards) - MOST_NAMED} others")
    return ", ".join(names) or "nothing"
