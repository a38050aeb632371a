"""What is read of a question about a plan, and the plan as one header line, whatever the endpoints are called."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import Key
from gateway.errors import ApiError
from gateway.explain import HEADER_BYTES, Explanation, Question, plan_line
from routing.pool import Pool
from routing.types import Call, Candidate, Endpoint, Estimate, Plan, Rejection, Tier

NAMES = st.text(max_size=400)
CANDIDATES = st.builds(
    Candidate,
    st.builds(Endpoint, name=NAMES, model=st.just("m"), served_model=st.just("m")),
    st.builds(Estimate, st.floats(0, 1e9), st.floats(0, 10), st.floats(0, 1e9), st.integers(0, 10**15)),
    st.floats(0, 1e18),
    st.booleans(),
)
REJECTIONS = st.builds(
    Rejection,
    st.builds(Endpoint, name=NAMES, model=st.just("m"), served_model=st.just("m")),
    NAMES,
    NAMES,
    st.none() | st.floats(0, 1e9),
)
PLANS = st.builds(
    lambda ranked, rejected: Plan(ranked, tuple(rejected)),
    st.lists(CANDIDATES, max_size=14),
    st.lists(REJECTIONS, max_size=14),
)


def shown(plan: Plan) -> dict:
    line = plan_line(plan)
    assert line.startswith(b"x-tidegate-plan: ")
    assert line.endswith(b"\r\n")
    return json.loads(line.removeprefix(b"x-tidegate-plan: "))


def endpoint(name: str) -> Endpoint:
    return Endpoint(name=name, model="m", served_model="m")


@given(PLANS)
def test_a_plan_is_one_short_header_line_of_visible_ascii(plan: Plan):
    line = plan_line(plan)
    assert len(line) <= HEADER_BYTES
    assert all(0x20 <= byte < 0x7F for byte in line[:-2])
    as_json = shown(plan)
    assert len(as_json["candidates"]) + as_json["more_candidates"] == len(plan.ranked)
    assert len(as_json["rejected"]) + as_json["more_rejected"] == len(plan.rejected)
    names = [candidate["endpoint"] for candidate in as_json["candidates"]]
    assert names == [candidate.endpoint.name for candidate in plan.ranked][: len(names)]


def test_the_header_has_ten_candidates_and_ten_rejections_where_they_fit():
    ranked = [Candidate(endpoint(f"e{i}"), Estimate(0.123456, 0.01, 0.0, 7), 8.5, True) for i in range(12)]
    rejected = tuple(Rejection(endpoint(f"r{i}"), "region", "is in us") for i in range(12))
    as_json = shown(Plan(ranked, rejected, (endpoint("p"),)))
    assert as_json["candidates"][9] == {
        "endpoint": "e9",
        "ttft_s": 0.1235,
        "ms_per_token": 10.0,
        "imposed_s": 0.0,
        "cached_tokens": 0,
        "cost_nano_usd": 7,
        "score_nano_usd": 8.5,
        "on_time": True,
    }
    assert as_json["rejected"][9] == {"endpoint": "r9", "filter": "region", "reason": "is in us"}
    assert [as_json[f"more_{what}"] for what in ("candidates", "rejected")] == [2, 2]
    assert as_json["passed_over"] == 1
    assert "last_resort" not in as_json


def test_a_plan_of_those_that_are_out_says_so():
    ranked = [Candidate(endpoint("e"), Estimate(0.1, 0.01, 0.0, 7), 8.5, True)]
    assert shown(Plan(ranked, (), last_resort=True))["last_resort"] is True


def test_an_explanation_says_when_all_are_out_and_asked_all_the_same():
    pool, tier = Pool(), Tier("default", max_ttft_s=5.0, waiting_nano_usd_per_s=1e6)
    standing = pool.add(endpoint("e"))
    call = Call("m", tier, prompt_tokens=100)

    def explained(now_s: float) -> tuple[list[str], bool]:
        explanation = Explanation.of(Key("", ""), pool.decision(call, now_s, 0.0))
        return [each.endpoint for each in explanation.candidates], explanation.last_resort

    assert explained(0.0) == (["e"], False)
    for _ in range(2):
        standing.failed(0.0, "reset", 0.5)
    assert explained(0.0) == ([], False)
    assert explained(pool.plan(call, 0.0, 0.0).retry_after_s) == (["e"], True)


@pytest.mark.parametrize(
    ("given", "api"),
    [
        (b'{"model": "m", "messages": []}', "chat"),
        (b'{"model": "m", "prompt": "x"}', "completions"),
        (b'{"model": "m", "input": "x"}', "embeddings"),
        (b'{"model": "m", "request": {}}', "chat"),
        (b"no JSON", "chat"),
    ],
)
def test_the_plain_body_of_a_call_is_taken_byte_for_byte(given: bytes, api: str):
    assert Question.read(given) == Question(api, given, {})


def test_a_question_may_name_the_api_and_headers_and_keeps_the_bytes_of_the_request():
    given = rb'{"request": {"messages": ["\u00e9",  1e2]}, "headers": {"X-Tidegate-Only": " a "}, "api": "completions"}'
    assert Question.read(given) == Question(
        "completions", rb'{"messages":["\u00e9",  1e2]}', {b"x-tidegate-only": b"a"}
    )


@pytest.mark.parametrize(
    ("given", "param"),
    [
        (b'{"request": []}', "request"),
        (b'{"request": {}, "api": "images"}', "api"),
        (b'{"request": {}, "headers": {"a": 1}}', "headers[...]"),
        (b'{"request": {}, "headers": {"a": "\xe2\x82\xac"}}', "headers.a"),
        (b'{"request": {}, "key": 1}', "key"),
        (b'{"request": {}, "tenant": "\x8f"}', None),
    ],
)
def test_a_question_that_makes_no_sense_is_an_error_that_names_its_field(given: bytes, param: str | None):
    with pytest.raises(ApiError) as raised:
        Question.read(given)
    assert (raised.value.status, raised.value.param) == (400, param)
