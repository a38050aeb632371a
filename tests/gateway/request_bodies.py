"""Request bodies: the least that is one, and bodies put together piece by piece in every spelling that JSON allows, so that
the bytes sent on can be foretold."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from gateway.errors import ApiError
from gateway.openai import Api, Request, parse

LEAST: dict[Api, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "m", "prompt": "hi"},
    "embeddings": {"model": "m", "input": "hi"},
}


def request(api: Api = "chat", headers: dict[str, str] | None = None, **fields: Any) -> Request:
    given_headers = {name.encode(): value.encode() for name, value in (headers or {}).items()}
    return parse(api, json.dumps({**LEAST[api], **fields}).encode(), given_headers)


def refused(api: Api, body: bytes | dict[str, Any], headers: dict[bytes, bytes] | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(api, body if isinstance(body, bytes) else json.dumps(body).encode(), headers or {})
    assert caught.value.status == 400
    return caught.value


REQUIRED = {
    "chat": {"messages": '[{"role":"user" ,"content":"h\\u00e9\\/" }]'},
    "completions": {"prompt": '["a", "\\ud83d\\ude00"]'},
    "embeddings": {"input": "[1,\t2]"},
}
TYPED = {
    "model": ['"m"', '"\\u006d"', '"grün \\" \\\\"'],
    "routing": ["null", "{}", '{"trust":"verified"}', '{"max_price": {"input":1.0}}'],
    "service_tier": ['"auto"', '"flex"', '"prior\\u0069ty"', "null"],
    "n": ["1", "3", "null"],
    "max_tokens": ["0", "17", "18446744073709551616", "null"],
    "max_completion_tokens": ["0", "16", "null"],
    "temperature": ["1.0", "1e0", "0.70", "1E-1", "-0", "null"],
    "seed": ["-1", "18446744073709551616"],
    "stop": ['"\\n"', '["a" , "\\u0062"]', "null"],
    "logit_bias": ['{"1":-1e2, "2":1.50}'],
    "response_format": ['{"type": "json_schema","json_schema":{}}', "null"],
    "tools": ['[{"type":"function"} ]', "[]", "null"],
}  # fmt: skip

SPACES = st.sampled_from(["", "", " ", "\r\n\t "])
CHARACTERS = st.characters(exclude_categories=["Cs"])
STRINGS = st.lists(
    st.one_of(
        CHARACTERS.map(lambda text: json.dumps(text)[1:-1]),
        CHARACTERS.map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1]),
        st.sampled_from(
            ["\\/", "\\u0041", "\\ud83d\\ude00", "\\u0000", "]}", ",", ":", "data:", "image_url"]
        ),
    ),
    max_size=4,
).map(lambda pieces: f'"{"".join(pieces)}"')
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,9})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
VALUES = st.recursive(
    st.one_of(NUMBERS, STRINGS, st.sampled_from(["true", "false", "null"])),
    lambda inner: st.one_of(
        st.builds(lambda items, gap: f"[{gap}{f'{gap},'.join(items)}{gap}]", st.lists(inner, max_size=3), SPACES),
        st.builds(
            lambda items, gap: "{" + f"{gap}, ".join(f"{key}{gap}:{value}" for key, value in items) + "}",
            st.lists(st.tuples(STRINGS, inner), max_size=3),
            SPACES,
        ),
    ),
    max_leaves=6,
)  # fmt: skip
EXTENSIONS = st.tuples(
    st.one_of(
        st.sampled_from(["guided_json", "top_k", "é", "", "Model", "model "]),
        st.text(CHARACTERS, max_size=3).filter(lambda name: name not in TYPED),
    ),
    VALUES,
)  # fmt: skip
OPTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("include_usage"), st.sampled_from(["true", "false", "null"])),
        st.tuples(st.sampled_from(["continuous_usage_stats", "é", ""]), VALUES),
    ),
    max_size=4,
)
STREAM = st.sampled_from([("true",), ("true",), ("true",), ("false", "true"), ("null",), ()])
Pieces = list[tuple[str, str]]


@st.composite
def spelled(draw: st.DrawFn, pieces: Pieces) -> str:
    """An object with these keys and raw values, its keys and gaps spelled in any way."""
    members = []
    for key, value in pieces:
        way = draw(st.integers(0, 2))
        name = json.dumps(key, ensure_ascii=way == 1)
        if way == 2:
            units = key.encode("utf-16-be")
            name = '"' + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + '"'
        gap = draw(SPACES)
        members.append(f"{gap}{name}{gap}:{gap}{value}{gap}")
    return "{" + ",".join(members) + "}"


@st.composite
def bodies(draw: st.DrawFn, apis: tuple[Api, ...] = ("chat", "completions", "embeddings")):
    """An API, the pieces of a valid body (keys may come twice), the pieces of its stream_options, and the body."""
    api = draw(st.sampled_from(apis))
    names = st.sampled_from(sorted(TYPED.keys() - ({"n"} if api == "embeddings" else set())))
    typed = st.lists(
        names.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(TYPED[name]))), max_size=6
    )
    pieces: Pieces = [("model", '"m"'), *REQUIRED[api].items(), *draw(typed)]
    pieces += draw(st.lists(EXTENSIONS, max_size=3))
    pieces += [("stream", value) for value in draw(STREAM)]
    options = draw(st.none() | OPTIONS)
    if options is not None:
        pieces.append(("stream_options", draw(spelled(options))))
    pieces = draw(st.permutations(pieces))
    return api, pieces, options, draw(spelled(pieces)).encode()


def written(pieces: Pieces | dict[str, str]) -> bytes:
    """The object in its plainest spelling; of a key that comes twice, the first place and the last value."""
    members = (msgspec.json.encode(key) + b":" + value.encode() for key, value in dict(pieces).items())
    return b"{" + b",".join(members) + b"}"
