"""A worker that joins is asked for its models and for a token before it gets calls."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import Any

import pytest
from scripted import Server, until
from test_fleet import CALL, SETTINGS, outgoing

from backends.fleet import Fleet
from backends.member import CONFIG, Member
from backends.worker import Access
from loadtest.worker import Fault, SimWorker, WorkerSpec
from routing.types import Endpoint

LIMIT_S = 60.0
QUICK = WorkerSpec(model="sim", decode_s_per_token=0)


@asynccontextmanager
async def joining(url: str, served_model: str = "sim", **fields: Any):
    """A member that joins a fleet which serves already."""
    async with Fleet({}, SETTINGS) as fleet:
        endpoint = Endpoint("w", "m", served_model, url=url, **fields)
        fleet.agree(CONFIG, {"m": [(endpoint, Access(url))]})
        yield fleet.members[0]


def reason(member: Member) -> str | None:
    return member.load(time.monotonic()).unavailable


async def passed(member: Member) -> None:
    await until(lambda: member.probes["ok"] == 1, LIMIT_S)


async def says(member: Member, *words: str) -> None:
    await until(lambda: all(word in (reason(member) or "") for word in words), LIMIT_S)


async def test_it_gets_calls_once_it_has_made_a_token_and_tells_its_context():
    async with SimWorker(QUICK) as worker, joining(worker.url) as member:
        assert reason(member) == "it is being probed"
        await passed(member)
        assert reason(member) is None
        assert member.endpoint.context_tokens == worker.spec.max_model_len
        (request,) = worker.requests
        assert request.target == "/v1/completions"
        assert json.loads(request.body)["max_tokens"] == 1
        async with member.attempt(outgoing(), CALL) as attempt:
            assert b'"choices"' in await attempt.reply.read_whole(1 << 20)


async def test_the_context_that_is_configured_stands():
    async with SimWorker(QUICK) as worker, joining(worker.url, context_tokens=77) as member:
        await passed(member)
        assert member.endpoint.context_tokens == 77
        member.redeclare(Endpoint("w", "m", "sim", url=worker.url))
        assert member.endpoint.context_tokens == worker.spec.max_model_len


async def test_one_without_the_model_gets_none_and_says_what_it_has():
    async with SimWorker(QUICK) as worker, joining(worker.url, "llama") as member:
        await says(member, "probe failed: it does not serve llama, but sim")
        assert worker.requests == ()
        assert member.probes["model_missing"] >= 1


async def test_one_whose_completions_fail_gets_none_until_they_do_not():
    async with SimWorker(QUICK) as worker:
        worker.order(Fault(kind="status", status=500, path="/v1/completions"))
        async with joining(worker.url) as member:
            await says(member, "probe failed: a completion of one token failed")
            worker.order()
            await passed(member)
            assert reason(member) is None


async def test_one_that_is_not_there_yet_is_found_when_it_is():
    async with SimWorker(QUICK) as worker:
        port, url = worker.port, worker.url
    async with joining(url) as member:
        await says(member, "probe failed: cannot connect")
        assert member.probes["unreachable"] >= 1
        async with SimWorker(WorkerSpec(model="sim", port=port, decode_s_per_token=0)):
            await passed(member)


async def test_one_that_only_makes_embeddings_is_asked_for_one():
    async def script(peer):
        while True:
            await peer.request()
            head = peer.requests[-1][0]
            body, status = b"", b"200 OK"
            if b"/v1/models" in head:
                body = b'{"data":[{"id":"sim"}]}'
            elif b"/v1/completions" in head:
                status, body = b"400 Bad Request", b'{"error":{"message":"no completions here"}}'
            elif b"/v1/embeddings" in head:
                body = b'{"data":[{"embedding":[0.5]}]}'
            await peer.send(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    async with Server(script) as server, joining(f"http://127.0.0.1:{server.port}") as member:
        await passed(member)
        assert reason(member) is None


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"<html>", "/v1/models is no list of models"),
        (b'{"data":[{"id":"\x8f"}]}', "/v1/models is no list of models"),
        (b'{"data":[]}', "it does not serve sim, but nothing"),
        (b'{"data":[{"id":"sim"}]}', "the answer is none"),
    ],
)
async def test_what_is_no_vllm_server_gets_none(page: bytes, words: str):
    async def script(peer):
        while True:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page))

    async with Server(script) as server, joining(f"http://127.0.0.1:{server.port}") as member:
        await says(member, words)


async def test_one_that_leaves_while_it_is_probed_is_probed_no_more():
    async with SimWorker(QUICK) as worker:
        worker.order(Fault(kind="hang", path="/v1/completions"))
        async with Fleet({}, SETTINGS) as fleet:
            fleet.agree(CONFIG, {"m": [(Endpoint("w", "m", "sim", url=worker.url), Access(worker.url))]})
            await until(lambda: len(worker.requests) == 1, LIMIT_S)
            fleet.agree(CONFIG, {})
            await until(lambda: not any("of w" in task.get_name() for task in asyncio.all_tasks()), LIMIT_S)
            await until(lambda: worker.stats.open_connections == 0, LIMIT_S)


async def test_who_comes_back_is_remembered():
    async with SimWorker(QUICK) as worker, Fleet({}, SETTINGS) as fleet:
        listed = {"m": [(Endpoint("w", "m", "sim", url=worker.url), Access(worker.url))]}
        for _ in range(2):
            fleet.agree("registered", listed)
            (member,) = fleet.members
            await passed(member)
            member.ejection.fell(time.monotonic())
            fleet.agree("registered", {})
        fleet.agree("registered", listed)
        (member,) = fleet.members
        await passed(member)
        assert reason(member) == "kept out: it comes and goes"
