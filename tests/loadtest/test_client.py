import asyncio
import json
import struct
import time
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from loadtest.arrivals import constant, poisson, until
from loadtest.client import Load
from loadtest.mock import BURST_CHUNKS, PACED_PROMPT, listening
from loadtest.sample import StreamTally, judge_body
from loadtest.workloads import Workload, render_requests


def event(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def choice(content=None, finish_reason=None, index=0):
    return {"index": index, "delta": {"content": content}, "finish_reason": finish_reason}


TOKEN = event({"choices": [choice("a")]})
LAST = event({"choices": [choice("b", "stop")]})
DONE = b"data: [DONE]\n\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*pieces: bytes):
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


@asynccontextmanager
async def serving(answer):
    """A server that reads each request and hands its connection to `answer(writer)`; gives its base URL."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
                await answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def one_call(url, **options: Any):
    async with Load(Workload(url, "k", "m", **options)) as load:
        await load.closed_loop(1, calls=1)
        return load.samples[0]


async def test_a_whole_reply_is_ok_with_its_tokens_and_bytes():
    async with listening("m") as [port]:
        url = f"http://127.0.0.1:{port}/v1"
        stream, reply = await one_call(url), await one_call(url, stream=False)
    assert (stream.outcome, stream.tokens) == ("ok", BURST_CHUNKS - 1)
    assert (reply.outcome, reply.tokens) == ("ok", BURST_CHUNKS - 1)
    assert stream.bytes > reply.bytes > 400
    assert stream.intended_s <= stream.first_token_s <= stream.last_token_s <= stream.ended_s


async def test_time_to_first_token_ignores_the_chunk_that_carries_only_the_role():
    role_at = []

    async def answer(writer):
        writer.write(STREAM_HEAD + chunked(event({"choices": [choice("")]})))
        role_at.append(time.perf_counter())
        await asyncio.sleep(0.05)
        writer.write(chunked(TOKEN, LAST, DONE) + b"0\r\n\r\n")

    async with serving(answer) as url:
        sample = await one_call(url)
    assert sample.outcome == "ok"
    assert sample.ttft_s >= 0.05


async def answers(*pieces: bytes, close=False, reset=False):
    async def answer(writer):
        writer.write(b"".join(pieces))
        await writer.drain()
        if reset:
            await asyncio.sleep(0.02)  # what was written must arrive before the reset overtakes it
            writer.get_extra_info("socket").setsockopt(
                1, 13, struct.pack("ii", 1, 0)
            )  # SO_LINGER 0: close is RST
            writer.transport.abort()
        elif close:
            writer.close()

    async with serving(answer) as url:
        return await one_call(url)


async def test_every_way_for_a_call_to_fail_has_its_own_kind():
    error = event({"error": {"message": "engine died", "code": 500}})
    refused = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"
    whole = chunked(TOKEN, LAST, DONE) + b"0\r\n\r\n"
    met = {
        "ok": await answers(STREAM_HEAD, whole),
        "truncated, no finish_reason": await answers(STREAM_HEAD, chunked(TOKEN, DONE), b"0\r\n\r\n"),
        "truncated, no [DONE]": await answers(STREAM_HEAD, chunked(TOKEN, LAST), b"0\r\n\r\n"),
        "truncated, closed half-way": await answers(STREAM_HEAD, chunked(TOKEN), close=True),
        "error_event before [DONE]": await answers(STREAM_HEAD, chunked(TOKEN, error, DONE), b"0\r\n\r\n"),
        "reset half-way": await answers(STREAM_HEAD, chunked(TOKEN), reset=True),
        "reset before any reply": await answers(b"", close=True),
        "malformed HTTP": await answers(b"SMTP ready\r\n\r\n"),
        "malformed event": await answers(STREAM_HEAD, chunked(b"data: {oops\n\n"), b"0\r\n\r\n"),
        "status_503": await answers(refused),
    }
    assert {wanted: sample.outcome for wanted, sample in met.items()} == {
        wanted: wanted.split(",")[0].split(" ")[0] for wanted in met
    }


async def test_a_refused_connection_is_an_error_and_a_closed_loop_does_not_spin_on_it():
    async with serving(None) as url:
        pass
    async with Load(Workload(url, "k", "m")) as load:
        await load.closed_loop(2, seconds=0.2)
    assert {sample.outcome for sample in load.samples} == {"connect"}
    assert len(load.samples) <= 12


async def test_a_call_that_is_not_answered_in_time_is_a_timeout():
    async def never(_writer):
        await asyncio.sleep(10)

    async with serving(never) as url:
        sample = await one_call(url, timeout_s=0.1)
    assert sample.outcome == "timeout"
    assert sample.duration_s >= 0.1


async def test_a_body_that_ends_with_the_connection_is_whole():
    body = json.dumps(
        {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    ).encode()

    async def answer(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body)
        writer.close()

    async with serving(answer) as url:
        sample = await one_call(url, stream=False)
    assert sample.outcome == "ok"


async def test_a_connection_the_target_closed_while_idle_is_not_the_calls_fault():
    connections = set()

    async def once(writer):
        if writer in connections:  # the second call on it: gone before a byte is answered
            writer.close()
            return
        connections.add(writer)
        writer.write(STREAM_HEAD + chunked(TOKEN, LAST, DONE) + b"0\r\n\r\n")

    async with serving(once) as url, Load(Workload(url, "k", "m")) as load:
        await load.closed_loop(1, calls=4)
    assert [sample.outcome for sample in load.samples] == ["ok"] * 4
    assert load.retries == 3


async def test_an_open_loop_does_not_wait_for_answers_and_counts_a_stall_against_the_target():
    stall, all_sent, sent = asyncio.Event(), asyncio.Event(), []

    async def answer(writer):
        sent.append(writer)
        if len(sent) == 30:  # though none has been answered
            all_sent.set()
        await stall.wait()
        writer.write(STREAM_HEAD + chunked(TOKEN, LAST, DONE) + b"0\r\n\r\n")

    async with serving(answer) as url, Load(Workload(url, "k", "m")) as load:
        run = asyncio.create_task(load.open_loop(until(0.3, constant(100))))
        await all_sent.wait()
        stall.set()
        await run
    durations = [sample.duration_s for sample in load.samples]
    assert len(durations) == 30
    assert max(durations) > 0.25
    assert durations == pytest.approx(
        [load.samples[-1].ended_s - sample.intended_s for sample in load.samples], abs=0.2
    )


async def test_a_closed_loop_keeps_no_more_calls_under_way_than_it_has_clients():
    most = now = 0

    async def answer(writer):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        writer.write(STREAM_HEAD + chunked(TOKEN, LAST, DONE) + b"0\r\n\r\n")

    async with serving(answer) as url, Load(Workload(url, "k", "m")) as load:
        await load.closed_loop(5, calls=23)
    assert (most, len(load.samples)) == (5, 23)


async def test_some_clients_leave_half_way_and_the_others_are_served():
    async with listening("m", chunks_per_s=200) as [port]:
        workload = Workload(
            f"http://127.0.0.1:{port}/v1",
            "k",
            "m",
            prompt_start=PACED_PROMPT,
            max_tokens=6,
            abort_fraction=0.5,
            seed=3,
        )
        async with Load(workload) as load:
            await load.closed_loop(20, calls=200)
    outcomes = [sample.outcome for sample in load.samples]
    assert set(outcomes) == {"ok", "aborted"}
    assert 40 < outcomes.count("aborted") < 130


async def test_poisson_arrivals_against_the_mock_all_end_well():
    arrivals = list(until(0.3, poisson(300, Random(1))))  # noqa: S311 - arrivals, not secrets
    async with (
        listening("m") as [port],
        Load(Workload(f"http://127.0.0.1:{port}/v1", "k", "m", stream=False)) as load,
    ):
        await load.open_loop(iter(arrivals))
    assert {sample.outcome for sample in load.samples} == {"ok"}
    assert len(load.samples) == len(arrivals)


def test_events_cut_anywhere_are_read_the_same():
    body = TOKEN + event({"choices": [choice("x", index=1), choice("", "stop", index=1)]}) + LAST
    body += event({"choices": [], "usage": {"completion_tokens": 7}}) + DONE
    for size in range(1, 40):
        tally = StreamTally()
        for start in range(0, len(body), size):
            tally.feed(body[start : start + size], float(start))
        assert (tally.outcome, tally.tokens, tally.reported) == ("ok", 3, 7)


def test_a_stream_is_whole_only_if_every_choice_has_finished():
    tally = StreamTally()
    tally.feed(event({"choices": [choice("a", index=1)]}) + LAST + DONE, 0.0)
    assert tally.outcome == "truncated"


def test_a_json_reply_without_finish_reason_is_not_passed_off_as_whole():
    assert judge_body(b'{"choices": [{"index": 0, "finish_reason": null}]}')[0] == "truncated"
    assert judge_body(b'{"choices": []}')[0] == "truncated"
    assert judge_body(b"{}x")[0] == "malformed"


def test_requests_repeat_with_the_seed_and_prompts_differ():
    workload = Workload("http://h/v1", "secret", "m", prompt_tokens=40)
    requests = render_requests(workload)
    assert requests == render_requests(workload)
    assert len(set(requests)) == len(requests)
    head, body = requests[0].split(b"\r\n\r\n", 1)
    assert b"authorization: Bearer secret" in head
    assert len(body) == int(head.rsplit(b"content-length: ", 1)[1])
    assert json.loads(body)["stream_options"] == {"include_usage": True}


def test_a_url_that_is_not_http_is_refused():
    with pytest.raises(ValueError, match="base URL"):
        Load(Workload("ftp://h/v1", "k", "m"))
