"""Streams that go on at another worker: a gateway over one that fails and one that does not, and what its clients hear."""

from __future__ import annotations

import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
from failing import ASKED, QUICK, model
from pool import NO_TLS, endpoint, gateway

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pool import Gateway

MODELS = ("llama", "llama-2", "llama-3", "llama-4")
"""The same at the same workers: what is ejected is an endpoint of a model, and nobody wants to wait for it."""
MASTER = "sk-master-0123456789"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
CALL: dict[str, Any] = ASKED | {"max_tokens": 40, "ignore_eos": True, "stream": True}
WITH_USAGE = {"stream_options": {"include_usage": True}}


class Pair:
    """A gateway over a worker that will fail, which is asked first, and one that will not."""

    def __init__(self, gw: Gateway, bad: SimWorker, good: SimWorker) -> None:
        self.gw = gw
        self.bad = bad
        self.good = good

    async def heard(self, path: str = CHAT, **more: Any) -> list[dict[str, Any]]:
        """The events that a client gets; after the last comes [DONE] or an error."""
        return await _events(self.gw, path, self.gw.key, CALL | more)

    async def resumes(self) -> dict[tuple[str, str], float]:
        """How streams went on, by cause and way, over all models."""
        found: dict[tuple[str, str], float] = {}
        for name, count in (await self.gw.metrics()).items():
            if name.startswith("tidegate_resumes_total{"):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
                key = labels["cause"], labels["outcome"]
                found[key] = found.get(key, 0) + count
        return found

    async def undisturbed(self, path: str = CHAT, **more: Any) -> list[dict[str, Any]]:
        """What the good worker says by itself."""
        asked = CALL | {"model": "sim"} | more
        return await _events(self.good, path, "none", asked)


async def _events(server: Any, path: str, key: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    if path == PLAIN:
        body = {"prompt": "Why are there tides?"} | {k: v for k, v in body.items() if k != "messages"}
    async with httpx2.AsyncClient(base_url=server.url, timeout=60, verify=NO_TLS) as http:
        reply = await http.post(path, json=body, headers={"authorization": f"Bearer {key}"})
    assert reply.status_code == 200, reply.text
    lines = reply.text.split("\n\n")
    assert lines.pop() == ""
    events = [line.removeprefix("data: ") for line in lines]
    if events[-1] == "[DONE]":
        events.pop()
    else:
        assert events[-1].startswith('{"error"')
    return [msgspec.json.decode(each) for each in events]


@asynccontextmanager
async def pair(home: Path, spec: WorkerSpec = QUICK, **sections: Any) -> AsyncIterator[Pair]:
    """`spec` is that of the worker whose streams break."""
    async with SimWorker(spec) as bad, SimWorker(QUICK) as good:
        served = {name: model(endpoint(bad, "bad"), endpoint(good, "good")) for name in MODELS}
        async with gateway(home, models=served, **sections) as gw:
            yield Pair(gw, bad, good)


def text_of(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices
    )


def tokens_in(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All logprobs that were told, in the order of their tokens."""
    told = [choice["logprobs"] for event in events for choice in event["choices"] if choice["logprobs"]]
    if told and "content" in told[0]:
        return [token for each in told for token in each["content"]]
    columns = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
    return [
        dict(zip(columns, row, strict=True))
        for each in told
        for row in zip(*(each[column] for column in columns), strict=True)
    ]


def same(heard: list[dict[str, Any]], expected: list[dict[str, Any]], name: str = "llama") -> None:
    """The client has heard one stream, and the one that was expected."""
    assert text_of(heard) == text_of(expected)
    assert len({event["id"] for event in heard}) == 1
    assert {event["model"] for event in heard} == {name}
    assert {event["object"] for event in heard} == {expected[0]["object"]}
    assert roles_in(heard) == roles_in(expected)
    assert finishes_in(heard) == finishes_in(expected)
    assert tokens_in(heard) == tokens_in(expected)
    assert ids_in(heard) == ids_in(expected)
    assert [counts(event) for event in heard if not event["choices"]] == [
        counts(event) for event in expected if not event["choices"]
    ]


def counts(event: dict[str, Any]) -> tuple[int, int]:
    return event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]


def roles_in(events: list[dict[str, Any]]) -> list[str]:
    deltas = [choice["delta"] for event in events for choice in event["choices"] if "delta" in choice]
    return [delta["role"] for delta in deltas if "role" in delta]


def finishes_in(events: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    choices = [choice for event in events for choice in event["choices"] if choice["finish_reason"]]
    return [(choice["finish_reason"], choice["stop_reason"]) for choice in choices]


def ids_in(events: list[dict[str, Any]]) -> list[int]:
    return [
        token for event in events for choice in event["choices"] for token in choice.get("token_ids") or ()
    ]
