"""Bodies on the way in and on the way out again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from request_bodies import LEAST, bodies, refused, written

from backends.usage import MOST_TOKENS
from gateway.errors import ApiError
from gateway.openai import Api, Request, parse


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies())
def test_the_body_sent_on_is_the_client_s_own_but_for_model_routing_and_stream_options(body):
    api, pieces, options, text = body
    expected = dict(pieces)
    streams = api != "embeddings" and expected.get("stream") == "true"
    expected["model"] = '"served \\"as\\""'
    expected.pop("routing", None)
    if api == "chat" and "null" not in (
        expected.get("max_tokens", "null"),
        limit := expected.get("max_completion_tokens", "null"),
    ):
        expected["max_tokens"] = limit
    if streams:
        expected["stream_options"] = written([*(options or []), ("include_usage", "true")]).decode()
    read = parse(api, text, {})
    assert read.body_for('served "as"') == written(expected)
    assert read.body_for('served "as"') == written(expected), "a second attempt sends the same"
    assert read.stream == streams


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies(("chat", "completions")))
def test_what_was_read_is_what_another_reader_reads_in_the_body_sent_on(body):
    api, pieces, options, text = body
    read = parse(api, text, {})
    there = json.loads(read.body_for("served"))
    limit = there.get("max_completion_tokens") if api == "chat" else None
    limit = there.get("max_tokens") if limit is None else limit
    # What nobody writes is planned for as if it were this much: it has to fit where numbers have 64 bits.
    assert read.max_tokens == (None if limit is None else min(limit, MOST_TOKENS))
    assert read.choices == min(there.get("n") or 1, MOST_TOKENS) * (
        len(there["prompt"]) if api == "completions" else 1
    )
    assert read.stream == bool(there.get("stream"))
    assert read.tier_asked == (there.get("service_tier") is not None)
    assert read.tier == {None: "default", "auto": "default"}.get(
        there.get("service_tier"), there.get("service_tier")
    )
    assert ("tools" in read.needs) == (api == "chat" and bool(there.get("tools")))
    assert read.model == json.loads(dict(pieces)["model"])
    assert read.shows_usage == (dict(options or []).get("include_usage") == "true")


MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 4),
        st.one_of(
            st.binary(max_size=2),
            st.sampled_from([b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"-", b"0", b".", b"e", b"NaN", b"\xc3", b"\\ud83d", b"\n"]),
        ),
    ),
    min_size=1,
    max_size=3,
)  # fmt: skip


def parsed(api: Api, body: bytes) -> Request | None:
    """None where it is refused. Whatever else is raised fails the test."""
    try:
        return parse(api, body, {})
    except ApiError as error:
        if error.status != 400 or not error.message:
            raise
    return None


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(bodies(("chat", "embeddings")), MUTATIONS)
@example(
    ("chat", [], None, b'{"model":"m","messages":[],"max_completion_tokens":0,"max_tokens":17}'),
    [(0.0, 0, b" ")],
)
@example(
    ("chat", [], None, b'{"model":"m","messages":[],"max_completion_tokens":0,"max_tokens":null}'),
    [(0.0, 0, b" ")],
)
def test_a_damaged_body_is_refused_or_means_the_same_to_another_reader(body, mutations):
    api, _, _, text = body
    for where, length, put in mutations:
        at = int(where * len(text))
        text = text[:at] + put + text[at + length :]
    read = parsed(api, text)
    if read is None:
        return
    event("read")
    ours = json.loads(text.decode(), parse_constant=pytest.fail)
    there = json.loads(read.body_for(read.model))
    if api == "chat" and None not in (ours.get("max_tokens"), limit := ours.get("max_completion_tokens")):
        ours["max_tokens"] = limit
    for changed in ("routing", "stream_options") if read.stream else ("routing",):
        ours.pop(changed, None)
        there.pop(changed, None)
    assert there == ours


@settings(deadline=None)
@given(st.sampled_from(["chat", "completions", "embeddings"]), st.binary(max_size=40))
def test_bytes_that_are_no_request_are_refused(api: Api, body: bytes):
    refused(api, body)


TEXT_FIELDS = ("model", "service_tier", "user")
OF_ALL_TEXT = {
    **dict.fromkeys((*TEXT_FIELDS, "routing", "stream", "stream_options", "stop", "logit_bias", "response_format"), 5),
    **dict.fromkeys(("n", "max_tokens", "max_completion_tokens", "seed", "temperature", "top_p"), "x"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), "x"),
}  # fmt: skip
WRONG: list[tuple[Api, str, Any]] = [
    *(("chat", name, value) for name, value in OF_ALL_TEXT.items()),
    *(("completions", name, value) for name, value in OF_ALL_TEXT.items()),
    *(("embeddings", name, 5) for name in (*TEXT_FIELDS, "routing", "encoding_format")),
    ("embeddings", "dimensions", "x"), ("chat", "messages", "hi"), ("chat", "messages", None), ("chat", "tools", {}),
    ("chat", "logprobs", 1), ("chat", "top_logprobs", True), ("completions", "prompt", 5),
    ("completions", "logprobs", "x"), ("completions", "suffix", 5), ("chat", "model", None),
]  # fmt: skip


@pytest.mark.parametrize(("api", "name", "value"), WRONG)
def test_a_field_of_the_wrong_type_is_named(api: Api, name: str, value: Any):
    error = refused(api, {**LEAST[api], name: value})
    assert (error.code, error.param) == ("invalid_type", name)
    assert error.message.startswith(f"{name}: expected ")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"routing": {"max_price": {"input": "a"}}}, "invalid_type", "routing.max_price.input"),
        ({"routing": {"max_price": {"input": -1}}}, "invalid_value", "routing.max_price.input"),
        ({"routing": {"max_price": {"tokens": 1}}}, "invalid_value", "routing.max_price.tokens"),
        ({"routing": {"max_price": 1}}, "invalid_type", "routing.max_price"),
        ({"routing": {"fastest": True}}, "invalid_value", "routing.fastest"),
        ({"routing": {"max_ttft_ms": 0}}, "invalid_value", "routing.max_ttft_ms"),
        ({"routing": {"min_tokens_per_s": 1e13}}, "invalid_value", "routing.min_tokens_per_s"),
        ({"routing": {"trust": "friends"}}, "invalid_value", "routing.trust"),
        ({"routing": {"regions": "eu"}}, "invalid_type", "routing.regions"),
        ({"routing": {"only": ["a", 5]}}, "invalid_type", "routing.only[1]"),
        ({"routing": {"ignore": ["a"] * 65}}, "invalid_value", "routing.ignore"),
        ({"routing": {"hedge": "yes"}}, "invalid_type", "routing.hedge"),
        ({"stream_options": {"include_usage": 1}}, "invalid_type", "stream_options.include_usage"),
        ({"stop": ["a", 5]}, "invalid_type", "stop[1]"),
        ({"service_tier": "gold"}, "invalid_value", "service_tier"),
    ],
)
def test_the_path_to_what_is_wrong_is_named(fields: dict[str, Any], code: str, param: str):
    error = refused("chat", {**LEAST["chat"], **fields})
    assert (error.code, error.param) == (code, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("api", "name"),
    [("chat", "model"), ("chat", "messages"), ("completions", "prompt"), ("embeddings", "input"), ("embeddings", "model")],
)  # fmt: skip
def test_a_field_that_is_missing_is_named(api: Api, name: str):
    body = {key: value for key, value in LEAST[api].items() if key != name}
    error = refused(api, body)
    assert (error.code, error.param, error.message) == (
        "missing_required_parameter",
        name,
        f"{name} is missing",
    )


@pytest.mark.parametrize("body", [b"[]", b"5", b"null", b'"x"', b"true"])
def test_a_body_that_is_no_object_is_said_to_be_none(body: bytes):
    error = refused("chat", body)
    assert (error.code, error.param) == ("invalid_type", None)
    assert error.message.startswith("the body: expected `object`, got ")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"", "it is empty"),
        (b'{"model":"m",', "truncated"),
        (b'{"model":"m",}', "at line 1, column 14"),
        (b'{"model":"m","messages":[]}x', "trailing characters at line 1"),
        (b'{"model":"m",\n  "messages":[],\r\n  x}', "at line 3, column 3"),
        (b'{"model":"m","messages":[],"temperature":NaN}', "at line 1, column 42"),
        (b'{"model":"m","messages":[],"x":-Infinity}', "at line 1, column 33"),
        (b'{"model":"m","messages":[],"x":01}', "at line 1, column 33"),
        (b'{"model":"m","messages":[],"x":"a\nb"}', "at line 1, column 34"),
        (b'{"model":"m","messages":["\xff"]}', "at line 1, column 27"),
        (b'\n{"model":"m","messages":[],"x":"\xc3"}', "at line 2, column 33"),
        (b"\xef\xbb\xbf{}", "at line 1, column 1"),
        (b'{"x":' + b"[" * 100_000, "nested too deeply"),
        (b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"model":"m","messages":[],"x":' + b'{"x":' * 100_000, "nested too deeply"),
    ],
)
def test_a_body_that_is_no_json_is_said_where(body: bytes, where: str):
    error = refused("chat", body)
    assert (error.code, error.param) == ("invalid_json", None)
    assert where in error.message


def test_invalid_utf8_in_a_field_that_is_read_is_said_where():
    assert refused("chat", b'{"model":"m\xff","messages":[]}').message.endswith("at line 1, column 12")


def test_an_error_repeats_no_megabyte_of_what_was_sent():
    error = refused("chat", {**LEAST["chat"], "routing": {"x" * 1_000_000: 1}})
    assert error.code == "invalid_value"
    assert len(error.message) < 2000


@pytest.mark.parametrize(
    "prompt",
    [[None], [1.5]],
)
def test_a_prompt_that_is_none_of_its_four_kinds_is_refused_by_name(prompt: list[Any]):
    error = refused("completions", {"model": "m", "prompt": prompt})
    assert error.code == "invalid_type"
    assert error.param.startswith("prompt")
