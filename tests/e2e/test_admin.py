"""Administration over HTTP: who may ask, and what `POST /admin/explain` answers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pool import PRICE, Gateway, endpoint, gateway

from gateway.subjects import Subjects
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "sk-master-0123456789"
HELLO: dict[str, Any] = {
    "model": "llama-small",
    "messages": [{"role": "user", "content": "High water?"}],
    "max_tokens": 5,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers() -> AsyncIterator[list[SimWorker]]:
    spec = WorkerSpec(decode_s_per_token=0)
    async with SimWorker(spec) as dear, SimWorker(spec) as cheap:
        yield [dear, cheap]


def models(workers: list[SimWorker]) -> dict[str, Any]:
    """A dear endpoint and a cheap one, both as fast as can be told before they have been seen."""
    dear = endpoint(workers[0], "dear", region="eu", cost={"input": 5, "output": 9})
    cheap = endpoint(workers[1], "cheap", region="us", cost={"input": 1, "output": 9})
    price = {"input": 1, "output": 1}
    return {"llama": {"aliases": ["llama-small"], "price": price, "endpoints": [dear, cheap]}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(workers: list[SimWorker], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    auth, limits = {"master_key": MASTER}, {"body_bytes": 10_000}
    async with gateway(home, models=models(workers), auth=auth, limits=limits) as running:
        yield running


async def ask(gw: Gateway, question: Any, key: str | None = MASTER) -> tuple[int, dict[str, Any]]:
    """Status and answer."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    content = question if isinstance(question, bytes) else json.dumps(question)
    reply = await gw.http.post("/admin/explain", content=content, headers=headers)
    return reply.status_code, reply.json()


def names(answer: dict[str, Any]) -> list[str]:
    return [candidate["endpoint"] for candidate in answer["candidates"]]


async def test_the_plan_for_a_call_is_told_with_every_estimate_and_nothing_is_sent_or_metered(
    gw: Gateway, workers: list[SimWorker]
):
    status, answer = await ask(gw, HELLO)
    assert (status, answer["model"], answer["tier"]) == (200, "llama", "default")
    assert (answer["output_tokens"], answer["rejected"], answer["passed_over"]) == (5, [], [])
    assert names(answer) == ["cheap", "dear"]
    cheap, dear = answer["candidates"]
    assert cheap["score_nano_usd"] < dear["score_nano_usd"]
    assert cheap["cost_nano_usd"] == answer["prompt_tokens"] * 1000 + 5 * 9000
    assert all(each["on_time"] and each["ttft_s"] > 0 and each["ms_per_token"] > 0 for each in (cheap, dear))
    assert [len(worker.requests) for worker in workers] == [0, 0]
    assert await gw.rows(least=0) == []


async def test_a_call_that_nobody_can_serve_is_explained_as_well(gw: Gateway):
    status, answer = await ask(gw, {**HELLO, "routing": {"regions": ["us"], "max_price": {"output": 1}}})
    assert (status, answer["candidates"]) == (200, [])
    reasons = {each["endpoint"]: (each["filter"], each["reason"]) for each in answer["rejected"]}
    assert reasons == {
        "dear": ("region", "is in eu, asked for us"),
        "cheap": ("price", "output costs 9 USD per million tokens, asked for at most 1"),
    }


async def test_the_models_to_fall_back_on_are_planned_for_as_well(workers: list[SimWorker], tmp_path: Path):
    sections = {
        "models": {**models(workers), "big": {"price": PRICE, "endpoints": [endpoint(workers[0], "far")]}},
        "aliases": {"smart": {"default": "big", "fallbacks": ["llama"]}},
        "auth": {"master_key": MASTER},
    }
    async with gateway(tmp_path, **sections) as running:
        status, answer = await ask(running, {**HELLO, "model": "smart", "routing": {"regions": ["us"]}})
    assert (status, answer["model"], answer["candidates"]) == (200, "big", [])
    (fallback,) = answer["fallbacks"]
    assert (fallback["model"], names(fallback), fallback["fallbacks"]) == ("llama", ["cheap"], [])


async def test_a_call_may_be_asked_about_as_that_of_a_tenant_whose_policy_then_bounds_it(
    workers: list[SimWorker], tmp_path: Path
):
    tenants = {"acme": {"policy": {"regions": ["eu"], "tiers": ["default"]}}}
    async with gateway(
        tmp_path, models=models(workers), tenants=tenants, auth={"master_key": MASTER}
    ) as running:
        for tenant, expected in [("acme", ["dear"]), ("other", ["cheap", "dear"]), ("", ["cheap", "dear"])]:
            assert names((await ask(running, {"request": HELLO, "tenant": tenant}))[1]) == expected
        priority = {"request": {**HELLO, "service_tier": "priority"}, "tenant": "acme"}
        status, answer = await ask(running, priority)
    assert (status, answer["error"]["code"]) == (403, "tier_not_allowed")


async def test_a_call_may_be_asked_about_as_made_with_a_key_whose_policy_and_its_tenants_then_bound_it(
    workers: list[SimWorker], tmp_path: Path
):
    tenants = {"acme": {"policy": {"regions": ["eu", "us"]}}}
    sections = {"models": models(workers), "tenants": tenants, "auth": {"master_key": MASTER}}
    async with gateway(tmp_path, **sections) as running:
        made = {
            "eu": await running.new_key(
                "acme", regions=frozenset({"eu", "mars"}), max_input_pico_usd=2_000_000
            ),
            "open": await running.new_key("acme"),
            "other": await running.new_key("rival", models=frozenset()),
        }
        ids = {key.last4: key.id for key in Subjects(running.store).list_keys()}
        ids = {name: ids[secret[-4:]] for name, secret in made.items()}

        status, answer = await ask(running, {"request": HELLO, "key": ids["eu"]})
        assert (status, answer["tenant"], answer["candidates"]) == (200, "acme", [])
        assert answer["held_to"] == "regions eu; input up to 2"
        assert {each["endpoint"]: (each["filter"], each["reason"]) for each in answer["rejected"]} == {
            "dear": ("price", "input costs 5 USD per million tokens, asked for at most 2"),
            "cheap": ("region", "is in us, asked for eu"),
        }
        status, answer = await ask(running, {"request": HELLO, "key": ids["open"][:-2], "tenant": "acme"})
        assert (status, answer["held_to"], names(answer)) == (200, "regions eu, us", ["cheap", "dear"])
        status, answer = await ask(running, {"request": HELLO, "key": "master"})
        assert (status, answer["tenant"], answer["held_to"]) == (200, "master", "")
        status, answer = await ask(running, {"request": HELLO, "key": ids["other"]})
        assert (status, answer["error"]["code"]) == (403, "model_not_allowed")
        for question, param in [
            ({"key": "key_none"}, "key"),
            ({"key": ids["eu"], "tenant": "rival"}, "tenant"),
        ]:
            status, answer = await ask(running, {"request": HELLO, **question})
            assert (status, answer["error"]["param"]) == (400, param)


async def test_what_is_expected_in_a_cache_is_told_and_asking_leaves_nothing_there(
    workers: list[SimWorker], tmp_path: Path
):
    long = {**HELLO, "messages": [{"role": "user", "content": "High water? " * 200}]}
    async with gateway(tmp_path, models=models(workers), auth={"master_key": MASTER}) as running:
        for _ in range(2):
            answer = (await ask(running, long))[1]
            assert [each["cached_tokens"] for each in answer["candidates"]] == [0, 0]
        headers = {"authorization": f"Bearer {running.key}"}
        # Byte for byte what is asked about: two spellings of one JSON are two prompts to the index.
        await running.http.post("/v1/chat/completions", content=json.dumps(long), headers=headers)
        answer = (await ask(running, {"request": long, "tenant": "harbour"}))[1]
    held = {each["endpoint"]: each["cached_tokens"] for each in answer["candidates"]}
    assert held == {"cheap": 512, "dear": 0}


async def test_the_headers_of_the_call_may_be_given_with_it(gw: Gateway):
    status, answer = await ask(gw, {"request": HELLO, "headers": {"X-Tidegate-Only": "dear"}})
    assert (status, names(answer)) == (200, ["dear"])


@pytest.mark.parametrize(
    ("question", "code", "param"),
    [
        (b"{", "invalid_json", None),
        ({"messages": []}, "missing_required_parameter", "model"),
        ({**HELLO, "model": "lama"}, "model_not_found", "model"),
        ({"request": HELLO, "api": "images"}, "invalid_value", "api"),
        ({"request": HELLO, "headers": {"x-tidegate-trust": "blind"}}, "invalid_value", "x-tidegate-trust"),
        ({**HELLO, "user": "x" * 10_000}, "request_too_large", None),
    ],
)
async def test_what_is_no_call_is_an_error_in_the_usual_shape(
    gw: Gateway, question: Any, code: str, param: str | None
):
    status, answer = await ask(gw, question)
    assert status == (404 if code == "model_not_found" else 413 if code == "request_too_large" else 400)
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)


async def test_the_key_of_a_tenant_is_not_enough_and_an_unknown_one_or_none_is_none(gw: Gateway):
    for key, expected in [
        (gw.key, (403, "admin_key_required")),
        ("sk-wrong", (401, "invalid_api_key")),
        (None, (401, "invalid_api_key")),
    ]:
        status, answer = await ask(gw, HELLO, key)
        assert (status, answer["error"]["code"]) == expected
    # Not even where it is a question that makes no sense.
    assert (await ask(gw, b"{", gw.key))[0] == 403


@pytest.mark.parametrize(
    ("sections", "key", "status"),
    [
        ({"auth": {"mode": "none"}}, None, 200),
        ({"auth": {"mode": "none", "master_key": MASTER}}, None, 200),
        ({"auth": {"mode": "none", "allow_public": True}, "listen": {"host": "0.0.0.0"}}, None, 401),
        ({"auth": {"mode": "none", "allow_public": True}, "listen": {"host": "0.0.0.0"}}, "None", 401),
        (
            {
                "auth": {"mode": "none", "allow_public": True, "master_key": MASTER},
                "listen": {"host": "0.0.0.0"},
            },
            MASTER,
            200,
        ),
        ({}, MASTER, 401),
    ],
)
async def test_without_keys_for_calls_only_those_on_the_same_machine_need_none_here(
    workers: list[SimWorker], tmp_path: Path, sections: dict[str, Any], key: str | None, status: int
):
    async with gateway(tmp_path, models=models(workers), ready=False, **sections) as running:
        assert (await ask(running, HELLO, key))[0] == status


async def test_the_command_asks_a_running_gateway(gw: Gateway, tmp_path: Path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps(HELLO))
    words = ["-m", "gateway", "explain", str(request), "--url", f"{gw.url}/v1", "--format", "json"]
    words += ["--header", "x-tidegate-only: dear"]
    for key, code, said in [
        (MASTER, 0, '"endpoint": "dear"'),
        (gw.key, 1, "answered 403: This takes an admin key"),
    ]:
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            env={**os.environ, "TIDEGATE_MASTER_KEY": key},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await running.communicate()
        assert running.returncode == code
        assert said in output.decode()


async def test_the_routes_are_described_as_openapi(gw: Gateway):
    described = (await gw.http.get("/admin/openapi.json")).json()
    assert all(path.startswith("/admin/") for path in described["paths"])
    reply = described["paths"]["/admin/explain"]["post"]["responses"]["200"]
    assert reply["content"]["application/json"]["schema"]["$ref"].endswith("/Explanation")
    assert (await gw.http.get("/admin/explain")).status_code == 405


class Page(HTMLParser):
    """What a browser would load for a page, and what there is to read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links.update(value for name, value in attrs if name in ("href", "src", "action", "srcset"))
        self.anchors.update(f"#{value}" for name, value in attrs if name == "id")

    def handle_data(self, data: str) -> None:
        self.words += data


async def test_the_page_of_the_routes_says_all_that_the_document_does_and_loads_nothing(gw: Gateway):
    described = (await gw.http.get("/admin/openapi.json")).json()
    reply = await gw.http.get("/admin/docs")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    page = Page(reply.text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert page.links - page.anchors == {"/admin/openapi.json"}
    assert "//" not in reply.text.replace("<!doctype html>", "")
    assert "url(" not in reply.text
    assert "@import" not in reply.text
    for path, routes in described["paths"].items():
        for method, route in routes.items():
            assert f"{method.upper()} {path}" in page.words
            assert route.get("description", "").replace("`", "") in page.words
    for name, schema in described["components"]["schemas"].items():
        if not name.endswith("ValidationError"):
            for field, each in schema["properties"].items():
                assert field in page.words
                assert each.get("description", "").replace("`", "") in page.words


async def test_no_other_page_names_a_foreign_host(gw: Gateway):
    for path in (
        "/",
        "/docs",
        "/redoc",
        "/admin",
        "/admin/",
        "/admin/docs/oauth2-redirect",
        "/admin/nodes",
        "/health/live",
    ):
        reply = await gw.http.get(path)
        assert reply.headers["content-type"] == "application/json"
        assert "//" not in reply.text
