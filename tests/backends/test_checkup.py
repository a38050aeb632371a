import asyncio
import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import pytest
import trustme
from kv_publisher import Publisher, stored
from scripted import Peer, Server, answers, answers_and_closes

from backends.checkup import Within, checkup
from backends.kv_events import KvSource
from backends.worker import Access
from loadtest.worker import Fault, SimWorker, WorkerSpec
from routing.types import Endpoint

WITHIN = Within(connect_s=10, answer_s=30)
IMPATIENT = Within(connect_s=0.3, answer_s=0.3)
INSTANT = WorkerSpec(decode_s_per_token=0)


def reply(body: object, *, status: int = 200, date_s: float | None = None) -> bytes:
    content = json.dumps(body).encode()
    date = f"date: {formatdate(date_s, usegmt=True)}\r\n" if date_s is not None else ""
    head = f"HTTP/1.1 {status} Whatever\r\n{date}content-length: {len(content)}\r\n\r\n"
    return head.encode() + content


MODELS = {"object": "list", "data": [{"id": "gpt", "object": "model"}]}


async def found(url: str, kind: str = "worker", model: str = "sim", within: Within = WITHIN, **access: Any):
    """What is not in order, each with its advice; and all that is."""
    context_tokens = access.pop("context_tokens", None)
    endpoint = Endpoint("w", "llama", model, kind, url=url, context_tokens=context_tokens)
    findings = await checkup("llama at w", endpoint, Access(url, **access), within)
    assert all(each.about == "llama at w" for each in findings)
    assert all(bool(each.advice) == (each.level != "ok") for each in findings)
    wrong = [(each.level, each.found) for each in findings if each.level != "ok"]
    return wrong, [each.found for each in findings if each.level == "ok"]


async def test_a_worker_that_works_is_asked_for_a_token():
    async with SimWorker(INSTANT) as worker:
        wrong, right = await found(worker.url)
        assert wrong == []
        assert right[0] == f"127.0.0.1:{worker.port} accepts connections"
        assert right[1] == "it has sim"
        assert right[2].startswith("it answers /completions after 0.")
        assert [request.target for request in worker.requests] == ["/v1/completions"]


async def test_a_model_for_embeddings_is_asked_for_some():
    async with SimWorker(WorkerSpec(embeddings=True, decode_s_per_token=0)) as worker:
        wrong, _ = await found(worker.url)
        assert wrong == []


async def test_a_name_without_an_address_is_said_to_have_none():
    wrong, _ = await found("http://nowhere.invalid:9")
    assert wrong[0][1].startswith("nowhere.invalid has no address: ")


async def test_a_port_where_nobody_listens_is_named():
    async with SimWorker(INSTANT) as worker:
        url, port = worker.url, worker.port
    wrong, _ = await found(url)
    assert wrong == [("error", f"nothing accepts connections at 127.0.0.1:{port}: Connection refused")]


async def test_another_model_is_named_with_what_is_there():
    async with SimWorker(INSTANT) as worker:
        wrong, _ = await found(worker.url, model="llama")
        assert wrong == [("error", "it does not list llama, but sim")]


async def test_a_context_longer_than_the_worker_takes_is_an_error():
    async with SimWorker(WorkerSpec(max_model_len=4096, decode_s_per_token=0)) as worker:
        wrong, _ = await found(worker.url, context_tokens=8192)
        assert wrong == [
            ("error", "context_tokens is 8192, but it takes 4096: longer calls would fail there")
        ]
        wrong, right = await found(worker.url, context_tokens=2048)
        assert wrong == []
        assert "it takes 4096 tokens, of which 2048 are used" in right


async def test_an_engine_that_is_dead_behind_its_server_is_found():
    faults = (Fault("status", path="/v1/completions"), Fault("status", path="/v1/embeddings", status=404))
    async with SimWorker(WorkerSpec(faults=faults)) as worker:
        wrong, _ = await found(worker.url)
        assert wrong == [
            ("error", "it makes no token: /completions gives a 500; /embeddings gives a 404"),
        ]


async def test_a_worker_that_hangs_is_not_waited_for():
    async with SimWorker(WorkerSpec(faults=(Fault("hang", path="/v1/models"),))) as worker:
        wrong, _ = await found(worker.url, within=IMPATIENT)
        assert wrong == [("error", "/models is not answered within 0.3 s")]


async def test_what_is_no_http_and_what_is_no_list_of_models_is_told():
    async with Server(answers_and_closes(b"SSH-2.0-OpenSSH_9.2\r\n")) as server:
        wrong, _ = await found(f"http://127.0.0.1:{server.port}")
        assert wrong[0][1].startswith("/models is not answered: ")
    async with Server(answers(reply({"status": "ok"}))) as server:
        wrong, _ = await found(f"http://127.0.0.1:{server.port}")
        assert wrong == [("error", "what it gives as its list of models is none")]


async def test_a_provider_is_asked_with_each_key_and_for_no_token():
    async def one_key_is_right(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(reply(MODELS) if b"sk-1" in peer.requests[-1][0] else reply({}, status=401))

    async with Server(one_key_is_right) as server:
        wrong, right = await found(
            f"http://127.0.0.1:{server.port}/v1", "openai", "gpt", api_keys=("sk-1", "sk-2")
        )
        assert wrong == [("error", "it refuses key 2 of 2 (401)")]
        assert "it has gpt" in right


async def test_a_provider_that_does_not_list_the_model_may_have_it_all_the_same():
    async with Server(answers(reply(MODELS))) as server:
        wrong, _ = await found(f"http://127.0.0.1:{server.port}/v1", "openai", "gpt-5")
        assert wrong == [("warning", "it does not list gpt-5, but gpt")]
    async with Server(answers(reply({}, status=404))) as server:
        wrong, _ = await found(f"http://127.0.0.1:{server.port}/v1", "openai", "gpt")
        assert wrong == [("warning", "it lists no models (404)")]


@pytest.mark.parametrize(("off_s", "words"), [(3600, "ahead of"), (-3600, "behind")])
async def test_a_clock_that_is_off_is_told(off_s, words):
    async with Server(answers(reply(MODELS, date_s=time.time() + off_s))) as server:
        wrong, _ = await found(f"http://127.0.0.1:{server.port}/v1", "openai", "gpt")
        assert [level for level, _ in wrong] == ["warning"]
        assert f"s {words} ours" in wrong[0][1]


async def test_certificates_that_are_not_trusted_or_end_soon_are_told(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    soon = datetime.now(UTC) + timedelta(days=3, hours=1)
    authority.issue_cert("localhost", not_after=soon).configure_cert(tls)
    async with Server(answers(reply(MODELS)), tls=tls) as server:
        url = f"https://localhost:{server.port}/v1"
        wrong, _ = await found(url, "openai", "gpt")
        assert wrong[0][1].startswith(f"the certificate of localhost:{server.port} is not trusted: ")
        wrong, right = await found(url, "openai", "gpt", ca_file=str(tmp_path / "ca.pem"))
        assert [words.partition(",")[0] for _, words in wrong] == ["its certificate ends in 3 days"]
        assert "it has gpt" in right


async def test_plain_http_where_tls_is_expected_is_told():
    async with SimWorker(INSTANT) as worker:
        wrong, _ = await found(f"https://127.0.0.1:{worker.port}")
        assert "does not speak TLS as we do" in wrong[0][1]


async def publishing(publisher: Publisher, worker: SimWorker) -> None:
    """What vLLM does: it tells of a prompt as soon as it has read it."""
    while len(worker.requests) < 2:  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0.01)
    await publisher.publish(stored(*range(40)))


async def test_kv_events_have_to_tell_of_the_prompt_that_is_sent():
    async with SimWorker(INSTANT) as worker, Publisher() as publisher:
        telling = asyncio.create_task(publishing(publisher, worker))
        wrong, right = await found(worker.url, kv_events=KvSource(publisher.events, publisher.replay))
        await telling
        assert wrong == []
        assert f"KV events of {publisher.events} tell of what it computes" in right
        assert f"{publisher.replay} sends events again" in right


async def test_kv_events_of_another_worker_or_of_nobody_are_told():
    quick = Within(connect_s=1, answer_s=30)
    async with SimWorker(INSTANT) as worker, Publisher() as publisher:
        source = KvSource(publisher.events)
        wrong, _ = await found(worker.url, within=quick, kv_events=source)
        assert wrong == [
            ("error", f"{publisher.events} says nothing of a prompt that the worker has just computed")
        ]
    async with SimWorker(INSTANT) as worker:
        wrong, _ = await found(worker.url, within=quick, kv_events=source)
        assert wrong == [("error", f"nobody publishes KV events at {publisher.events}")]
