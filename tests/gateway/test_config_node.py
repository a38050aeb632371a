from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config_node import DrainSection, NodeSection, NoticeSection, read_section
from gateway.errors import ApiError
from routing.types import Price, Trust

NODE: dict[str, Any] = {"name": "n1", "url": "http://10.0.0.7:8000", "models": ["llama"]}


def node(**more: Any) -> NodeSection:
    return read_section(NodeSection, json.dumps({**NODE, **more}).encode())


def refused(body: bytes, kind: type = NodeSection) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_section(kind, body)
    return caught.value


def test_what_a_node_says_makes_the_endpoint_that_a_configuration_would():
    said = node(
        models={"llama": "meta/llama"},
        gpu="rtx-4090",
        region="eu",
        trust="verified",
        cost={"input": 0.02, "output": 0.04},
        capabilities=["tools"],
        context_tokens=8192,
        api_key="secret-key",
    )
    endpoint = said.endpoint("llama").endpoint("llama", None, None)
    assert (endpoint.name, endpoint.served_model, endpoint.kind) == ("n1", "meta/llama", "worker")
    assert (endpoint.url, endpoint.gpu, endpoint.region) == ("http://10.0.0.7:8000", "rtx-4090", "eu")
    assert (endpoint.trust, endpoint.cost) == (Trust.VERIFIED, Price(20_000, 40_000))
    assert (endpoint.capabilities, endpoint.context_tokens) == (frozenset({"tools"}), 8192)
    assert "secret-key" not in repr(said) + said.model_dump_json()


def test_a_list_of_models_is_short_for_their_public_names():
    assert node().models == {"llama": "llama"}
    assert node().endpoint("llama").endpoint("llama", None, 4096).context_tokens == 4096


def test_what_is_written_down_is_read_again():
    said = node(cost={"input": "0.000001", "output": 2}, lease_s=5)
    assert NodeSection.model_validate_json(said.model_dump_json(exclude_none=True)) == said


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://x/v1"}, "url"),
        ({"name": ""}, "name"),
        ({"models": []}, "models"),
        ({"models": {"llama": ""}}, "models.llama"),
        ({"models": ["llama", 7]}, "models"),
        ({"trust": "blind"}, "trust"),
        ({"cost": {"input": -1, "output": 1}}, "cost.input"),
        ({"cost": {"input": 1}}, "cost.output"),
        ({"capabilities": ["magic"]}, "capabilities"),
        ({"context_tokens": 0}, "context_tokens"),
        ({"lease_s": 0.5}, "lease_s"),
        ({"gpus": "x"}, "gpus"),
        ({"kv_replay": "tcp://10.0.0.7:5558"}, "kv_replay"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(more: dict[str, Any], path: str):
    error = refused(json.dumps({**NODE, **more}).encode())
    assert (error.code, error.status) == ("invalid_value", 400)
    assert error.message.startswith(path)


def test_all_that_is_wrong_is_said_at_once():
    error = refused(b'{"name": "n1", "url": "x", "trust": "blind"}')
    assert [part.partition(":")[0] for part in error.message.split("; ")] == ["url", "models", "trust"]


@pytest.mark.parametrize(
    ("body", "code"), [(b"{", "invalid_json"), (b"[]", "invalid_value"), (b"7", "invalid_value")]
)
def test_what_is_no_object_is_an_error(body: bytes, code: str):
    assert refused(body).code == code


def test_a_drain_needs_no_body_and_a_notice_a_time():
    assert read_section(DrainSection, b"").within_s is None
    assert read_section(NoticeSection, b'{"in_s": 30}').in_s == 30
    assert refused(b"", NoticeSection).message == "in_s: is required"


@pytest.mark.parametrize("name", ["n1/drain", "n1/heartbeat", "eu/n1/preempt"])
def test_no_node_is_named_like_what_is_asked_of_another_one(name: str):
    assert refused(json.dumps({**NODE, "name": name}).encode()).param == "name"
