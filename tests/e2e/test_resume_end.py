"""Streams that break at their very end: all tokens shown and no finish, a finish and no usage, usage and no `[DONE]`.

The worker that breaks is scripted to the byte, with vLLM's words; the other one would write on if it were asked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from failing import LAST, QUICK, STREAM, event, model
from pool import endpoint, gateway
from resumed import CALL, CHAT, PLAIN, WITH_USAGE, Pair, finishes_in, text_of
from scripted import OK, Peer, Server

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PROMPT_IDS = [1, 40, 50, 60]
WORDS = ("high", " water", " at", " noon")
IDS = (70, 71, 72, 73)
USAGE = {"prompt_tokens": 4, "total_tokens": 8, "completion_tokens": 4}


def piece(place: int, *, chat: bool, finish: str | None = None, text: str | None = None) -> dict[str, Any]:
    """A chunk of the stream that a worker sends, with ids as it was asked."""
    text = WORDS[place] if text is None else text
    told = {"index": 0, "logprobs": None, "finish_reason": finish, "stop_reason": None}
    ids = [IDS[place]] if text else []
    said = {"delta": {"content": text}} if chat else {"text": text}
    chunk = {
        "id": "c-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": "sim",
    }
    return {**chunk, "choices": [{**told, **said, "token_ids": ids}]}


def stream(*chunks: dict[str, Any], chat: bool) -> bytes:
    """What comes before the connection is closed, without an end of the body."""
    first = piece(0, chat=chat, text="")
    if chat:
        first["choices"][0]["delta"] = {"role": "assistant", "content": ""}
        first["prompt_token_ids"] = PROMPT_IDS
    else:
        first["choices"][0]["prompt_token_ids"] = PROMPT_IDS
    return STREAM + b"".join(event(msgspec.json.encode(each)) for each in (first, *chunks))


async def heard(
    home: Path, sent: bytes, path: str, behind: bytes = b"", **more: Any
) -> tuple[list[dict[str, Any]], Sequence[object], dict[tuple[str, str], float], Any]:
    """What a client hears of it, what the other worker was asked, how it went on, and the row.

    The worker closes when the client has begun to hear it, and sends `behind` before.
    """
    hears = asyncio.Event()

    async def script(peer: Peer) -> None:
        while not await peer.request():
            await peer.send(OK)  # a health check
        await peer.send(sent)
        await hears.wait()
        await peer.send(behind)
        await peer.fin()

    async with Server(script) as bad, SimWorker(QUICK) as good:
        first = {"worker": f"http://127.0.0.1:{bad.port}", "name": "bad", "model": "sim"}
        served = {"llama": model(first, endpoint(good, "good"))}
        async with gateway(home, models=served, health={"interval_s": 3600, "timeout_s": 60}) as gw:
            body = CALL | {"prompt": "Why?", "max_tokens": len(WORDS)} | more
            del body["prompt" if path == CHAT else "messages"]
            headers = {"authorization": f"Bearer {gw.key}"}
            text = ""
            async with gw.http.stream("POST", path, json=body, headers=headers) as reply:
                async for part in reply.aiter_text():
                    text += part
                    hears.set()
            *events, done, rest = text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            (row,) = await gw.rows()
            asked = [each.target for each in good.requests if each.target in (CHAT, PLAIN)]
            resumes = await Pair(gw, good, good).resumes()
            return [msgspec.json.decode(each.removeprefix("data: ")) for each in events], asked, resumes, row


@pytest.mark.parametrize("path", [CHAT, PLAIN])
async def test_a_stream_cut_when_all_its_tokens_are_there_ends_for_their_number(path: str, tmp_path: Path):
    chat = path == CHAT
    sent = stream(*(piece(place, chat=chat) for place in range(len(WORDS))), chat=chat)
    events, asked, resumes, row = await heard(tmp_path, sent, path, **WITH_USAGE)
    assert text_of(events) == "".join(WORDS)
    assert finishes_in(events) == [("length", None)]
    assert len({each["id"] for each in events}) == 1
    assert events[-1]["usage"]["prompt_tokens"] == len(PROMPT_IDS)
    assert events[-1]["usage"]["completion_tokens"] == len(WORDS)
    assert asked == []
    assert resumes == {("upstream_broken", "ended"): 1}
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.estimated) == ("ok", 4, 4, False)
    assert (row.attempts, row.waste_nano_usd) == (1, 0)


async def test_one_that_may_have_more_tokens_goes_on(tmp_path: Path):
    sent = stream(*(piece(place, chat=True) for place in range(len(WORDS))), chat=True)
    events, asked, *_ = await heard(tmp_path, sent, CHAT, max_tokens=9)
    assert len(asked) == 1
    assert text_of(events).startswith("".join(WORDS))


@pytest.mark.parametrize("ended", [b"", LAST], ids=["cut", "closed as it should be"])
@pytest.mark.parametrize("told", ["before usage", "before [DONE]"])
async def test_a_stream_cut_behind_its_finish_is_whole(told: str, ended: bytes, tmp_path: Path):
    chunks = [piece(place, chat=True, finish="length" if place == 3 else None) for place in range(len(WORDS))]
    usage = {**chunks[0], "choices": [], "usage": USAGE}
    events, asked, resumes, row = await heard(
        tmp_path,
        stream(*chunks, *([usage] if told == "before [DONE]" else []), chat=True),
        CHAT,
        ended,
        **WITH_USAGE,
    )
    assert text_of(events) == "".join(WORDS)
    assert finishes_in(events) == [("length", None)]
    assert [each["usage"]["completion_tokens"] for each in events if not each["choices"]] == [len(WORDS)]
    assert (asked, resumes) == ([], {})
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.estimated) == ("ok", 4, 4, False)


async def test_what_was_held_back_for_a_stop_string_is_shown_at_the_end(tmp_path: Path):
    """A worker holds back as many characters as a stop string could begin with. The other one says what they are."""
    async with SimWorker(QUICK) as good:
        told = await Pair(None, good, good).undisturbed(max_tokens=12, return_token_ids=True)  # type: ignore[arg-type]
    whole = text_of(told)
    ids = [token for each in told for choice in each["choices"] for token in choice.get("token_ids") or ()]
    assert len(ids) == 12
    shown = whole[: len(whole) - len("never in it") + 1]
    cut = piece(0, chat=True, text=shown)
    cut["choices"][0]["token_ids"] = ids
    events, asked, resumes, row = await heard(
        tmp_path, stream(cut, chat=True), CHAT, max_tokens=12, stop=["never in it"]
    )
    assert text_of(events) == whole
    assert finishes_in(events) == [("length", None)]
    assert (asked, resumes) == ([], {("upstream_broken", "ended"): 1})
    assert row.completion_tokens == 12
