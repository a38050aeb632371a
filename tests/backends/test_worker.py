import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted import OK, Script, Server, answers, read_whole

from backends.base import AttemptFailed, CallRejected, Overloaded, RateLimited, ReplyMalformed, ServerFault
from backends.incoming import Patience
from backends.keys import Keys
from backends.kv_events import KvSource
from backends.lane import LaneLimits
from backends.sse import CompletionStream, Shown
from backends.sweep import Sweep
from backends.usage import whole_reply
from backends.worker import Access, HttpBackend, Outgoing, lane_to
from loadtest.worker import SimWorker, WorkerSpec

CHAT = b'{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":5%b}'


def outgoing(body: bytes = b"{}", *, stream: bool = False, trace: bytes = b"") -> Outgoing:
    return Outgoing("/chat/completions", body, "rid-1", stream, time.monotonic() + 10, trace)


@asynccontextmanager
async def backend_at(url: str, root: str = "/v1", **access: Any):
    reached = Access(url, **access)
    lane = lane_to(reached, LaneLimits())
    async with Sweep(lambda: [lane], interval_s=0.005):
        yield HttpBackend(reached, lane, root, Patience(1.0, 1.0, 5.0), Keys(reached.api_keys, "w"))
        await lane.close()


@asynccontextmanager
async def scripted(*scripts: Script, root: str = "/v1", userinfo: str = "", **access: str):
    async with Server(*scripts) as server:
        async with backend_at(f"http://{userinfo}127.0.0.1:{server.port}", root, **access) as backend:
            yield server, backend


def lines(server: Server) -> list[bytes]:
    return server.peers[0].requests[0][0].split(b"\r\n")


def reply(status: int, body: bytes, content_type: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (status, content_type, len(body)) + body


async def test_the_call_goes_out_with_key_request_id_and_trace_and_its_body_untouched():
    body = b'{ "model" : "x", "n": 1.0 }'
    async with scripted(answers(OK), root="/api/v1", api_keys=("k",)) as (server, backend):
        async with backend.open(outgoing(body, trace=b"traceparent: 00-1\r\n")) as exchange:
            assert await read_whole(exchange) == b"ok"
        sent = lines(server)
        assert sent[0] == b"POST /api/v1/chat/completions HTTP/1.1"
        assert b"host: 127.0.0.1:%d" % server.port in sent
        assert b"authorization: Bearer k" in sent
        assert b"x-request-id: rid-1" in sent
        assert b"traceparent: 00-1" in sent
        assert b"content-type: application/json" in sent
        assert server.peers[0].requests[0][1] == body


async def test_a_worker_whose_events_are_followed_is_told_which_call_it_is():
    async with scripted(answers(OK), kv_events=KvSource("tcp://127.0.0.1:9")) as (server, backend):
        async with backend.open(outgoing()):
            pass
        assert b"x-session-id: rid-1" in lines(server)
    async with scripted(answers(OK)) as (server, backend):
        async with backend.open(outgoing()):
            pass
        assert not [line for line in lines(server) if line.startswith(b"x-session-id")]


async def test_without_a_key_none_is_sent_and_a_login_in_the_url_stays_here():
    async with scripted(answers(OK), userinfo="user:secret@") as (server, backend):
        async with backend.open(outgoing()):
            pass
        assert b"host: 127.0.0.1:%d" % server.port in lines(server)
        assert not [line for line in lines(server) if b"authorization" in line or b"secret" in line]


async def test_a_probe_is_a_get_whose_status_counts():
    async with scripted(answers(reply(418, b"short and stout"))) as (server, backend):
        assert (await backend.get("/health", 1.0, 100))[0] == 418
        assert (await backend.get("/health", 1.0, 100))[0] == 418
        assert lines(server)[0] == b"GET /health HTTP/1.1"
        assert len(server.peers) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(400, CallRejected), (429, Overloaded), (500, ServerFault), (503, Overloaded)]
)
async def test_a_reply_that_says_no_is_raised_and_its_connection_used_again(status, expected):
    async with scripted(answers(reply(status, b'{"error":{"message":"why"}}'))) as (server, backend):
        for stream in (True, False):
            with pytest.raises(expected, match="why"):
                async with backend.open(outgoing(stream=stream)):
                    pass
        assert backend.lane.connections == 1
        assert len(server.peers) == 1


@pytest.mark.parametrize(("status", "expected"), [(422, CallRejected), (500, ServerFault)])
async def test_a_refusal_that_quotes_the_whole_call_still_says_whose_fault_it_is(status, expected):
    async with scripted(answers(reply(status, b"x" * 1_000_000))) as (_, backend):
        with pytest.raises(expected):
            async with backend.open(outgoing()):
                pass


@pytest.mark.parametrize("content_type", [b"application/json", b"text/html", b""])
async def test_a_stream_that_is_none_is_malformed(content_type: bytes):
    async with scripted(answers(reply(200, b"{}", content_type))) as (_, backend):
        with pytest.raises(ReplyMalformed, match="asked for a stream"):
            async with backend.open(outgoing(stream=True)):
                pass


@pytest.mark.parametrize(
    "content_type", [b"text/event-stream", b"text/event-stream; charset=utf-8", b"Text/Event-Stream"]
)
async def test_a_stream_is_known_by_its_type(content_type: bytes):
    async with scripted(answers(reply(200, b"data: x\n\n", content_type))) as (_, backend):
        async with backend.open(outgoing(stream=True)) as exchange:
            assert await exchange.read() == b"data: x\n\n"


async def test_a_reply_in_one_piece_may_take_as_long_as_the_call():
    async def script(peer):
        await peer.request()
        await peer.lost()

    async with Server(script) as server:
        access = Access(f"http://127.0.0.1:{server.port}")
        lane = lane_to(access, LaneLimits())
        backend = HttpBackend(access, lane, "/v1", Patience(0.05, 0.05, 0.3), Keys((), "w"))
        async with Sweep(lambda: [lane], interval_s=0.005):
            start_s = time.monotonic()
            with pytest.raises(AttemptFailed):
                async with backend.open(outgoing()):
                    pass
            assert 0.25 < time.monotonic() - start_s < 1.0
            await lane.close()


async def test_a_simulated_worker_s_stream_and_reply_are_read_to_their_end():
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker, backend_at(worker.url) as backend:
        for _ in range(20):
            body = CHAT % b',"stream":true,"stream_options":{"include_usage":true}'
            stream = CompletionStream(Shown("pub"), 1 << 20)
            async with backend.open(outgoing(body, stream=True)) as exchange:
                while not (stream.done and stream.finished):
                    stream.feed(await exchange.read())
                await exchange.drain()
            stream.end()
            assert stream.usage.completion_tokens == stream.tokens == 5
            async with backend.open(outgoing(CHAT % b"")) as exchange:
                whole = whole_reply(await read_whole(exchange), "pub", None, 1)
            assert whole.usage.completion_tokens == 5
        assert backend.lane.connections == 1


LIMITED = b"HTTP/1.1 429 X\r\nretry-after: %d\r\ncontent-length: %d\r\n\r\n%b" % (
    30,
    len(OVER := b'{"error":{"message":"org-1 is over"}}'),
    OVER,
)


def answers_by_key(replies: dict[bytes, bytes]) -> Script:
    async def script(peer):
        while True:
            await peer.request()
            (said,) = [
                line for line in peer.requests[-1][0].split(b"\r\n") if line.startswith(b"authorization: ")
            ]
            await peer.send(replies[said.removeprefix(b"authorization: Bearer ")])

    return script


def keys_sent(server: Server) -> list[bytes]:
    heads = [head for peer in server.peers for head, _ in peer.requests]
    return [head.partition(b"Bearer ")[2].partition(b"\r\n")[0] for head in heads]


async def test_a_call_whose_key_is_refused_goes_out_with_the_next_on_the_same_connection():
    bad_key = reply(401, b'{"error":{"message":"Incorrect API key provided"}}')
    replies = {b"key-one": LIMITED, b"key-two": bad_key, b"key-three": OK}
    keys = ("key-one", "key-two", "key-three")
    async with scripted(answers_by_key(replies), api_keys=keys) as (server, backend):
        for _ in range(2):
            async with backend.open(outgoing()) as exchange:
                assert await read_whole(exchange) == b"ok"
        assert keys_sent(server) == [b"key-one", b"key-two", b"key-three", b"key-three"]
        assert len(server.peers) == 1
        assert backend.keys.counts(time.monotonic()) == {"usable": 1, "paused": 1, "set_aside": 1}


async def test_where_every_key_is_refused_the_call_fails_with_words_of_our_own():
    async with scripted(answers_by_key({b"key-one": LIMITED}), api_keys=("key-one",)) as (server, backend):
        for _ in range(2):
            with pytest.raises(RateLimited, match="the endpoint limits the rate of our keys") as refused:
                async with backend.open(outgoing()):
                    pass
            assert 20 < refused.value.retry_after_s <= 30
            assert refused.value.of_key
        assert keys_sent(server) == [b"key-one"]
        assert backend.lane.connections == 1


async def test_no_more_than_a_few_keys_are_tried_for_one_call():
    keys = tuple(f"key-{number:02}" for number in range(20))
    replies = {key.encode(): LIMITED for key in keys}
    async with scripted(answers_by_key(replies), api_keys=keys) as (server, backend):
        with pytest.raises(RateLimited):
            async with backend.open(outgoing()):
                pass
        assert keys_sent(server) == [b"key-00", b"key-01", b"key-02"]


async def test_a_failure_that_is_not_about_the_key_is_not_tried_with_another():
    async with scripted(answers(reply(500, b"{}")), api_keys=("key-one", "key-two")) as (server, backend):
        with pytest.raises(ServerFault):
            async with backend.open(outgoing()):
                pass
        assert keys_sent(server) == [b"key-one"]
        assert backend.keys.counts(time.monotonic())["usable"] == 2
