"""What a client sees of a stream that breaks after its first byte: what had come, an error as its last event, no `[DONE]`."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import openai
import pytest
import pytest_asyncio
from failing import (
    ASKED,
    LAST,
    PROMPT_TOKENS,
    QUICK,
    STREAM,
    ask,
    attempts,
    chunk,
    event,
    hosted,
    model,
    models,
    of_endpoint,
    part,
)
from pool import endpoint, gateway
from scripted import Peer, Server

from loadtest.process import WorkerProcess, worker_process
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from pool import Gateway

    from gateway.ledger import UsageRow

DONE = event(b"[DONE]") + LAST
DIED = event(
    b'{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","code":500}}'
)
HEARD = ["", "high", "low"]
"""The contents of the chunks that come before a stream breaks: the first has none, as with vLLM."""


def says(*pieces: bytes) -> Callable[[Peer], Awaitable[None]]:
    """The stream goes on with these bytes, and is closed."""

    async def end(peer: Peer) -> None:
        await peer.send(*pieces)
        await peer.fin()

    return end


async def resets(peer: Peer) -> None:
    peer.reset()


async def falls_silent(peer: Peer) -> None:
    await peer.lost()


BREAKS: dict[str, tuple[Callable[[Peer], Awaitable[None]], str]] = {
    "reset": (resets, "upstream_broken"),
    "closed": (says(), "upstream_broken"),
    "closed within a chunk": (says(chunk("slack")[:-30]), "upstream_broken"),
    "silence": (falls_silent, "upstream_silence_timeout"),
    "an end without a finish_reason": (says(LAST), "upstream_truncated"),
    "[DONE] without a finish_reason": (says(DONE), "upstream_truncated"),
    "one choice of two finished": (says(chunk(finish_reason="stop") + DONE), "upstream_truncated"),
    "an error, then [DONE]": (says(DIED + DONE), "upstream_error"),
    "given up, then [DONE]": (says(chunk(finish_reason="abort") + DONE), "upstream_error"),
    "no JSON": (says(event(b"{the tide") + DONE), "upstream_malformed"),
    "no HTTP": (says(b"the tide\r\n"), "upstream_malformed"),
    "an endless event": (says(part(b"data: " + b"x" * 100_000)), "upstream_oversized"),
}


class Seen(NamedTuple):
    events: list[dict[str, Any]]
    """The stream, as far as it is JSON; anything else makes reading it fail."""
    row: UsageRow
    attempts: dict[tuple[str, str], float]


def breaking(
    shown: asyncio.Event, end: Callable[[Peer], Awaitable[None]]
) -> Callable[[Peer], Awaitable[None]]:
    """A stream that begins, and ends as told once the client has got its beginning."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(STREAM + b"".join(map(chunk, HEARD)))
        await shown.wait()
        await end(peer)

    return script


async def listen(gw: Gateway, shown: asyncio.Event, **more: Any) -> list[dict[str, Any]]:
    """The events that the client gets; `shown` is set once the beginning is there."""
    body = msgspec.json.encode(ASKED | {"stream": True} | more)
    headers = {"authorization": f"Bearer {gw.key}"}
    text = b""
    async with gw.http.stream("POST", "/v1/chat/completions", content=body, headers=headers) as reply:
        async for block in reply.aiter_raw():
            text += block
            if text.count(b"\n\n") >= len(HEARD):
                shown.set()
    assert text.endswith(b"\n\n")
    return [msgspec.json.decode(line.removeprefix(b"data: ")) for line in text.split(b"\n\n")[:-1]]


def text_of(events: list[dict[str, Any]]) -> list[str]:
    """The contents of chunks that have any: a token each."""
    deltas = [choice["delta"] for shown in events for choice in shown.get("choices", ())]
    return [delta["content"] for delta in deltas if delta["content"]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broken(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Seen]]:
    """What came of one stream that breaks in each way, all at once. The other endpoint would have an answer."""
    async with AsyncExitStack() as stack:
        good = await stack.enter_async_context(SimWorker(QUICK))
        served, shown = {}, {}
        for name, (end, _) in BREAKS.items():
            shown[name] = asyncio.Event()
            server = await stack.enter_async_context(Server(breaking(shown[name], end)))
            served[_model(name)] = model(hosted(server.port), endpoint(good, "good"))
        home = tmp_path_factory.mktemp("broken")
        settings = {"limits": {"event_bytes": 50_000}, "timeouts": {"silence_s": 2}}
        gw = await stack.enter_async_context(gateway(home, models=served, **settings))
        calls = [
            listen(gw, shown[name], model=_model(name), n=2 if "of two" in name else 1) for name in BREAKS
        ]
        heard = await asyncio.gather(*calls)
        rows = {row.model: row for row in await gw.rows(len(BREAKS))}
        page = await gw.metrics()
        assert good.requests == ()
        yield {
            name: Seen(events, rows[_model(name)], attempts(page, _model(name)))
            for name, events in zip(BREAKS, heard, strict=True)
        }


def _model(name: str) -> str:
    return f"break-{list(BREAKS).index(name)}"


@pytest.mark.parametrize("how", BREAKS)
def test_a_stream_that_breaks_ends_in_an_error_and_is_charged_for_what_had_come(
    how: str, broken: dict[str, Seen]
):
    code, (events, row, tried) = BREAKS[how][1], broken[how]
    *chunks, last = events
    assert text_of(chunks) == ["high", "low"]
    assert list(last) == ["error"]
    assert last["error"].pop("message")
    assert last["error"] == {"type": "upstream_error", "param": None, "code": code}

    assert tried == {("bad", code): 1}
    assert (row.outcome, row.status, row.attempts, row.endpoint) == (code, 200, 1, "bad")
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (PROMPT_TOKENS, 2, True)
    assert row.charge_nano_usd == 1000 * PROMPT_TOKENS + 2000 * 2
    assert row.cost_nano_usd == 1000 * (PROMPT_TOKENS + 2)


async def test_tokens_that_come_in_one_packet_with_a_failure_are_charged_only_where_they_are_shown(
    tmp_path: Path,
):
    shown = asyncio.Event()
    script = breaking(shown, says(chunk("slack") + chunk("ebb") + DIED + DONE))
    async with Server(script) as server, gateway(tmp_path, models=models(hosted(server.port))) as gw:
        events = await listen(gw, shown)
        assert events[-1]["error"]["code"] == "upstream_error"
        (row,) = await gw.rows()
        assert row.completion_tokens == len(text_of(events))


async def test_a_stream_that_outlasts_the_calls_time_ends_in_an_error(tmp_path: Path):
    async def goes_on(peer: Peer) -> None:
        while True:
            await peer.send(chunk("and"))
            await asyncio.sleep(0.4)  # no more than it was asked for: what is beyond that is not charged

    shown = asyncio.Event()
    async with Server(breaking(shown, goes_on)) as server:
        async with gateway(tmp_path, models=models(hosted(server.port)), timeouts={"total_s": 2}) as gw:
            *chunks, last = await listen(gw, shown, max_tokens=1000)
            assert last["error"]["code"] == "call_timeout"
            (row,) = await gw.rows()
            assert (row.outcome, row.estimated) == ("call_timeout", True)
            assert row.completion_tokens == len(text_of(chunks)) > 2
            # A long answer is no sign of a sick worker.
            assert of_endpoint(await gw.metrics(), "ejections_total") == 0


async def test_the_sdk_raises_where_a_worker_is_killed_within_a_stream_that_cannot_go_on(tmp_path: Path):
    heard: list[str] = []

    async def hear(stream: Any, doomed: WorkerProcess) -> None:
        async for piece in stream:
            heard.append(piece.choices[0].delta.content)
            if len(heard) == 7:
                doomed.kill()

    async with worker_process(model="sim") as doomed, SimWorker(QUICK) as good:
        served = models(endpoint(doomed, "bad"), endpoint(good, "good"))
        async with gateway(tmp_path, models=served) as gw:
            client = gw.client()
            # Of two choices neither can be gone on with elsewhere.
            endless = {"max_tokens": 10_000, "n": 2, "stream": True, "extra_body": {"ignore_eos": True}}
            stream = await client.chat.completions.create(**ASKED | endless)
            with pytest.raises(openai.APIError) as failed:
                await hear(stream, doomed)
            assert (failed.value.type, failed.value.code) == ("upstream_error", "upstream_broken")
            assert good.requests == ()
            (row,) = await gw.rows()
            assert (row.outcome, row.endpoint, row.estimated) == ("upstream_broken", "bad", True)
            assert row.completion_tokens == len([content for content in heard if content]) >= 4
            headers, _ = await ask(client)
            assert headers["x-tidegate-endpoint"] == "good"
