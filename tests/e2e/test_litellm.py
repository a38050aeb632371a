"""A provider that does not speak OpenAI's API, behind the whole gateway, as the official client sees it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from failing import of_endpoint
from pool import PRICE, endpoint, gateway
from provider_wire import (
    ANTHROPIC,
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    KEY,
    PROMPT_TOKENS,
    TEXT,
    Provider,
    never,
    sends,
)
from scripted import Script, Server, until

from backends.litellm_thread import INSTALL, is_installed
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

if not is_installed():
    pytest.skip(f"litellm is not installed: {INSTALL}", allow_module_level=True)
# litellm's own, on the versions of what it stands on that are here.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*ReadOnly:UserWarning")
CHAT: dict[str, Any] = {"model": "llama", "messages": [{"role": "user", "content": "Why are there tides?"}]}


@asynccontextmanager
async def provided(
    home: Path, script: Script, *others: Any, **sections: Any
) -> AsyncIterator[tuple[Any, Server]]:
    """A gateway over a provider named `claude`, and then these endpoints."""
    async with Server(script) as server:
        claude = section(ANTHROPIC, server.port)
        async with gateway(
            home, models={"llama": {"price": PRICE, "endpoints": [claude, *others]}}, **sections
        ) as gw:
            yield gw, server


def section(provider: Provider, port: int) -> dict[str, Any]:
    return {"litellm": provider.model, "name": "claude", "api_key": KEY, "params": provider.params(port)}


async def test_a_whole_reply_is_served_and_metered(tmp_path: Path):
    async with provided(tmp_path, sends(ANTHROPIC.whole)) as (gw, server):
        reply = await gw.client().chat.completions.create(**CHAT)
        (row,) = await gw.rows()
    assert reply.choices[0].message.content == TEXT
    assert reply.model == "llama"
    assert reply.usage.prompt_tokens_details.cached_tokens == CACHED_TOKENS
    assert b"/v1/messages" in server.peers[0].requests[0][0]
    assert_metered(row)


async def test_a_stream_is_served_and_metered(tmp_path: Path):
    async with provided(tmp_path, ANTHROPIC.answers_stream(*ANTHROPIC.events, *ANTHROPIC.finish)) as (gw, _):
        stream = await gw.client().chat.completions.create(**CHAT, stream=True)
        chunks = [chunk async for chunk in stream]
        (row,) = await gw.rows()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.model for chunk in chunks} == {"llama"}
    assert all(chunk.usage is None for chunk in chunks)
    assert row.stream
    assert row.ttft_ms > 0
    assert_metered(row)


def assert_metered(row: Any) -> None:
    assert (row.outcome, row.endpoint, row.estimated) == ("ok", "claude", False)
    counts = (row.prompt_tokens, row.cached_tokens, row.completion_tokens)
    assert counts == (PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS)
    # By litellm's table: 3 USD per million prompt tokens, 0.3 where cached, 15 out.
    assert row.cost_nano_usd == 20 * 3000 + 100 * 300 + 7 * 15000


async def test_an_sdk_raises_its_own_exception_for_a_call_that_is_wrong(tmp_path: Path):
    refused = ANTHROPIC.error(400, "invalid_request_error", "max_tokens: must be at least 1")
    async with provided(tmp_path, sends(refused)) as (gw, _):
        with pytest.raises(openai.BadRequestError, match="max_tokens: must be at least 1"):
            await gw.client().chat.completions.create(**CHAT, stream=True)


async def test_a_key_of_ours_that_is_refused_is_never_the_tenants(tmp_path: Path):
    async with provided(tmp_path, sends(ANTHROPIC.bad_key)) as (gw, _):
        with pytest.raises(openai.APIStatusError) as caught:
            await gw.client().chat.completions.create(**CHAT)
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_misconfigured")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_throttled_provider_is_passed_over(tmp_path: Path, *, stream: bool):
    refused = ANTHROPIC.error(429, "rate_limit_error", "Number of requests has exceeded your rate limit")
    async with SimWorker(WorkerSpec(decode_s_per_token=0)) as worker:
        async with provided(tmp_path, sends(refused), endpoint(worker)) as (gw, _):
            only = {"routing": {"only": ["claude"]}}
            with pytest.raises(openai.RateLimitError) as caught:
                await gw.client().chat.completions.create(**CHAT, stream=stream, extra_body=only)
            assert caught.value.response.headers["retry-after"] == "7"
            assert await gw.client().chat.completions.create(**CHAT, stream=stream)
            page = await gw.metrics()
    assert of_endpoint(page, "available", "claude") == 0


async def test_a_stream_that_breaks_off_ends_in_an_error(tmp_path: Path):
    async with provided(tmp_path, ANTHROPIC.answers_stream(*ANTHROPIC.events)) as (gw, _):
        with pytest.raises(openai.APIError):
            async for _ in await gw.client().chat.completions.create(**CHAT, stream=True):
                pass
        (row,) = await gw.rows()
    assert row.outcome == "upstream_truncated"


async def test_a_client_that_leaves_ends_the_providers_call(tmp_path: Path):
    async with provided(tmp_path, never) as (gw, server):
        with pytest.raises(openai.APITimeoutError):
            await gw.client().with_options(timeout=1.0).chat.completions.create(**CHAT)
        await until(lambda: server.peers[0]._reader.at_eof() or server.peers[0]._writer.is_closing(), 30)
        (row,) = await gw.rows()
    assert row.outcome == "client_left"


async def test_what_one_provider_does_not_know_is_a_400_that_names_it(tmp_path: Path):
    async with provided(tmp_path, never) as (gw, _):
        with pytest.raises(openai.BadRequestError, match="logit_bias") as caught:
            await gw.client().chat.completions.create(**CHAT, logit_bias={"1": 1})
    assert caught.value.code == "upstream_unsupported"
