"""What a client may try in order to pay less than it uses, to spend more than it may, or to see what is another's."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from pool import HELLO, INSTANT, gateway, until

from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from pool import Gateway

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOST = 10**9
"""In nano-USD: a budget for some hundred calls."""


async def post(gw: Gateway, key: str, path: str, body: dict[str, Any] | bytes, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await gw.http.post(path, content=content, headers={"authorization": f"Bearer {key}", **headers})


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        # vLLM's completions know no max_completion_tokens: it bounded what was charged, and not what was written.
        (COMPLETIONS, {"prompt": "Ebb?", "max_tokens": 500, "min_tokens": 500, "max_completion_tokens": 1}),
        (CHAT, {"messages": HELLO["messages"], "max_tokens": 500, "min_tokens": 500}),
        (CHAT, {"messages": HELLO["messages"], "max_tokens": 1, "max_completion_tokens": 500, "min_tokens": 500}),
        (CHAT, {"messages": HELLO["messages"], "max_tokens": 125, "min_tokens": 125, "n": 4, "logprobs": True}),
        (COMPLETIONS, {"prompt": ["Ebb?"] * 4, "max_tokens": 125, "min_tokens": 125, "echo": True}),
        (COMPLETIONS, {"prompt": [[1, 2, 3]] * 4, "max_tokens": 125, "min_tokens": 125, "logprobs": 5}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_written_is_charged_whichever_way_it_is_asked_for(
    tmp_path: Path, path: str, fields: dict[str, Any], *, stream: bool
):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key("acme", budgets={"total": MOST})
        reply = await post(gw, key, path, {"model": "llama", "stream": stream, "ignore_eos": True, **fields})
        assert reply.status_code == 200, reply.text
        (row,) = await gw.rows()
        assert worker.requests[-1].tokens_made == 500
        assert (row.completion_tokens, row.estimated) == (500, False)
        assert row.charge_nano_usd >= 500 * 2000
        assert (await gw.metrics())["tidegate_limits_charges_cut_total"] == 0


@pytest.mark.parametrize("number", [2**63, 10**30, 1e300, 10**9])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
async def test_a_number_beyond_all_bounds_is_refused_and_takes_nothing(
    tmp_path: Path, field: str, number: float
):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        key = await gw.new_key(
            "acme", budgets={"total": MOST}, tokens_per_min=10**6, requests_per_min=100, concurrency=5
        )
        reply = await post(gw, key, CHAT, {**HELLO, field: number})
        assert 400 <= reply.status_code < 500, reply.text
        assert (await post(gw, key, CHAT, HELLO)).status_code == 200
        assert (await gw.metrics())["tidegate_limits_holds"] == 0


async def test_who_leaves_after_the_first_token_has_paid_for_a_prompt_of_many_tokens_a_byte(tmp_path: Path):
    """By the ids that a worker shows, where its answers can be gone on with elsewhere."""
    slow = WorkerSpec(decode_s_per_token=0.05)
    prompt = "潮" * 3000  # a token each, and three bytes
    async with SimWorker(slow) as worker, gateway(tmp_path, worker) as gw:
        body = {"model": "llama", "messages": [{"role": "user", "content": prompt}], "max_tokens": 50}
        whole = await gw.client().chat.completions.create(**{**body, "max_tokens": 1})
        stream = await gw.client().chat.completions.create(**body, stream=True)
        await anext(aiter(stream))
        await stream.close()
        _, left = await gw.rows(2)
        assert left.outcome == "client_left"
        assert left.prompt_tokens == whole.usage.prompt_tokens


async def test_nobody_sees_or_spends_what_is_another_s(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:
        acme = await gw.new_key("acme", budgets={"total": MOST})
        other = await gw.new_key("other")
        named = {"user": "acme", "safety_identifier": "acme", "metadata": {"tenant": "acme"}}
        forged = {
            "x-tidegate-customer": "acme",
            "x-tidegate-tenant": "acme",
            "openai-organization": "acme",
            "openai-project": "acme",
        }
        reply = await post(gw, other, CHAT, {**HELLO, **named})
        assert reply.status_code == 200
        reply = await post(
            gw, other, CHAT, HELLO, **{k: v for k, v in forged.items() if k != "x-tidegate-tenant"}
        )
        assert reply.status_code == 200
        assert {row.tenant for row in await gw.rows(2)} == {"other"}
        # An unknown header of ours is an error, and not silently without effect.
        assert (await post(gw, other, CHAT, HELLO, **forged)).status_code == 400
        headers = {"authorization": f"Bearer {acme}"}
        for asked in ("", "?tenant=other", "?customer=acme", "?by=customer", "?by=key"):
            seen = (await gw.http.get(f"/v1/usage{asked}", headers=headers)).json()
            assert not any(each["calls"] for each in seen["data"]), seen
        begun = "start_time=1700000000"
        for asked in ("user_ids=acme", "api_key_ids=x", "group_by=user_id"):
            page = f"/v1/organization/usage/completions?{begun}&{asked}&limit=1"
            assert (await gw.http.get(page, headers=headers)).status_code == 200
        for path in ("/admin/usage", "/admin/tenants", "/admin/keys", "/admin/audit"):
            assert (await gw.http.get(path, headers=headers)).status_code in {401, 403}, path
        for path in ("/admin/keys", "/admin/tenants"):
            reply = await gw.http.post(path, headers=headers, json={"tenant": "other", "name": "mine"})
            assert reply.status_code in {401, 403}, path


async def test_names_that_strangers_make_up_are_no_labels(tmp_path: Path):
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker) as gw:

        async def names() -> set[str]:
            return {name for name in await gw.metrics() if "made-up" in name}

        calls = []
        for number in range(20):
            user = f"made-up-{number}"
            calls.append(post(gw, gw.key, CHAT, {**HELLO, "user": user}))
            calls.append(post(gw, gw.key, CHAT, {**HELLO, "model": user}))
            calls.append(post(gw, user, CHAT, HELLO))
            calls.append(post(gw, gw.key, f"/v1/{user}", HELLO))
        await asyncio.gather(*calls)
        await until(lambda: _all_in(gw))
        assert await names() == set()


async def _all_in(gw: Gateway) -> bool:
    return len(await gw.rows()) == 20
