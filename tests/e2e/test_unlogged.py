"""Neither keys nor prompts nor answers are in the log, at any level, whatever goes wrong; unless a tenant was chosen for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from gateway_process import gateway_process
from scripted import Server, answers_and_closes

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from gateway_process import Gateway

PROMPT = "the-tide-of-1607"
OF_PROVIDER = "sk-provider-0123456789abcdef"
MASTER = "not-of-any-known-form"


def ask(gateway: Gateway, key: str, path: str = "/v1/chat/completions", **more: Any) -> int:
    host, port = gateway.address
    connection = http.client.HTTPConnection(host, port, timeout=60)
    body = {"model": "llama", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, **more}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    reply = connection.getresponse()
    reply.read()
    connection.close()
    return reply.status


def quoting(status: bytes, what: str) -> bytes:
    """A provider that says in its error what it was sent."""
    said = json.dumps({"error": {"message": f"not with this: {what}"}}).encode()
    head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(said)) + said


@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_and_no_prompt_is_in_the_log_at_any_level(tmp_path: Path, form: str):
    price = {"input": 1, "output": 2}
    async with (
        SimWorker(WorkerSpec(decode_s_per_token=0)) as worker,
        Server(answers_and_closes(quoting(b"401 Unauthorized", OF_PROVIDER))) as refusing,
        Server(answers_and_closes(quoting(b"500 Internal Server Error", PROMPT))) as broken,
    ):
        hosted = [
            [{"openai": f"http://127.0.0.1:{server.port}/v1", "api_key": OF_PROVIDER}]
            for server in (refusing, broken)
        ]
        models = {
            "llama": {"price": price, "endpoints": [{"worker": worker.url, "model": "sim"}]},
            "refused": {"price": price, "endpoints": hosted[0]},
            "broken": {"price": price, "endpoints": hosted[1]},
        }
        sections = {
            "auth": {"master_key": MASTER},
            "log": {"format": form, "level": "debug", "calls": True},
            "tenants": {"open": {"log_prompts": True}},
        }

        def used() -> tuple[str, list[str]]:
            with gateway_process(tmp_path, models, **sections) as gateway:
                shut, open_ = gateway.new_key("shut"), gateway.new_key("open")
                assert ask(gateway, shut) == 200
                assert ask(gateway, shut, stream=True) == 200
                assert ask(gateway, MASTER) == 200
                assert ask(gateway, shut, model=PROMPT) == 404
                assert ask(gateway, shut, max_tokens=PROMPT) == 400
                assert ask(gateway, f"{shut}x") == 401
                assert ask(gateway, shut, model="refused") >= 400
                assert ask(gateway, shut, model="broken") >= 500
                before = gateway.log.read_text()
                assert ask(gateway, open_, user=f"{open_}") == 200
                gateway.ended(signal.SIGTERM)
                after = gateway.log.read_text().removeprefix(before)
                return before, [after, shut, open_]

        before, (after, *keys) = await asyncio.to_thread(used)
    for secret in (*keys, MASTER, OF_PROVIDER):
        assert secret not in before + after
    assert PROMPT not in before
    assert f"user: {PROMPT}" in after
    if form == "json":
        lines = [json.loads(line) for line in (before + after).splitlines()]
        outcomes = {line["outcome"] for line in lines if line["event"] == "call"}
        assert "ok" in outcomes
        assert len(outcomes) > 1
