"""Streams that break where those who could go on with them cannot, will not, or answer nonsense."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from failing import ASKED, LAST, PROMPT_TOKENS, QUICK, STREAM, chunk, event, model
from pool import endpoint, gateway
from resumed import PLAIN, WITH_USAGE, Pair, pair, same, text_of
from scripted import Server, answers

from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from pathlib import Path


NOT_THERE = Fault("status", status=404, path="tokenize", count=3)
"""No such thing as /tokenize and /detokenize, for as often as anybody has reason to ask."""


async def test_where_nobody_is_able_to_go_on_with_a_stream_it_ends_in_an_error_at_once(tmp_path: Path):
    async with pair(tmp_path) as both:
        for worker in (both.bad, both.good):
            worker.order(NOT_THERE)
        both.bad.order(NOT_THERE, Fault("reset", after_chunks=9, count=1))
        *shown, last = await both.heard(PLAIN, prompt=[1, 40, 50, 60])
        assert shown
        assert last["error"]["code"] == "upstream_broken"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_a_worker_that_tells_nonsense_of_tokens_goes_on_from_the_text(tmp_path: Path, path: str):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed()
        both.bad.order(Fault("reset", after_chunks=9, count=1))
        both.good.order(Fault("garbage", path=path))
        same(await both.heard(), expected)
        assert await both.resumes() == {("upstream_broken", "text"): 1}


async def test_a_stream_that_ends_before_it_has_shown_anything_is_begun_anew(tmp_path: Path):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed()
        both.bad.order(Fault("truncated", after_chunks=1, clean=True, count=1))
        same(await both.heard(), expected)


async def test_what_the_client_has_is_charged_though_nobody_could_go_on_with_it(tmp_path: Path):
    async with SimWorker(QUICK) as alone:
        served = {"llama": model(endpoint(alone, "alone"))}
        async with gateway(tmp_path, models=served, limits={"attempts": 2}) as gw:
            alone.order(Fault("reset", after_chunks=9, count=1), Fault("status", match="ignore_eos"))
            both = Pair(gw, alone, alone)
            *shown, last = await both.heard()
            assert "error" in last
            tokens = len([e for e in shown if text_of([e])])
            (row,) = await gw.rows()
            assert (row.completion_tokens, row.outcome) == (tokens, "upstream_broken")
            assert row.charge_nano_usd == sum(share.charge_nano_usd for share in await gw.shares()) > 0


async def test_of_a_stream_that_went_on_each_worker_is_paid_for_its_own_tokens_and_for_nothing_else(
    tmp_path: Path,
):
    async with pair(tmp_path) as both:
        both.bad.order(Fault("reset", after_chunks=9, count=1))
        await both.heard()
        work = [(share.endpoint, share.purpose, share.completion_tokens) for share in await both.gw.shares()]
        assert work == [("bad", "answer", 8), ("good", "read_again", 0), ("good", "answer", 32)]


async def test_what_was_cached_is_told_of_a_stream_that_went_on_as_the_last_worker_says(tmp_path: Path):
    question = [{"role": "user", "content": "Why are there tides? " * 40}]
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(
            messages=question, **WITH_USAGE
        )  # the good one has the prompt from now on
        both.bad.order(Fault("reset", after_chunks=9, count=1))
        heard = await both.heard(messages=question, **WITH_USAGE)
        same(heard, expected)
        told = heard[-1]["usage"]
        cached_tokens = told["prompt_tokens_details"]["cached_tokens"]
        assert told["prompt_tokens"] // 2 < cached_tokens <= told["prompt_tokens"]
        (row,) = await both.gw.rows()
        assert (row.prompt_tokens, row.cached_tokens) == (told["prompt_tokens"], cached_tokens)


@pytest.mark.parametrize("completion", [1_000_000_000, 41, 0])
async def test_what_no_worker_can_have_used_is_neither_charged_nor_paid_for(tmp_path: Path, completion: int):
    used = {"prompt_tokens": 1_000_000_000, "completion_tokens": completion, "total_tokens": 0}
    last = msgspec.json.encode({"id": "c", "model": "sim", "choices": [], "usage": used})
    said = STREAM + chunk("High") + chunk(" tide") + chunk("", "stop") + event(last) + event(b"[DONE]") + LAST
    async with Server(answers(said)) as rogue:
        worker = {"worker": f"http://127.0.0.1:{rogue.port}", "name": "rogue", "model": "sim"}
        async with gateway(tmp_path, ready=False, models={"llama": model(worker)}) as gw:
            client = gw.client()
            text = [
                piece.choices[0].delta.content
                async for piece in await client.chat.completions.create(
                    **ASKED | {"max_tokens": 40}, stream=True
                )
                if piece.choices
            ]
            assert "".join(text) == "High tide"
            (row,) = await gw.rows()
            assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (PROMPT_TOKENS, 2, True)
