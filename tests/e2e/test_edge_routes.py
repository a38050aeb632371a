"""The routes beside the calls: models, health and metrics; browsers from other origins; and a gateway without keys."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from pool import HELLO, INSTANT, PRICE, TENANT, Gateway, endpoint, gateway, until

from gateway.subjects import Subjects
from loadtest.worker import Fault, SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example.com"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(INSTANT) as worker:
        llama = {"aliases": ["gpt-4o-mini"], "price": PRICE, "endpoints": [endpoint(worker)]}
        models = {
            "meta-llama/Llama-3.1-8B": llama,
            "embed": {"price": PRICE, "endpoints": [endpoint(worker)]},
        }
        async with gateway(tmp_path_factory.mktemp("gateway"), models=models) as running:
            yield running


# Models


async def test_models_are_listed_as_openais_are(gw: Gateway):
    listed = (await gw.client().models.list()).to_dict()
    assert [model.pop("id") for model in listed["data"]] == ["meta-llama/Llama-3.1-8B", "embed"]
    created = listed["data"][0]["created"]
    assert created > 1_700_000_000
    assert listed == {
        "object": "list",
        "data": [{"object": "model", "created": created, "owned_by": "tidegate"}] * 2,
    }


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "gpt-4o-mini"])
async def test_a_model_is_found_by_its_name_with_a_slash_and_by_its_alias(gw: Gateway, name: str):
    assert (await gw.client().models.retrieve(name)).id == "meta-llama/Llama-3.1-8B"
    headers = {"authorization": f"Bearer {gw.key}"}
    assert (await gw.http.get(f"/v1/models/{name}", headers=headers)).json()["object"] == "model"


async def test_a_model_that_there_is_not_raises_not_found_and_names_what_is_spelled_alike(gw: Gateway):
    with pytest.raises(openai.NotFoundError, match=r"Did you mean meta-llama/Llama-3\.1-8B") as raised:
        await gw.client().models.retrieve("meta-llama/Llama-3-8B")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


# Health and metrics


async def test_it_is_alive_at_once_and_ready_when_a_worker_is_known_to_be_healthy(tmp_path: Path):
    async with SimWorker(INSTANT) as worker:
        worker.order(Fault(kind="status", status=503, path="/health"))
        async with gateway(tmp_path, worker, ready=False, health={"interval_s": 0.05}) as gw:
            ready = await gw.http.get("/health/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "no endpoint can serve"})
            live = await gw.http.get("/health/live")
            assert (live.status_code, live.json()) == (200, {"status": "ok"})

            worker.order()

            async def is_ready() -> bool:
                return (await gw.http.get("/health/ready")).json() == {"status": "ok"}

            await until(is_ready)
            assert (await gw.http.get("/health/ready")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/models/embed"]
)
async def test_head_gets_the_headers_of_get_and_no_body(gw: Gateway, path: str):
    headers = {"authorization": f"Bearer {gw.key}", "x-request-id": "mine"}
    head, get = await gw.http.head(path, headers=headers), await gw.http.get(path, headers=headers)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert get.content
    assert {*head.headers} == {*get.headers}


async def test_metrics_count_calls_tokens_money_and_endpoints(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        client = gw.client()
        usage = (await client.chat.completions.create(**HELLO)).usage
        stream = await client.chat.completions.create(**HELLO, stream=True, service_tier="flex")
        assert [chunk async for chunk in stream]
        for wrong in ({"model": "lama"}, {"messages": []}):
            with pytest.raises(openai.APIStatusError):
                await client.chat.completions.create(**HELLO | wrong)

        page = await gw.metrics()
        assert usage.prompt_tokens > 0
        prompt, completion = 2 * usage.prompt_tokens, 2 * usage.completion_tokens
        expected = {
            'tidegate_calls_total{model="llama",outcome="ok",tier="default"}': 1,
            'tidegate_calls_total{model="llama",outcome="ok",tier="flex"}': 1,
            'tidegate_calls_total{model="llama",outcome="invalid_request",tier="default"}': 1,
            'tidegate_requests_refused_total{code="model_not_found"}': 1,
            'tidegate_attempts_total{endpoint="worker-1",model="llama",outcome="ok"}': 2,
            'tidegate_attempts_total{endpoint="worker-1",model="llama",outcome="rejected"}': 1,
            'tidegate_tokens_total{kind="prompt",model="llama"}': prompt,
            'tidegate_tokens_total{kind="completion",model="llama"}': completion,
            'tidegate_money_nano_usd_total{kind="charge",model="llama"}': 1000 * prompt + 2000 * completion,
            'tidegate_ttft_seconds_count{model="llama"}': 1,
            'tidegate_call_seconds_count{model="llama"}': 3,
            "tidegate_overhead_seconds_count": 2,
            'tidegate_endpoint_available{endpoint="worker-1",model="llama"}': 1,
            'tidegate_endpoint_inflight{endpoint="worker-1",model="llama"}': 0,
            "tidegate_calls_running": 0,
            "tidegate_journal_failed_writes_total": 0,
        }
        assert {name: page.get(name) for name in expected} == expected


# Browsers


def access(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("access-control-")}


PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_pages_of_other_origins_get_nothing_unless_configured(gw: Gateway):
    preflight = await gw.http.options(CHAT, headers=PREFLIGHT)
    assert (preflight.status_code, preflight.headers["allow"]) == (405, "POST")
    assert preflight.json()["error"]["code"] == "method_not_allowed"
    read = await gw.http.get("/health/live", headers={"origin": PAGE})
    assert access(preflight.headers) == access(read.headers) == {}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_to_page(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(INSTANT) as worker:
        async with gateway(tmp_path_factory.mktemp("cors"), worker, cors={"origins": [PAGE]}) as running:
            yield running


async def test_a_configured_origin_may_call_and_read_our_headers(open_to_page: Gateway):
    preflight = await open_to_page.http.options(CHAT, headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["x-request-id"].startswith("req_")
    allowed = access(preflight.headers)
    assert allowed["access-control-allow-origin"] == PAGE
    assert "POST" in allowed["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= {*allowed["access-control-allow-headers"].split(",")}

    client = open_to_page.client(default_headers={"origin": PAGE})
    whole = await client.chat.completions.with_raw_response.create(**HELLO)
    stream = await client.chat.completions.with_raw_response.create(**HELLO, stream=True)
    assert [chunk async for chunk in stream.parse()]
    refused = await open_to_page.http.post(CHAT, headers={"origin": PAGE})
    assert refused.status_code == 401
    for reply in (whole, stream, refused):
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert reply.headers["vary"] == "Origin"
        exposed = {*reply.headers["access-control-expose-headers"].split(", ")}
        assert {name for name in reply.headers if name.startswith("x-")} <= exposed


@pytest.mark.parametrize(
    "changes",
    [{"origin": f"{PAGE}.evil.example"}, {"access-control-request-method": "DELETE"}],
    ids=["origin", "method"],
)
async def test_what_is_not_configured_is_refused_in_the_usual_shape(
    open_to_page: Gateway, changes: dict[str, str]
):
    preflight = await open_to_page.http.options(CHAT, headers=PREFLIGHT | changes)
    assert preflight.status_code == 400
    assert access(preflight.headers) == {}
    assert preflight.json()["error"]["code"] == "cors_not_allowed"
    assert preflight.headers["x-request-id"].startswith("req_")


async def test_a_call_from_another_origin_is_answered_so_that_no_browser_shows_it_to_the_page(
    open_to_page: Gateway,
):
    reply = await open_to_page.http.post(CHAT, headers={"origin": "https://evil.example"})
    assert reply.status_code == 401
    assert "access-control-allow-origin" not in reply.headers


# No keys


async def test_without_keys_anyone_may_call_and_rows_say_so(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, auth={"mode": "none"}) as gw:
        assert (await gw.http.get("/v1/models")).status_code == 200
        reply = await gw.http.post(CHAT, json=HELLO)
        assert reply.status_code == 200
        assert (await gw.client("whatever").chat.completions.create(**HELLO)).model == "llama"
        rows = await gw.rows(2)
        assert {(row.tenant, row.key_id, row.outcome) for row in rows} == {("anonymous", "", "ok")}


async def test_with_keys_rows_name_the_tenant_and_the_key(gw: Gateway):
    await gw.client().chat.completions.create(**HELLO | {"model": "embed"})
    [key] = Subjects(gw.store).list_keys(TENANT)
    assert {(row.tenant, row.key_id) for row in await gw.rows()} == {(TENANT, key.id)}


async def test_a_browser_is_told_to_keep_control_pages_to_itself(tmp_path: Path):
    async with gateway(tmp_path, ready=False) as gw:
        for path in ("/admin/docs", "/admin/tenants", "/admin/nothing"):
            headers = (await gw.http.get(path)).headers
            assert headers["x-frame-options"] == "DENY"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert headers["referrer-policy"] == "no-referrer"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "strict-transport-security" not in headers
        headers = (await gw.http.get("/health/live")).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "x-frame-options" not in headers


async def test_a_client_that_sends_slowly_is_given_up_as_configured(tmp_path: Path):
    times = {"request_head_s": 0.5, "request_s": 0.5, "idle_client_s": 0.5}
    async with gateway(tmp_path, ready=False, timeouts=times) as gw:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\nauthorization: Bearer "
        head += gw.key.encode() + b"\r\n"
        for start, piece in (
            (b"", b""),
            (head, b"x-a: b\r\n"),
            (head + b"content-length: 9999\r\n\r\n", b"1"),
        ):
            reader, writer = await asyncio.open_connection(*gw.address)
            writer.write(start)
            ended = asyncio.create_task(until_closed(reader))
            async with asyncio.timeout(60):
                while not ended.done():
                    writer.write(piece)
                    await asyncio.sleep(0.05)
            writer.close()
        page = await gw.metrics()
        assert page["tidegate_calls_running"] == 0


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def test_a_picture_is_fetched_by_whoever_serves_the_call_and_never_by_the_gateway(tmp_path: Path):
    fetched = []

    async def noted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fetched.append(writer.get_extra_info("peername"))
        writer.close()

    async with SimWorker(INSTANT) as worker, await asyncio.start_server(noted, "127.0.0.1", 0) as inside:
        url = f"http://127.0.0.1:{inside.sockets[0].getsockname()[1]}/secret.png"
        async with gateway(tmp_path, worker) as gw:
            content = [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": url}},
            ]
            await gw.client().chat.completions.create(
                **HELLO | {"messages": [{"role": "user", "content": content}]}
            )
        assert url.encode() in worker.requests[-1].body
    assert fetched == []
