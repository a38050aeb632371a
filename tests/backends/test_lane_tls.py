import asyncio
import socket
import ssl
from datetime import UTC, datetime

import pytest
import trustme
from scripted import OK, Server, answers, ask, exchange, lane_at, until

from backends.base import ConnectFailed, ConnectTimeout, ReplyBroken, TlsFailed

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, *names: str, **options: object) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **options).configure_cert(context)
    return context


def trusting(authority: trustme.CA | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if authority is not None:
        authority.configure_trust(context)
    return context


async def test_a_worker_with_a_good_certificate_is_asked(authority):
    tls = server_context(authority, "localhost")
    async with Server(answers(OK), tls=tls) as server:
        async with lane_at(server.port, host="localhost", tls=trusting(authority)) as lane:
            body = bytes(range(256)) * 4000
            for _ in range(3):
                assert await ask(lane, body) == b"ok"
            assert [received for _, received in server.peers[0].requests] == [body] * 3


async def test_an_address_may_be_certified_as_well_as_a_name(authority):
    async with Server(answers(OK), tls=server_context(authority, "127.0.0.1")) as server:
        async with lane_at(server.port, tls=trusting(authority)) as lane:
            assert await ask(lane) == b"ok"


@pytest.mark.parametrize("fault", ["wrong name", "unknown authority", "expired"])
async def test_a_worker_with_a_bad_certificate_is_not_asked(authority, fault: str):
    name = "other.example" if fault == "wrong name" else "localhost"
    if fault == "expired":
        options = {
            "not_before": datetime(2020, 1, 1, tzinfo=UTC),
            "not_after": datetime(2020, 2, 1, tzinfo=UTC),
        }
    else:
        options = {}
    trust = trusting(None if fault == "unknown authority" else authority)
    async with Server(answers(OK), tls=server_context(authority, name, **options)) as server:
        async with lane_at(server.port, host="localhost", tls=trust) as lane:
            with pytest.raises(TlsFailed):
                await ask(lane)
            assert lane.connections == 0
        assert not server.peers


async def answers_plainly(peer):
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await peer.lost()


async def hangs_up(peer):
    await peer.fin()


@pytest.mark.parametrize(("script", "failure"), [(answers_plainly, TlsFailed), (hangs_up, ConnectFailed)])
async def test_a_server_that_speaks_no_tls_or_hangs_up_in_the_handshake_fails_the_connection(
    authority, script, failure
):
    async with Server(script) as server:
        async with lane_at(server.port, host="localhost", tls=trusting(authority)) as lane:
            with pytest.raises(failure):
                await ask(lane)


async def test_a_handshake_that_never_ends_is_late(authority):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with lane_at(port, host="localhost", tls=trusting(authority), connect_s=0.1) as lane:
            with pytest.raises(ConnectTimeout):
                await ask(lane)
            assert lane.connections == 0


async def test_leaving_closes_an_encrypted_connection_at_once(authority):
    async def script(peer):
        await peer.request()
        await peer.send(STREAM + b"2\r\nok\r\n")
        await peer.lost()

    async with Server(script, tls=server_context(authority, "localhost")) as server:
        async with lane_at(server.port, host="localhost", tls=trusting(authority)) as lane:
            async with exchange(lane) as reply:
                assert await reply.read() == b"ok"
            async with asyncio.timeout(0.5):
                await until(lambda: server.peers[0].lost_s is not None)


async def test_an_encrypted_reply_cut_short_is_broken(authority):
    async def script(peer):
        await peer.request()
        await peer.send(STREAM + b"2\r\nok\r\n")
        await peer.fin()

    async with Server(script, tls=server_context(authority, "localhost")) as server:
        async with lane_at(server.port, host="localhost", tls=trusting(authority)) as lane:
            with pytest.raises(ReplyBroken):
                await ask(lane)
