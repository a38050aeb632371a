"""Keys in a running gateway: they take effect and end within seconds, and none of them is ever written down or shown."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from typing import TYPE_CHECKING

import pytest
from failing import LAST, STREAM, chunk, event, hosted, whole
from gateway_process import LIMIT_S, gateway_beside, get, rows_in, until
from openai import AsyncOpenAI, AuthenticationError
from pool import PRICE, endpoint, gateway
from scripted import Server

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway_process import Gateway
    from scripted import Peer

SEEN_WITHIN_S = 20
"""It takes a second or two, and longer where the machine is busy."""
MASTER_KEY = "the-key-of-the-harbour-master-1234567890"
PROVIDER_KEY = "sk-the-key-that-the-provider-gave-us-1234567890"


def repeated(said: bytes) -> bytes:
    """An error that repeats what the gateway said of itself."""
    return json.dumps({"error": {"message": f"not with {said.decode()}"}}).encode()


INDISCREET: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"a reply of {status}": lambda said, status=status: whole(repeated(said), b"%d No" % status)
        for status in (400, 401, 403, 404, 429, 500, 503)
    },
    "plain text": lambda said: whole(said, b"500 No"),
    "no JSON": whole,
    "no HTTP": lambda said: said,
    "the first event of a stream": lambda said: STREAM + event(repeated(said)) + LAST,
    "a later event of a stream": lambda said: STREAM + chunk("high") + event(repeated(said)) + LAST,
}
"""What an endpoint answers, given the header with the key that it was sent."""


@pytest.mark.parametrize("how", INDISCREET)
async def test_the_key_of_an_endpoint_that_repeats_it_reaches_neither_client_nor_log(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async def answers(peer: Peer) -> None:
        await peer.request()
        head = peer.requests[-1][0]
        said = next(line for line in head.split(b"\r\n") if line.startswith(b"authorization: "))
        assert said == f"authorization: Bearer {PROVIDER_KEY}".encode()
        await peer.send(INDISCREET[how](said))
        await peer.fin()

    for logger in ("gateway", "backends"):
        caplog.set_level(logging.DEBUG, logger)
    async with Server(answers) as server:
        models = {"llama": {"price": PRICE, "endpoints": [{**hosted(server.port), "api_key": PROVIDER_KEY}]}}
        async with gateway(tmp_path, models=models) as gw:
            call = {"model": "llama", "messages": [], "stream": "stream" in how}
            headers = {"authorization": f"Bearer {gw.key}"}
            reply = await gw.http.post("/v1/chat/completions", json=call, headers=headers)
            assert '"error"' in reply.text
            for shown in (reply.text, str(reply.headers), caplog.text):
                assert PROVIDER_KEY not in shown
                assert gw.key not in shown


async def test_a_key_counts_soon_after_it_is_made_and_no_more_after_it_is_revoked_and_is_written_nowhere(
    tmp_path: Path,
):
    async with SimWorker() as worker:
        models = {"llama": {"price": PRICE, "endpoints": [endpoint(worker)]}}
        async with gateway_beside(tmp_path, models, auth={"master_key": MASTER_KEY}) as process:
            (made,) = process.command("keys", "create", "--tenant", "acme")
            await within_seconds(process, made["key"], 200)
            for key in (made["key"], MASTER_KEY):
                await call(process, key)
            process.command("keys", "revoke", made["id"])
            await within_seconds(process, made["key"], 401)
            with pytest.raises(AuthenticationError) as refused:
                await call(process, made["key"])
            await call(process, MASTER_KEY)

            (listed,) = process.command("keys", "list")
            assert listed["id"] == made["id"]
            assert listed["revoked"]
            files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
            del files[process.config]  # where the master key has to stand
            shown = [json.dumps(listed), process.log.read_text(), refused.value.response.text]
            shown.append(await asyncio.to_thread(process.metrics))
            assert await asyncio.to_thread(process.ended, signal.SIGTERM) == 0

    assert {path.suffix for path in files} >= {".db", ".journal", ".log"}
    assert any(made["id"].encode() in content for path, content in files.items() if path.suffix == ".journal")
    for secret in (made["key"].removeprefix(made["prefix"]).removesuffix(made["last4"]), MASTER_KEY):
        assert not [path for path, content in files.items() if secret.encode() in content]
        assert not [text for text in shown if secret in text]
    assert [(row.tenant, row.key_id) for row in rows_in(tmp_path)] == [
        ("acme", made["id"]),
        ("master", "master"),
        ("master", "master"),
    ]


async def within_seconds(process: Gateway, key: str, status: int) -> None:
    """Wait until the gateway answers this key with this status."""
    headers = {"authorization": f"Bearer {key}"}

    def answered() -> bool:
        return get(f"{process.url}/v1/models", headers)[0] == status

    await asyncio.to_thread(until, answered, process.process, process.log, SEEN_WITHIN_S)


async def call(process: Gateway, key: str) -> None:
    async with AsyncOpenAI(
        base_url=f"{process.url}/v1", api_key=key, max_retries=0, timeout=LIMIT_S
    ) as client:
        await client.chat.completions.create(model="llama", messages=[{"role": "user", "content": "Ebb?"}])
