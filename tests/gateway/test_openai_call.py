"""What is read off a request: demands, tokens, choices, needs, tier."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from request_bodies import LEAST, refused, request

from gateway.errors import ApiError
from gateway.openai import MEDIA_TOKENS, Api, parse
from routing.decision import Decision
from routing.misses import shortfalls
from routing.pipeline import plan
from routing.types import Call, Demands, Endpoint, Load, Price, Tier, Trust

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS_OF_A_CLIENT = [0, -1, 10**400, -(10**400), 1e308]


@pytest.mark.parametrize("max_tokens", NUMBERS_OF_A_CLIENT)
def test_no_max_tokens_breaks_the_arithmetic_of_a_plan(max_tokens: float):
    read = request(max_tokens=max_tokens)
    priced = Endpoint("e", "m", "m", cost=Price(5, 5))
    call = Call("m", Tier("default", 5.0, 1000.0), read.prompt_tokens, read.max_tokens)
    (candidate,) = plan(call, [(priced, Load())], 0.5).ranked
    assert candidate.estimate.cost_nano_usd >= 0


@pytest.mark.parametrize("max_tokens", NUMBERS_OF_A_CLIENT)
def test_nor_that_of_what_does_not_fit_a_context_nor_what_is_written_of_it(max_tokens: float):
    read = request(max_tokens=max_tokens)
    small = Endpoint("e", "m", "m", context_tokens=1)
    call = Call("m", Tier("default", 5.0, 1000.0), 10, read.max_tokens)
    decision = Decision(call, ((small, Load()),), 0.5, 256.0, {})
    (shortfall,) = shortfalls(decision)
    assert "do not fit its context of 1" in shortfall.reasons[0]
    assert msgspec.json.decode(msgspec.json.encode(decision), type=Decision) == decision


@pytest.mark.parametrize(
    ("headers", "routing", "demands"),
    [
        ({"max-ttft-ms": "250"}, {"max_ttft_ms": 250}, Demands(max_ttft_s=0.25)),
        ({"min-tokens-per-s": "1e1"}, {"min_tokens_per_s": 10}, Demands(min_tokens_per_s=10)),
        ({"max-price-input": "0.1"}, {"max_price": {"input": 0.1}}, Demands(max_input_pico_usd=100_000)),
        (
            {"max-price-output": "2", "max-price-input": "0"},
            {"max_price": {"input": 0, "output": 2.0}},
            Demands(max_input_pico_usd=0, max_output_pico_usd=2_000_000),
        ),
        ({"trust": "provider"}, {"trust": "provider"}, Demands(least_trust=Trust.PROVIDER)),
        ({"trust": "community"}, {"trust": "community"}, Demands()),
        ({"regions": "eu, us ,"}, {"regions": ["eu", "us"]}, Demands(regions=frozenset({"eu", "us"}))),
        ({"only": "a"}, {"only": ["a"]}, Demands(only=frozenset({"a"}))),
        ({"ignore": "a,b"}, {"ignore": ["b", "a"]}, Demands(ignore=frozenset({"a", "b"}))),
        ({"session-id": "5", "hedge": "false"}, {"session_id": "5", "hedge": False}, Demands()),
    ],
)
def test_headers_demand_what_the_body_can(headers: dict[str, str], routing: dict[str, Any], demands: Demands):
    assert request(routing=routing).demands == demands
    assert (
        request(headers={f"x-tidegate-{name}": value for name, value in headers.items()}).demands == demands
    )


def test_the_body_wins_over_a_header_of_the_same_name_and_only_over_that():
    headers = {"x-tidegate-max-ttft-ms": "1", "x-tidegate-trust": "verified", "x-tidegate-regions": "eu"}
    read = request(headers=headers, routing={"max_ttft_ms": 2000, "regions": []})
    assert read.demands == Demands(max_ttft_s=2.0, least_trust=Trust.VERIFIED)


def test_a_cap_on_one_price_in_the_body_leaves_the_header_s_cap_on_the_other():
    read = request(headers={"x-tidegate-max-price-output": "2"}, routing={"max_price": {"input": 1}})
    assert read.demands == Demands(max_input_pico_usd=1_000_000, max_output_pico_usd=2_000_000)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max-ttft-ms", "soon"), ("max-ttft-ms", ""), ("max-ttft-ms", "0"), ("max-ttft-ms", "nan"), ("max-ttft-ms", "inf"),
        ("min-tokens-per-s", "-1"), ("max-price-input", "nan"), ("max-price-output", "cheap"), ("max-price", "5"),
        ("trust", "friends"), ("hedge", "perhaps"), ("regions", "x" * 129), ("only", ",".join("a" * 65)),
        ("session-id", "x" * 257), ("fastest", "true"), ("max-price-tokens", "1"),
    ],
)  # fmt: skip
def test_a_header_with_a_bad_value_is_named(name: str, value: str):
    error = refused("embeddings", LEAST["embeddings"], {b"x-tidegate-" + name.encode(): value.encode()})
    assert error.code == "invalid_value"
    assert error.param.partition("[")[0] == f"x-tidegate-{name}"


def test_a_bad_header_beside_a_good_one_is_named():
    headers = {b"x-tidegate-max-price": b"5", b"x-tidegate-max-price-input": b"5"}
    assert refused("chat", LEAST["chat"], headers).param == "x-tidegate-max-price"


@patiently
@given(st.integers(0, 10**12))
def test_a_price_keeps_its_six_decimals(micro_usd: int):
    usd = f"{micro_usd // 10**6}.{micro_usd % 10**6:06d}"
    demands = Demands(max_input_pico_usd=micro_usd)
    assert request(headers={"x-tidegate-max-price-input": usd}).demands == demands
    body = b'{"model":"m","input":"hi","routing":{"max_price":{"input":%b}}}' % usd.encode()
    assert parse("embeddings", body, {}).demands == demands


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None), ({"max_tokens": 9}, 9), ({"max_completion_tokens": 9}, 9), ({"max_tokens": None}, None),
        ({"max_tokens": 9, "max_completion_tokens": 5}, 5), ({"max_tokens": 5, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 9, "max_completion_tokens": 0}, 0), ({"max_tokens": 9, "max_completion_tokens": None}, 9),
    ],
)  # fmt: skip
def test_the_newer_name_of_a_limit_on_output_wins(fields: dict[str, Any], most: int | None):
    assert request(**fields).max_tokens == most


def picture(kilobytes: int, url: str = "data:image/png;base64,") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url + "iVBORw0KGgo+/AAA" * 64 * kilobytes}}


def test_text_counts_for_a_quarter_of_its_bytes_in_tokens():
    short, long = (request(messages=[{"role": "user", "content": "word" * n}]) for n in (1, 1001))
    assert long.prompt_tokens - short.prompt_tokens == 1000
    assert request("completions", prompt="word" * 1000).prompt_tokens == 1000
    assert request("embeddings", input=["word" * 1000]).prompt_tokens == 1001
    tools = [{"type": "function", "function": {"description": "word" * 1000}}]
    assert 1000 < request(tools=tools).prompt_tokens - request().prompt_tokens < 1030


@pytest.mark.parametrize("write", [
    str,
    lambda text: text.replace("/", "\\/"),
    lambda text: text.replace("+", "\\u002B"),
], ids=["plainly", "as PHP does", "as .NET does"])  # fmt: skip
def test_an_image_counts_the_same_whatever_its_size_and_its_spelling(write):
    text = {"type": "text", "text": "what is this?"}

    def tokens(*pictures: dict[str, Any]) -> int:
        body = {"model": "m", "messages": [{"role": "user", "content": [text, *pictures]}]}
        return parse("chat", write(json.dumps(body)).encode(), {}).prompt_tokens

    assert tokens(picture(1)) == tokens(picture(500))
    assert MEDIA_TOKENS <= tokens(picture(1)) - tokens() < MEDIA_TOKENS + 50
    assert MEDIA_TOKENS <= tokens(picture(1), picture(9)) - tokens(picture(1)) < MEDIA_TOKENS + 50


@pytest.mark.parametrize(
    ("prompt", "prompts", "tokens"),
    [
        ("", 1, 0), ("word" * 8, 1, 8), ([], 1, 0), (["word" * 8], 1, 9), (["word" * 8, "word" * 8], 2, 18),
        ([17], 1, 1), ([17, 4, 99999], 1, 3), ([[17]], 1, 1), ([[17, 4, 99999], [], [1]], 3, 4),
    ],
)  # fmt: skip
@pytest.mark.parametrize("n", [None, 0, 1, 3])
def test_a_completion_has_n_choices_for_each_of_its_prompts(
    prompt: Any, prompts: int, tokens: int, n: int | None
):
    read = request("completions", prompt=prompt, n=n)
    assert read.choices == prompts * max(1, n or 1)
    assert read.prompt_tokens == tokens


def test_a_chat_has_n_choices():
    assert [request(n=n).choices for n in (None, -5, 0, 1, 4)] == [1, 1, 1, 1, 4]
    assert [request("embeddings", n=4, stream=True).choices, request("embeddings", stream=True).stream] == [
        1,
        False,
    ]


SAYS_IT = {"role": "user", "content": [{"type": "text", "text": "hi"}, picture(1)]}
CALLS_IT = {"role": "assistant", "tool_calls": [{"function": {"arguments": json.dumps({"image_url": "x"})}}]}


@pytest.mark.parametrize(
    ("api", "fields", "needs"),
    [
        ("chat", {}, set()),
        ("chat", {"tools": [{"type": "function"}]}, {"tools"}),
        ("chat", {"tools": [], "tool_choice": "auto"}, set()),
        ("chat", {"logprobs": True, "top_logprobs": 2}, {"logprobs"}),
        ("chat", {"logprobs": False}, set()),
        ("chat", {"response_format": {"json_schema": {}, "type": "json_schema"}}, {"json_schema"}),
        ("chat", {"response_format": {"type": "json_object"}}, set()),
        ("chat", {"response_format": {}}, set()),
        ("chat", {"messages": [SAYS_IT]}, {"vision"}),
        ("chat", {"messages": [SAYS_IT], "tools": [{}], "logprobs": True}, {"vision", "tools", "logprobs"}),
        ("chat", {"messages": [{"role": "user", "content": 'an "image_url" part'}, CALLS_IT]}, set()),
        ("completions", {"prompt": '"image_url"'}, set()),
        ("embeddings", {}, {"embeddings"}),
        ("chat", {"messages": [{"role": "user", "content": "image_url"}]}, set()),
        ("completions", {"logprobs": 5}, {"logprobs"}),
        ("completions", {"response_format": {"type": "json_schema"}}, {"json_schema"}),
    ],
)  # fmt: skip
def test_what_a_call_needs_of_an_endpoint_is_read_off_its_body(
    api: Api, fields: dict[str, Any], needs: set[str]
):
    assert request(api, **fields).needs == needs


@pytest.mark.parametrize(
    ("service_tier", "tier", "asked"),
    [(None, "default", False), ("auto", "default", True), ("default", "default", True), ("flex", "flex", True), ("priority", "priority", True)],
)  # fmt: skip
@pytest.mark.parametrize("api", LEAST)
def test_the_tier_is_the_one_asked_for(api: Api, service_tier: str | None, tier: str, asked: bool):  # noqa: FBT001  a parameter of the test
    read = request(api, service_tier=service_tier)
    assert (read.tier, read.tier_asked) == (tier, asked)


@pytest.mark.parametrize(
    ("header", "fields", "customer"),
    [
        (None, {}, ""),
        (None, {"user": "u-1"}, "u-1"),
        (None, {"user": "u-1", "safety_identifier": "s-1"}, "s-1"),
        (None, {"user": "u-1", "safety_identifier": ""}, "u-1"),
        ("c-1", {"user": "u-1", "safety_identifier": "s-1"}, "c-1"),
        (" é ☃ ", {}, "é ☃"),
        ("", {"user": "u-1"}, ""),
        (None, {"user": "x" * 128}, "x" * 128),
    ],
)
def test_whom_a_call_is_made_for_is_said_by_a_header_or_else_by_its_body(
    header: str | None, fields: dict[str, str], customer: str
):
    headers = {} if header is None else {b"x-tidegate-customer": header.encode()}
    for api, least in LEAST.items():
        assert parse(api, json.dumps({**least, **fields}).encode(), headers).customer == customer


@pytest.mark.parametrize("name", ["x" * 129, "☃" * 43, "a\nb", "a\x00", "\x7f", "a\u0085b"])
def test_a_customer_that_fits_no_row_of_usage_is_refused_at_its_place(name: str):
    for field in ("user", "safety_identifier"):
        assert refused("chat", {**LEAST["chat"], field: name}).param == field


def test_a_customer_in_bytes_that_are_no_text_is_refused():
    with pytest.raises(ApiError) as error:
        parse("chat", json.dumps(LEAST["chat"]).encode(), {b"x-tidegate-customer": b"caf\xe9"})
    assert (error.value.code, error.value.param) == ("invalid_value", "x-tidegate-customer")


def test_a_customer_is_no_demand_beside_those_in_other_headers():
    headers = {b"x-tidegate-customer": b"c", b"x-tidegate-max-ttft-ms": b"250"}
    call = parse("chat", json.dumps(LEAST["chat"]).encode(), headers)
    assert (call.customer, call.demands.max_ttft_s) == ("c", 0.25)
