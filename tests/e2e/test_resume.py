"""A stream that breaks goes on at another worker, and its client sees what one worker would have said undisturbed."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest
from failing import ASKED, QUICK, model
from pool import NO_TLS, endpoint, gateway, until

from loadtest.worker import Fault, SimWorker, WorkerSpec

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


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "tide_at", "parameters": PLACE}}
WORDS = {
    "type": "object",
    "properties": {"words": {"type": "string", "minLength": 4000}},
    "required": ["words"],
}
LONG_TOOL = {"type": "function", "function": {"name": "recite", "parameters": WORDS}}
"""Its arguments are too long to be held back."""
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "s", "schema": PLACE},
}

FROM_TEXT: dict[str, dict[str, Any]] = {
    "a picture": {
        "messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "What is this?"}]}]
    },
    "tools offered": {"tools": [TOOL], "messages": [{"role": "user", "content": "Is it high tide?"}]},
}


@pytest.mark.parametrize("how", FROM_TEXT)
async def test_what_cannot_be_given_as_ids_goes_on_from_its_text(how: str, tmp_path: Path):
    async with pair(tmp_path) as both:
        more = FROM_TEXT[how]
        expected = await both.undisturbed(**more)
        assert text_of(expected)  # no tool is called
        both.bad.order(Fault("reset", after_chunks=20, count=1))
        same(await both.heard(**more), expected)
        taken_over = both.good.requests[-1]
        assert taken_over.target == CHAT
        asked = msgspec.json.decode(taken_over.body)
        assert asked["continue_final_message"]
        assert text_of(expected).startswith(asked["messages"][-1]["content"])
        assert await both.resumes() == {("upstream_broken", "text"): 1}


UNFIT: dict[str, tuple[str, dict[str, Any]]] = {
    "two choices": (CHAT, {"n": 2}),
    "two prompts": (PLAIN, {"prompt": ["High?", "Low?"]}),
    "a schema": (CHAT, {"response_format": SCHEMA}),
    "echo": (PLAIN, {"echo": True}),
    "logprobs of the prompt": (PLAIN, {"prompt_logprobs": 1}),
    "a truncated prompt": (PLAIN, {"truncate_prompt_tokens": 100}),
    "beams": (PLAIN, {"use_beam_search": True}),
    "hidden reasoning": (CHAT, {"include_reasoning": False}),
}


@pytest.mark.parametrize("how", UNFIT)
async def test_what_cannot_be_gone_on_with_ends_in_an_error_at_once(how: str, tmp_path: Path):
    path, more = UNFIT[how]
    async with pair(tmp_path) as both:
        both.bad.order(Fault("reset", after_chunks=4, count=1))
        *shown, last = await both.heard(path, **more)
        assert shown
        assert last["error"]["code"] == "upstream_broken"
        assert both.good.requests == ()


CALLED = {"tools": [TOOL], "tool_choice": "required", "max_tokens": None}


def calls_in(events: list[dict[str, Any]]) -> tuple[list[str], str]:
    """The names of the tools that are called, and all arguments."""
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
    return [call["name"] for call in calls if call.get("name")], "".join(call["arguments"] for call in calls)


async def test_a_call_of_a_tool_is_shown_when_it_is_whole_and_begun_anew_where_it_breaks_before(
    tmp_path: Path,
):
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(**CALLED)
        assert calls_in(expected)[0] == ["tide_at"]
        for name, after in zip(MODELS, (2, 3, 6, 10), strict=True):
            both.bad.order(Fault("reset", after_chunks=after, count=1))
            heard = await both.heard(model=name, **CALLED)
            assert calls_in(heard) == calls_in(expected)
            assert len({event["id"] for event in heard}) == 1
            assert roles_in(heard) == ["assistant"]
            assert finishes_in(heard) == finishes_in(expected)
        assert await both.resumes() == {}
        assert {(row.outcome, row.attempts) for row in await both.gw.rows(least=4)} == {("ok", 2)}


@pytest.mark.parametrize(("tool", "after"), [(TOOL, 11), (LONG_TOOL, 800)], ids=["whole", "long"])
async def test_a_call_of_a_tool_that_has_been_shown_is_gone_on_with_by_nobody(
    tool: dict[str, Any], after: int, tmp_path: Path
):
    async with pair(tmp_path) as both:
        both.bad.order(Fault("reset", after_chunks=after, count=1))
        *shown, last = await both.heard(**CALLED | {"tools": [tool]})
        assert calls_in(shown)[0] == [tool["function"]["name"]]
        assert last["error"]["code"] == "upstream_broken"
        assert both.good.requests == ()


@pytest.mark.parametrize("how", UNFIT)
async def test_it_is_begun_anew_where_nothing_had_been_shown(how: str, tmp_path: Path):
    path, more = UNFIT[how]
    async with pair(tmp_path) as both:
        expected = await both.undisturbed(path, **more)
        both.bad.order(Fault("reset", after_chunks=0 if path == PLAIN else 1, count=1))
        assert text_of(await both.heard(path, **more)) == text_of(expected)


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
