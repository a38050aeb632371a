import json
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sim_client import CAPTURES, asking, connected, fast_worker, needs_captures

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def shape(value: Any) -> Any:
    """Keys in their order, and types; of a list, what its first element is like."""
    if isinstance(value, dict):
        return [(key, shape(part)) for key, part in value.items()]
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def shapes_of_events(text: str) -> list[Any]:
    datas = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else shape(json.loads(data)) for data in datas]


def capture(name: str) -> tuple[list[str], str]:
    """The names of a captured reply's headers, in order, and its body."""
    head, _, body = (CAPTURES / name).read_text().partition("\n\n")
    return [line.partition(":")[0] for line in head.splitlines()[1:]], body


def header_names(reply: httpx2.Response) -> list[str]:
    return [name.decode() for name, _ in reply.headers.raw]


def tops(choice: dict[str, Any]) -> list[str]:
    return [top["token"] for top in choice["logprobs"]["content"][0]["top_logprobs"]]


@needs_captures
async def test_a_whole_chat_reply_has_the_captured_shape_and_headers():
    names, body = capture("chat_nonstream.txt")
    async with fast_worker() as (_, client):
        asked = asking(logprobs=True, top_logprobs=2, max_tokens=8)
        reply = await client.post(CHAT, json=asked, headers={"X-Request-Id": "my-rid-1"})
    assert shape(reply.json()) == shape(json.loads(body))
    assert reply.json()["id"] == json.loads(body)["id"]
    assert header_names(reply) == names
    assert len(tops(reply.json()["choices"][0])) == len(tops(json.loads(body)["choices"][0]))


@needs_captures
async def test_token_ids_stand_where_they_were_captured():
    _, body = capture("chat_token_ids_prompt_logprobs.txt")
    captured = json.loads(body) | {"prompt_logprobs": None}
    async with fast_worker() as (_, client):
        reply = await client.post(CHAT, json=asking(max_tokens=2, return_token_ids=True))
    assert shape(reply.json()) == shape(captured)


@needs_captures
@pytest.mark.parametrize(
    ("name", "path", "asked"),
    [
        ("chat_stream.txt", CHAT, asking(max_tokens=4, stream_options={"include_usage": True})),
        (
            "chat_stream_cont_usage.txt",
            CHAT,
            asking(max_tokens=2, stream_options={"include_usage": True, "continuous_usage_stats": True}),
        ),
        (
            "completions_stream_tokenids.txt",
            COMPLETIONS,
            {
                "prompt": [5, 6, 7, 300, 301],
                "max_tokens": 2,
                "return_token_ids": True,
                "stream_options": {"include_usage": True},
            },
        ),
    ],
)
async def test_a_stream_has_the_captured_events(name: str, path: str, asked: dict[str, Any]):
    text = (CAPTURES / name).read_text()
    async with fast_worker() as (_, client):
        reply = await client.post(path, json={**asked, "stream": True})
    assert shapes_of_events(reply.text) == shapes_of_events(text)
    if text.startswith("HTTP"):
        assert header_names(reply) == capture(name)[0]


@needs_captures
async def test_a_whole_completion_has_the_captured_shape():
    captured = json.loads((CAPTURES / "completions.json").read_text())
    asked = {"prompt": "The tide turns", "max_tokens": 4, "logprobs": 1, "return_token_ids": True}
    async with fast_worker() as (_, client):
        reply = (await client.post(COMPLETIONS, json=asked)).json()
    for part in (captured, reply):
        [logprobs] = [choice["logprobs"] for choice in part["choices"]]
        assert [list(top) for top in logprobs.pop("top_logprobs")] == [
            [token] for token in logprobs["tokens"]
        ]
    assert shape(reply) == shape(captured)


@needs_captures
@pytest.mark.parametrize(
    ("name", "path"), [("models.json", "/v1/models"), ("version.json", "/version"), ("load.json", "/load")]
)
async def test_what_it_says_of_itself_has_the_captured_shape(name: str, path: str):
    async with fast_worker() as (_, client):
        assert shape((await client.get(path)).json()) == shape(json.loads((CAPTURES / name).read_text()))


@needs_captures
async def test_tokenize_has_the_captured_shape_and_template():
    captured = json.loads((CAPTURES / "tokenize_chat.json").read_text())
    asked = {"messages": asking("Hello there")["messages"], "return_token_strs": True}
    async with fast_worker() as (_, client):
        reply = (await client.post("/tokenize", json=asked)).json()
    assert shape(reply) == shape(captured)
    assert (reply["tokens"][:2], reply["tokens"][-2:]) == (captured["tokens"][:2], captured["tokens"][-2:])


@needs_captures
@pytest.mark.parametrize(
    ("title", "path", "content"),
    [
        ("unknown model", CHAT, json.dumps({**asking(), "model": "nope"})),
        ("too long", COMPLETIONS, json.dumps({"prompt": [5] * 2100})),
        ("bad json", COMPLETIONS, "{nonsense"),
        ("max_tokens 0", COMPLETIONS, json.dumps({"prompt": "x", "max_tokens": 0})),
        (
            "stream error: stream_options without stream",
            COMPLETIONS,
            json.dumps({"prompt": "x", "stream_options": {"include_usage": True}}),
        ),
    ],
)
async def test_an_error_is_worded_as_captured(title: str, path: str, content: str):
    sections = (CAPTURES / "errors.txt").read_text().split("## ")
    [captured] = [text.partition("\n")[2] for text in sections if text.startswith(title + "\n")]
    body, _, status = captured.rpartition(" [HTTP ")
    async with fast_worker(model="tiny", max_model_len=2048) as (_, client):
        reply = await client.post(path, content=content, headers={"content-type": "application/json"})
    assert reply.json() == json.loads(body)
    assert f"{reply.status_code}]" == status.strip()


async def test_wrong_types_content_types_paths_and_methods_are_refused():
    async with fast_worker() as (_, client):
        wrong = await client.post(CHAT, json=asking(max_tokens="many"))
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_tokens")
        assert (
            await client.post(CHAT, content=b"{}", headers={"content-type": "text/plain"})
        ).status_code == 400
        assert (await client.get("/nowhere")).json() == {"detail": "Not Found"}
        assert (await client.get(CHAT)).status_code == 405
        assert (await client.post(COMPLETIONS, json={"prompt": [-1]})).status_code == 400
        assert (await client.post(COMPLETIONS, json={"prompt": []})).status_code == 400
        assert (await client.post(COMPLETIONS, json={"prompt": [5, "mixed"]})).status_code == 400
        assert (await client.post(CHAT, json=asking(max_tokens=10**6))).status_code == 400
        assert (await client.get("/health")).status_code == 200


async def test_a_schema_that_nothing_can_satisfy_harms_no_other_request():
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 1}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with fast_worker() as (_, client):
        assert (await client.post(CHAT, json=asking(response_format=wanted))).status_code == 500
        assert (await client.post(CHAT, json=asking())).status_code == 200


async def test_what_is_no_http_gets_a_400_and_the_end():
    async with fast_worker() as (worker, _), connected(worker) as (reader, writer):
        writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@needs_captures
async def test_every_metric_has_the_captured_name_and_labels():
    def labels(text: str) -> dict[str, set[frozenset[str]]]:
        found: dict[str, set[frozenset[str]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).add(frozenset(sample.labels))
        return found

    def types(text: str) -> set[str]:
        return {line for line in text.splitlines() if line.startswith("# TYPE")}

    async with fast_worker() as (_, client):
        await client.post(CHAT, json=asking())
        text = (await client.get("/metrics")).text
    ours, captured_text = labels(text), (CAPTURES / "metrics.txt").read_text()
    captured = labels(captured_text)
    config = "vllm:cache_config_info"
    assert types(text) <= types(captured_text)
    assert next(iter(ours.pop(config))) < next(iter(captured.pop(config)))
    assert all(
        captured[name] == ours[name] for name in ours.keys() & captured.keys()
    )  # some were captured without samples


async def test_metrics_count_tokens_and_requests():
    async with fast_worker() as (_, client):
        usage = (await client.post(CHAT, json=asking(max_tokens=5))).json()["usage"]
        families = {f.name: f for f in text_string_to_metric_families((await client.get("/metrics")).text)}
    values = {s.name: s.value for family in families.values() for s in family.samples if len(s.labels) == 2}
    assert values["vllm:prompt_tokens_total"] == usage["prompt_tokens"]
    assert values["vllm:generation_tokens_total"] == 5
    reasons = {s.labels["finished_reason"]: s.value for s in families["vllm:request_success"].samples}
    assert reasons == {"stop": 0, "length": 1, "abort": 0, "error": 0, "repetition": 0}
