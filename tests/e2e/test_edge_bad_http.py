"""HTTP as those speak it who mean harm, or who speak something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from pool import Gateway, gateway
from wire import HELLO, LIVE, STREAMED, chunked, wire

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEADER_LIMIT = 4_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker() -> AsyncIterator[SimWorker]:
    async with SimWorker(WorkerSpec(decode_s_per_token=0.01)) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(worker: SimWorker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    limits = {"header_bytes": HEADER_LIMIT}
    async with gateway(tmp_path_factory.mktemp("gateway"), worker, limits=limits) as running:
        yield running


BAD_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version that there is": b"GET / HTTP/9.9\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a length that is none": b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    "length and chunks": b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "another encoding": b"POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
    "a chunk that is none": b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\nhost : a\r\n\r\n",
    "a header over two lines": b"GET / HTTP/1.1\r\nx-request-id: a\r\n b: c\r\n\r\n",
    "a bare CR": b"GET / HTTP/1.1\r\nx-request-id: a\rx-evil: 1\r\n\r\n",
    "a NUL": b"GET / HTTP/1.1\r\nx-request-id: a\0b\r\n\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("sent", BAD_HTTP.values(), ids=BAD_HTTP)
async def test_what_is_no_http_is_answered_in_the_usual_shape_and_the_connection_closed(
    gw: Gateway, sent: bytes
):
    async with wire(gw) as to:
        await to.send(sent)
        reply = await to.reply()
        assert (reply.status, reply.code) == (400, "invalid_http")
        assert (reply.headers["content-type"], reply.headers["connection"]) == ("application/json", "close")
        assert await to.rest() == b""


async def test_what_is_no_http_is_answered_with_a_request_id_as_well(gw: Gateway):
    async with wire(gw) as to:
        await to.send(b"\0")
        assert (await to.reply()).headers["x-request-id"].startswith("req_")


async def test_what_is_no_http_behind_a_request_does_not_spoil_its_stream(gw: Gateway):
    async with wire(gw) as to:
        await to.send(to.request(STREAMED.replace(b'"max_tokens":2', b'"ignore_eos":true')))
        await to.read_until(b'"content":" ')
        await to.send(b"\0")
        assert b"HTTP/1.1" not in await to.rest()


# Headers


async def test_headers_may_be_large(gw: Gateway):
    async with wire(gw) as to:
        await to.send(
            to.request(b"", "x: " + "x" * (HEADER_LIMIT // 2), *["y: z"] * (HEADER_LIMIT // 20), line=LIVE)
        )
        assert (await to.reply()).status == 200


@pytest.mark.parametrize(
    "lines", [["x: " + "x" * HEADER_LIMIT], ["x: y"] * HEADER_LIMIT], ids=["long", "many"]
)
async def test_larger_headers_are_refused_and_the_connection_closed(gw: Gateway, lines: list[str]):
    async with wire(gw) as to:
        await to.send(to.request(b"", *lines, line=LIVE))
        reply = await to.reply()
        assert (reply.status, reply.code) == (431, "headers_too_large")
        assert await to.rest() == b""


async def test_headers_without_an_end_are_cut_off(gw: Gateway):
    async with wire(gw) as to:
        with pytest.raises(ConnectionError):
            await to.send(b"GET / HTTP/1.1\r\nx: ", *[b"x" * 100_000] * 1000)


async def test_fields_behind_a_body_are_limited_as_headers_are(gw: Gateway):
    fields = b"x: y\r\n" * HEADER_LIMIT
    async with wire(gw) as to:
        await to.send(to.request(chunked(HELLO, trailer=fields), "transfer-encoding: chunked"))
        assert (await to.reply()).status == 431


async def test_fields_behind_a_body_are_no_headers(gw: Gateway):
    async with wire(gw) as to:
        body = chunked(HELLO, trailer=f"authorization: Bearer {gw.key}\r\n".encode())
        await to.send(to.request(body, "transfer-encoding: chunked", key="wrong"))
        assert (await to.reply()).status == 401
