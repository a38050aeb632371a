"""A provider's server and the backend that reaches it through litellm; where litellm is not, its tests are skipped."""

import json
import time
from contextlib import asynccontextmanager

import pytest
from provider_wire import (
    BEDROCK,
    CACHED_TOKENS,
    COMPLETION_TOKENS,
    KEY,
    PROMPT_TOKENS,
    PROVIDERS,
    VERTEX,
    with_token,
)
from scripted import Server

from backends.incoming import Patience
from backends.litellm_api import LiteLLMAccess, LiteLLMBackend
from backends.litellm_thread import INSTALL, LiteLLMThread, is_installed
from backends.sse import CompletionStream, Shown
from backends.worker import Outgoing
from routing.types import Usage

if not is_installed():
    pytest.skip(f"litellm is not installed: {INSTALL}", allow_module_level=True)


LITELLMS_OWN_WARNINGS = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:.*ReadOnly:UserWarning"
)
"""On the versions of what it stands on that are here."""
USED = Usage(PROMPT_TOKENS, CACHED_TOKENS, COMPLETION_TOKENS)
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Why are there tides?"}]}
PATIENT = Patience(first_byte_s=30.0, silence_s=30.0, total_s=60.0)
each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)


@asynccontextmanager
async def at(provider, script, patience=PATIENT, **params: object):
    """A server that follows the script, and the backend that reaches it."""
    async with Server(with_token(script)) as server, LiteLLMThread() as thread:
        access = LiteLLMAccess(provider.model, keys_of(provider), {**provider.params(server.port), **params})
        yield server, LiteLLMBackend(access, thread, patience)


def keys_of(provider):
    return () if provider in (BEDROCK, VERTEX) else (KEY,)


def call(body, api="/chat/completions", within_s=60.0) -> Outgoing:
    stream = bool(body.get("stream"))
    return Outgoing(api, json.dumps(body).encode(), "request-1", stream, time.monotonic() + within_s)


async def whole(backend, limit_bytes=1 << 24, api="/chat/completions", **body: object) -> dict:
    async with backend.open(call({**CHAT, **body}, api)) as reply:
        return json.loads(await reply.read_whole(limit_bytes))


async def streamed(backend, **body: object) -> CompletionStream:
    """The stream as the gateway reads it, with what it shows in `events`."""
    stream = CompletionStream(Shown("shown", usage=True), 1 << 20)
    stream.events = []
    async with backend.open(call({**CHAT, **body, "stream": True})) as reply:
        while block := await reply.read():
            shown = stream.feed(block).decode()
            stream.events += [json.loads(event[6:]) for event in shown.split("\n\n") if event]
    stream.end()
    return stream


def deltas(stream) -> list[dict]:
    return [choice["delta"] for event in stream.events for choice in event["choices"]]


def sent(server) -> tuple[str, str, dict]:
    """Request line, headers and body of the last request but one for a token."""
    head, body = [each for peer in server.peers for each in peer.requests if b"grant_type" not in each[1]][-1]
    line, _, headers = head.decode().partition("\r\n")
    return line, headers.lower(), json.loads(body)
