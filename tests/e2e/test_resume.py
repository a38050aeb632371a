"""A stream that breaks goes on at another worker, and its client sees what one worker would have said undisturbed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from failing import QUICK, model
from pool import endpoint, gateway, until
from resumed import (
    CHAT,
    MASTER,
    MODELS,
    PLAIN,
    WITH_USAGE,
    Pair,
    finishes_in,
    pair,
    same,
    text_of,
)

from loadtest.worker import Fault, SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path


CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "plain": (PLAIN, {}),
    "plain, prompt as ids": (PLAIN, {"prompt": [1, 40, 50, 60]}),
    "usage": (CHAT, WITH_USAGE),
    "usage in every chunk": (
        CHAT,
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "plain with usage": (PLAIN, WITH_USAGE),
    "logprobs": (CHAT, {"logprobs": True, "top_logprobs": 2}),
    "logprobs of one": (CHAT, {"logprobs": True}),
    "plain with logprobs": (PLAIN, {"logprobs": 2}),
    "ids": (CHAT, {"return_token_ids": True}),
    "until its own end": (CHAT, {"ignore_eos": False, "max_tokens": None}),
    "min_tokens": (CHAT, {"ignore_eos": False, "min_tokens": 35}),
    "a long stop string": (CHAT, {"stop": ["never in any answer whatsoever"]}),
    "seed": (CHAT, {"seed": 7}),
}


@pytest.mark.parametrize("how", CALLS)
async def test_a_stream_cut_anywhere_goes_on_as_if_nothing_had_happened(how: str, tmp_path: Path):
    path, more = CALLS[how]
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(path, **more)
        chunks = len([event for event in expected if event["choices"]])
        first = next(place for place, event in enumerate(expected, start=1) if text_of([event]))
        for name, after in zip(MODELS, (first, first + 1, (first + chunks) // 2, chunks - 1), strict=True):
            both.bad.order(Fault("reset", after_chunks=after, count=1))
            asked = len(both.good.requests)
            heard = await both.heard(path, model=name, **more)
            (taken_over,) = both.good.requests[asked:]
            assert taken_over.target == PLAIN
            assert isinstance(msgspec.json.decode(taken_over.body)["prompt"], list)
            same(heard, expected, name)


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("included", [{}, {"include_stop_str_in_output": True}], ids=["left out", "shown"])
async def test_a_stop_string_across_the_seam_ends_the_answer(path: str, included: Any, tmp_path: Path):
    async with pair(tmp_path) as both:
        words = text_of(await both.undisturbed(path)).split(" ")
        stop = " ".join(words[12:18])[2:-1]
        more = {"stop": ["nowhere", stop]} | included | WITH_USAGE
        expected = await both.undisturbed(path, **more)
        assert finishes_in(expected) == [("stop", stop)]
        chunks = [event for event in expected if event["choices"]]
        for name, before_end in zip(MODELS, (1, 2, 4, 6), strict=True):
            both.bad.order(Fault("reset", after_chunks=len(chunks) - before_end, count=1))
            heard = await both.heard(path, model=name, **more)
            same(heard, expected, name)
        await until(
            lambda: nothing_runs(both.good)
        )  # what wrote on beyond the stop string has been cancelled


async def nothing_runs(worker: SimWorker) -> bool:
    return not worker.engine.running


async def test_a_stream_that_was_whole_but_for_its_usage_is_brought_to_its_end(tmp_path: Path):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(**WITH_USAGE)
        both.bad.order(Fault("reset", after_chunks=len(expected) - 1, count=1))
        same(await both.heard(**WITH_USAGE), expected)
        assert both.good.requests[1:] == ()
        (row,) = await both.gw.rows()
        assert (row.outcome, row.completion_tokens, row.estimated) == ("ok", 40, False)


async def test_a_stream_that_breaks_again_goes_on_again(tmp_path: Path):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed()
        both.bad.order(Fault("reset", after_chunks=4, count=1))
        both.good.order(Fault("reset", after_chunks=26, count=1))
        same(await both.heard(), expected)
        assert len(both.bad.requests) + len(both.good.requests) == 1 + 3
        (row,) = await both.gw.rows()
        assert (row.outcome, row.attempts, row.completion_tokens, row.estimated) == ("ok", 3, 40, False)


async def test_a_call_under_which_two_workers_crash_at_the_same_point_goes_on_nowhere(tmp_path: Path):
    async with pair(tmp_path) as both:
        both.bad.order(Fault("reset", after_chunks=4, count=1))
        both.good.order(Fault("reset", after_chunks=3, count=1))
        *_, last = await both.heard()
        assert last["error"]["code"] == "poisonous_call"
        (row,) = await both.gw.rows()
        assert (row.outcome, row.status) == ("poisonous_call", 200)


async def test_a_stream_that_falls_silent_goes_on_before_its_client_is_out_of_patience(tmp_path: Path):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed()
        both.bad.order(Fault("stall", after_chunks=9, count=1))
        began_s = time.monotonic()
        same(await both.heard(), expected)
        assert time.monotonic() - began_s < 25  # `timeouts.silence_s` is 30
        assert (await both.resumes()) == {("upstream_silence_timeout", "tokens"): 1}


async def test_a_silent_stream_is_waited_for_where_nobody_could_go_on_with_it(tmp_path: Path):
    async with SimWorker(QUICK) as alone:
        served = {"llama": model(endpoint(alone, "alone"))}
        async with gateway(tmp_path, models=served, timeouts={"silence_s": 8}) as gw:
            alone.order(Fault("stall", after_chunks=9, count=1))
            began_s = time.monotonic()
            both = Pair(gw, alone, alone)
            same(await both.heard(), await both.undisturbed())
            assert time.monotonic() - began_s >= 8  # and then it goes on where it was, once that is back


async def test_a_worker_that_does_not_say_what_the_tokens_are_is_passed_over(tmp_path: Path):
    async with SimWorker(QUICK) as bad, SimWorker(QUICK) as mute, SimWorker(QUICK) as good:
        served = {"llama": model(endpoint(bad, "bad"), endpoint(mute, "mute"), endpoint(good, "good"))}
        async with gateway(tmp_path, models=served) as gw:
            both = Pair(gw, bad, good)
            expected = await both.undisturbed()
            mute.order(Fault("hang", path="/tokenize"))
            bad.order(Fault("reset", after_chunks=9, count=1))
            same(await both.heard(), expected)
            assert mute.faults.left().struck == 1
            (row,) = await gw.rows()
            assert (row.outcome, row.attempts) == ("ok", 2)


async def test_what_nobody_is_able_to_go_on_with_ends_in_an_error_at_once(tmp_path: Path):
    async with pair(tmp_path) as both:
        for worker in (both.bad, both.good):
            worker.order(
                Fault("reset", after_chunks=9, count=1, path=PLAIN),
                Fault("status", status=400, path="/detokenize"),
            )
        began_s = time.monotonic()
        *shown, last = await both.heard(PLAIN, prompt=[1, 40, 50, 60])
        assert shown
        assert last["error"]["code"] == "upstream_broken"
        assert time.monotonic() - began_s < 8  # it does not wait for somebody to come back


async def test_a_stream_goes_on_elsewhere_when_its_worker_has_to_leave(tmp_path: Path):
    async with pair(tmp_path, WorkerSpec(decode_s_per_token=0.1), auth={"master_key": MASTER}) as both:
        listening = asyncio.create_task(both.heard())
        await until(lambda: runs(both.bad))
        asked = {"within_s": 1}, {"authorization": f"Bearer {MASTER}"}
        (
            await both.gw.http.post("/admin/nodes/bad/drain", json=asked[0], headers=asked[1])
        ).raise_for_status()
        heard, expected = await listening, await both.undisturbed()
        same(heard, expected)
        assert (await both.resumes()) == {("leaving", "tokens"): 1}
        (row,) = await both.gw.rows()
        assert (row.outcome, row.endpoint, row.attempts, row.completion_tokens) == ("ok", "bad", 2, 40)
        assert not row.estimated


async def runs(worker: SimWorker) -> bool:
    return any(len(sequence.emitted) > 3 for sequence in worker.engine.running)


def provider(worker: SimWorker, name: str, **more: object) -> dict[str, Any]:
    return {"openai": f"{worker.url}/v1", "name": name, "model": "sim", **more}


async def test_a_providers_stream_goes_on_where_both_are_declared_to_have_the_same_weights(tmp_path: Path):
    async with SimWorker(QUICK) as bad, SimWorker(QUICK) as good:
        served = {
            "known": model(provider(bad, "bad", weights="sim"), endpoint(good, "good")),
            "back": model(endpoint(bad, "bad"), provider(good, "good", weights="sim", continues=True)),
            "unknown": model(provider(bad, "bad"), endpoint(good, "good")),
            "not declared": model(endpoint(bad, "bad"), provider(good, "good", weights="sim")),
            "quantized": model(endpoint(bad, "bad"), endpoint(good, "good", weights="sim-int4")),
        }
        served = {name.replace(" ", "-"): section for name, section in served.items()}
        async with gateway(tmp_path, models=served) as gw:
            both, outcomes = Pair(gw, bad, good), {}
            expected = await both.undisturbed()
            for name in served:
                bad.order(Fault("reset", after_chunks=9, count=1))
                asked = len(good.requests)
                heard = await both.heard(model=name)
                outcomes[name] = len(good.requests) > asked
                # Where only the worker that broke has the weights, the stream goes on there, once that is back.
                assert ("error" in heard[-1]) == (name == "unknown")
                assert name == "unknown" or text_of(heard) == text_of(expected)
        assert {name for name, elsewhere in outcomes.items() if elsewhere} == {"known", "back"}


async def test_where_it_is_switched_off_a_stream_that_breaks_ends_in_an_error(tmp_path: Path):
    async with pair(tmp_path, resume=False) as both:
        both.bad.order(Fault("reset", after_chunks=9, count=1))
        *_, last = await both.heard()
        assert last["error"]["code"] == "upstream_broken"
        assert b"return_token_ids" not in both.bad.requests[0].body
