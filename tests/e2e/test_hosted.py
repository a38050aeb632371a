"""Hosted providers: several keys for one endpoint, and TLS, as clients and operators of a whole gateway see them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import openai
import pytest
import trustme
from failing import ask, attempts, hosted, models, of_endpoint
from pool import endpoint, gateway, until
from scripted import Peer, Script, Server, answers

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FIRST, SECOND = "sk-harbour-000000000001", "sk-harbour-000000000002"
REPLY = (
    b'{"id":"c","object":"chat.completion","model":"sim","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"tides"},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)


def reply(status: int, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
    return head % (status, headers, len(body)) + body


OK = reply(200, REPLY)
LIMITED = reply(
    429,
    b'{"error":{"message":"Rate limit reached for gpt-4o in organization org-harbour","type":"tokens","code":"rate_limit_exceeded"}}',
    b"retry-after-ms: 40000\r\n",
)
BAD_KEY = reply(401, b'{"error":{"message":"Incorrect API key provided","code":"invalid_api_key"}}')
NO_MONEY = reply(
    429, b'{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":null}}'
)


class Provider:
    """A provider that answers each key as it is told to."""

    def __init__(self, first: bytes, second: bytes) -> None:
        self.replies = {FIRST: first, SECOND: second}
        self.asked: list[str] = []
        """The keys that came, in order."""

    def script(self) -> Script:
        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                key = peer.requests[-1][0].partition(b"Bearer ")[2].partition(b"\r\n")[0].decode()
                self.asked.append(key)
                await peer.send(self.replies[key])

        return script


@asynccontextmanager
async def provided(
    home: Path, first: bytes, second: bytes, *others: Any
) -> AsyncIterator[tuple[Any, Provider]]:
    """A gateway over a provider named `bad` with two keys, and then these endpoints."""
    provider = Provider(first, second)
    async with Server(provider.script()) as server:
        section = {**hosted(server.port), "api_keys": [FIRST, SECOND]}
        async with gateway(home, models=models(section, *others)) as gw:
            yield gw, provider


def keys(page: Any) -> dict[str, float]:
    states = ("usable", "paused", "set_aside")
    name = 'tidegate_endpoint_keys{endpoint="bad",model="llama",state="%s"}'
    return {state: page[name % state] for state in states}


async def test_keys_are_used_in_turn_and_one_whose_rate_is_used_up_is_left_out(tmp_path: Path):
    async with provided(tmp_path, OK, OK) as (gw, provider):
        client = gw.client()
        for _ in range(4):
            await ask(client)
        assert provider.asked == [FIRST, SECOND, FIRST, SECOND]
        provider.replies[FIRST] = LIMITED
        for _ in range(3):
            headers, text = await ask(client)
            assert (headers["x-tidegate-attempts"], text) == ("1", "tides")
        assert provider.asked[4:] == [FIRST, SECOND, SECOND, SECOND]
        page = await gw.metrics()
        assert keys(page) == {"usable": 1, "paused": 1, "set_aside": 0}
        assert of_endpoint(page, "available") == 1


async def test_where_all_keys_pause_calls_go_elsewhere_until_the_first_is_back(tmp_path: Path):
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker:
        async with provided(tmp_path, LIMITED, LIMITED, endpoint(worker, "good")) as (gw, provider):
            client = gw.client()
            tried = [(await ask(client))[0]["x-tidegate-attempts"] for _ in range(3)]
            assert tried == ["2", "1", "1"]
            assert provider.asked == [FIRST, SECOND]
            page = await gw.metrics()
            assert keys(page) == {"usable": 0, "paused": 2, "set_aside": 0}
            assert of_endpoint(page, "available") == 0
            assert of_endpoint(page, "ejections_total") == 0


async def test_a_client_hears_when_the_first_key_is_back_and_nothing_of_our_account(tmp_path: Path):
    async with provided(tmp_path, LIMITED, LIMITED) as (gw, _):
        client = gw.client()
        with pytest.raises(openai.RateLimitError) as limited:
            await ask(client, service_tier="default")  # flex would wait
        assert "org-harbour" not in limited.value.response.text
        assert 20 < int(limited.value.response.headers["retry-after"]) <= 40
        with pytest.raises(openai.InternalServerError, match="bad: limits the rate of our keys") as refused:
            await ask(client, service_tier="default")
        assert refused.value.code == "no_endpoint_available"
        assert 20 < int(refused.value.response.headers["retry-after"]) <= 40


@pytest.mark.parametrize("refusal", [BAD_KEY, NO_MONEY], ids=["bad key", "no money"])
async def test_a_key_that_the_provider_refuses_is_set_aside_and_its_error_is_never_the_tenants(
    tmp_path: Path, refusal: bytes, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "backends")
    async with provided(tmp_path, refusal, OK) as (gw, provider):
        client = gw.client()
        for _ in range(3):
            assert (await ask(client))[1] == "tides"
        assert provider.asked == [FIRST, SECOND, SECOND, SECOND]
        assert keys(await gw.metrics()) == {"usable": 1, "paused": 0, "set_aside": 1}

        provider.replies[SECOND] = refusal
        with pytest.raises(openai.InternalServerError) as failed:
            await ask(client)
        assert (failed.value.status_code, failed.value.code) == (502, "upstream_misconfigured")
        assert "takes none of our keys" in failed.value.response.text
        assert "API key" not in failed.value.response.text
        with pytest.raises(openai.InternalServerError, match="bad: takes none of our keys") as refused:
            await ask(client, service_tier="default")  # flex would wait
        assert (refused.value.status_code, refused.value.code) == (503, "no_endpoint_available")
        assert int(refused.value.response.headers["retry-after"]) > 120
    assert "key 1 (...0001) is set aside" in caplog.text
    assert FIRST not in caplog.text


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def certified(authority: trustme.CA, name: str = "localhost", **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **options).configure_cert(context)
    return context


EXPIRED = {"not_before": datetime(2020, 1, 1, tzinfo=UTC), "not_after": datetime(2020, 2, 1, tzinfo=UTC)}
BAD_CERTIFICATES: dict[str, tuple[dict[str, Any], bool, str]] = {
    "wrong name": ({"name": "other.example"}, True, "localhost"),
    "unknown authority": ({}, False, "local issuer certificate"),
    "expired": (EXPIRED, True, "expired"),
}


@asynccontextmanager
async def encrypted(
    home: Path, authority: trustme.CA, context: ssl.SSLContext, *, trusted: bool
) -> AsyncIterator[tuple[dict[str, Any], Server]]:
    """An endpoint named `bad` that speaks TLS, and its server."""
    async with Server(answers(OK), tls=context) as server:
        section = {**hosted(server.port), "openai": f"https://localhost:{server.port}/v1", "api_key": FIRST}
        if trusted:
            authority.cert_pem.write_to_path(home / "ca.pem")
            section["ca_file"] = str(home / "ca.pem")
        yield section, server


async def test_a_provider_with_a_certificate_of_an_authority_of_ones_own_is_asked(
    tmp_path: Path, authority: trustme.CA
):
    async with encrypted(tmp_path, authority, certified(authority), trusted=True) as (section, server):
        async with gateway(tmp_path, models=models(section)) as gw:
            headers, text = await ask(gw.client())
            assert (headers["x-tidegate-endpoint"], text) == ("bad", "tides")
            assert b"authorization: Bearer " + FIRST.encode() in server.peers[0].requests[0][0]


@pytest.mark.parametrize("fault", BAD_CERTIFICATES)
async def test_a_bad_certificate_fails_over_and_is_named_where_nobody_else_is_left(
    tmp_path: Path, authority: trustme.CA, fault: str
):
    options, trusted, says = BAD_CERTIFICATES[fault]
    async with (
        encrypted(tmp_path, authority, certified(authority, **options), trusted=trusted) as (section, server),
        SimWorker(WorkerSpec(decode_s_per_token=0)) as worker,
    ):
        served = models(section, endpoint(worker, "good"))
        served["alone"] = models(section)["llama"]
        async with gateway(tmp_path, models=served) as gw:
            client = gw.client()
            headers, _ = await ask(client)
            assert (headers["x-tidegate-endpoint"], headers["x-tidegate-attempts"]) == ("good", "2")
            assert attempts(await gw.metrics())["bad", "upstream_tls_failed"] == 1
            with pytest.raises(openai.InternalServerError, match=says) as failed:
                await ask(client, model="alone")
            assert (failed.value.status_code, failed.value.code) == (502, "upstream_tls_failed")
            # Not a byte of the call, nor of our key, has gone to whoever that is.
            assert not server.peers


async def test_keys_that_pause_are_used_again(tmp_path: Path):
    soon = LIMITED.replace(b"40000", b"01000")
    async with provided(tmp_path, soon, soon) as (gw, provider):
        client = gw.client()
        with pytest.raises(openai.RateLimitError):
            await ask(client)
        provider.replies = dict.fromkeys(provider.replies, OK)

        async def answered() -> bool:
            try:
                return (await ask(client, service_tier="default"))[1] == "tides"
            except openai.InternalServerError:
                await asyncio.sleep(0.05)
                return False

        await until(answered)
        assert keys(await gw.metrics())["usable"] >= 1
