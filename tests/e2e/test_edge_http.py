"""HTTP as no SDK speaks it, but as proxies, load balancers and curl do."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from pool import Gateway, gateway
from wire import CHAT, HELLO, STREAMED, chunked, wire

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

BODY_LIMIT = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[SimWorker]:
    async with SimWorker(WorkerSpec(decode_s_per_token=0, max_model_len=1_000_000)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(worker: SimWorker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    limits = {"body_bytes": BODY_LIMIT}
    async with gateway(tmp_path_factory.mktemp("gateway"), worker, limits=limits) as running:
        yield running


# Bodies in all their forms


async def test_a_request_that_comes_byte_by_byte_is_answered(gw: Gateway, worker: SimWorker):
    async with wire(gw) as to:
        request = to.request(HELLO)
        await to.send(*(request[at : at + 1] for at in range(len(request))))
        assert (await to.reply()).status == 200
        assert json.loads(worker.requests[-1].body)["messages"] == json.loads(HELLO)["messages"]


@pytest.mark.parametrize(
    "body",
    [
        chunked(HELLO),
        chunked(HELLO[:7], HELLO[7:8], HELLO[8:]),
        chunked(HELLO).replace(b"\r\n", b";a=b\r\n", 1),
        chunked(HELLO, trailer=b"x-checksum: 1\r\n"),
    ],
    ids=["whole", "in pieces", "with an extension", "with a trailer"],
)
async def test_a_chunked_body_reaches_the_worker_whole(gw: Gateway, worker: SimWorker, body: bytes):
    async with wire(gw) as to:
        await to.send(*(to.request(body, "transfer-encoding: chunked") + to.request(HELLO)).partition(b"o"))
        assert [(await to.reply()).status, (await to.reply()).status] == [200, 200]
        ours, plain = worker.requests[-2:]
        assert ours.body == plain.body
        assert ours.header(b"content-length") == str(len(plain.body))


@pytest.mark.parametrize("form", ["with its length", "chunked"])
async def test_a_large_body_reaches_the_worker_whole(gw: Gateway, worker: SimWorker, form: str):
    text = b"tide " * 100_000
    # A field of the vendor's own, with which a worker is never asked for a stream in place of a reply that takes long.
    body = b'{"model":"llama","max_tokens":1,"of_the_vendor":1,"prompt":"' + text + b'"}'
    line = "POST /v1/completions HTTP/1.1"
    async with wire(gw) as to:
        if form == "chunked":
            pieces = [body[at : at + 70_000] for at in range(0, len(body), 70_000)]
            await to.send(to.request(chunked(*pieces), "transfer-encoding: chunked", line=line))
        else:
            await to.send(to.request(body, line=line))
        assert (await to.reply()).status == 200
        assert worker.requests[-1].body == body.replace(b"llama", b"sim")


async def test_a_client_that_waits_for_100_continue_gets_it_and_then_its_answer(gw: Gateway):
    async with wire(gw) as to:
        await to.send(to.request(b"", f"content-length: {len(HELLO)}", "expect: 100-continue"))
        assert (await to.reply()).status == 100
        await to.send(HELLO)
        assert (await to.reply()).status == 200


@pytest.mark.parametrize(
    ("header", "key", "status"),
    [
        (f"content-length: {BODY_LIMIT + 1}", "", 413),
        ("content-length: 9", "wrong", 401),
        ("content-encoding: br\r\ncontent-length: 9", "", 415),
    ],
)
async def test_a_client_that_waits_for_100_continue_is_refused_before_it_sends_its_body(
    gw: Gateway, header: str, key: str, status: int
):
    async with wire(gw) as to:
        await to.send(to.request(b"", *header.split("\r\n"), "expect: 100-continue", key=key))
        assert (await to.reply()).status == status


async def test_too_large_a_body_is_refused_by_its_length_before_it_comes(gw: Gateway):
    async with wire(gw) as to:
        await to.send(to.request(b"{", f"content-length: {BODY_LIMIT + 1}"))
        assert (await to.reply()).code == "request_too_large"


async def test_too_large_a_body_without_a_length_is_refused_as_soon_as_it_is(gw: Gateway, worker: SimWorker):
    before = len(worker.requests)
    async with wire(gw) as to:
        full = chunked(b" " * BODY_LIMIT)[: -len(b"0\r\n\r\n")]
        await to.send(to.request(full, "transfer-encoding: chunked"))
        await to.send(b"1\r\n \r\n")
        assert (await to.reply()).code == "request_too_large"
    async with wire(gw) as to:
        await to.send(to.request(full + b"0\r\n\r\n", "transfer-encoding: chunked"))
        assert (await to.reply()).code == "invalid_json"  # all blanks, but not too large
    assert len(worker.requests) == before


# One connection, many requests


async def test_pipelined_requests_are_answered_in_their_order(gw: Gateway):
    async with wire(gw) as to:
        requests = [
            to.request(STREAMED, "x-request-id: stream"),
            to.request(b"[", "x-request-id: bad"),
            to.request(b"", "x-request-id: models", line="GET /v1/models HTTP/1.1"),
            to.request(HELLO, "x-request-id: whole"),
        ]
        await to.send(b"".join(requests))
        replies = [await to.reply() for _ in requests]
    assert [(reply.headers["x-request-id"], reply.status) for reply in replies] == [
        ("stream", 200),
        ("bad", 400),
        ("models", 200),
        ("whole", 200),
    ]
    assert replies[0].body.endswith(b"data: [DONE]\n\n")


async def test_large_pipelined_requests_are_answered_in_their_order(gw: Gateway):
    """Reading is paused while one waits behind another, and has to go on again."""
    body = HELLO[:-1] + b',"x":"' + b"x" * 300_000 + b'"}'
    async with wire(gw) as to:
        sending = asyncio.create_task(to.send(*(to.request(body, f"x-request-id: {n}") for n in range(4))))
        replies = [await to.reply() for _ in range(4)]
        await sending
    assert [(reply.headers["x-request-id"], reply.status) for reply in replies] == [
        (str(n), 200) for n in range(4)
    ]


async def test_a_connection_serves_on_after_each_kind_of_error(gw: Gateway):
    async with wire(gw) as to:
        for request, status in (
            (to.request(b"{"), 400),
            (to.request(HELLO, key="wrong"), 401),
            (to.request(HELLO, line="POST /v1/responses HTTP/1.1"), 404),
            (to.request(HELLO.replace(b"llama", b"lama")), 404),
            (to.request(HELLO, line=f"PUT {CHAT} HTTP/1.1"), 405),
            (to.request(HELLO, line="DELETE /v1/models HTTP/1.1"), 405),
            (to.request(HELLO, "content-encoding: gzip"), 415),
            (to.request(HELLO.replace(b'"max_tokens":2', b'"max_tokens":-1')), 400),
            (to.request(STREAMED), 200),
            (to.request(HELLO), 200),
        ):
            await to.send(request)
            reply = await to.reply()
            assert reply.status == status
            assert "connection" not in reply.headers


async def test_a_client_that_wants_to_go_is_let_go(gw: Gateway):
    for body in (HELLO, STREAMED):
        async with wire(gw) as to:
            await to.send(to.request(body, "connection: close"))
            reply = await to.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await to.rest() == b""


# Other dialects


async def test_http_1_0_is_answered_and_the_connection_closed(gw: Gateway):
    async with wire(gw) as to:
        await to.send(to.request(HELLO, line=f"POST {CHAT} HTTP/1.0"))
        reply = await to.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert json.loads(reply.body)["model"] == "llama"
        assert await to.rest() == b""


async def test_a_client_that_offers_http_2_is_answered_over_http_1(gw: Gateway):
    """As Java's HttpClient does with every first request where there is no TLS."""
    offer = (
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAA",
    )
    async with wire(gw) as to:
        await to.send(to.request(HELLO, *offer))
        assert (await to.reply()).status == 200
        await to.send(to.request(HELLO))
        assert (await to.reply()).status == 200


@pytest.mark.parametrize(
    "line", ["GET http://tidegate/health/live HTTP/1.1", "GET /health/live?a=b HTTP/1.1"]
)
async def test_a_target_in_another_form_is_understood(gw: Gateway, line: str):
    async with wire(gw) as to:
        await to.send(to.request(b"", line=line))
        assert (await to.reply()).body == b'{"status":"ok"}'
