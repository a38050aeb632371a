from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
import trustme
from config_files import MINIMAL, Problems, Read, with_endpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.litellm_thread import INSTALL, is_installed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(is_installed(), reason="litellm is installed")
def test_without_litellm_it_is_said_how_to_get_it(problems: Problems):
    endpoint = "{litellm: anthropic/claude-sonnet-4-5, cost: {input: 1, output: 2}}"
    found = problems(f"""
        models:
          m:
            price: {{input: 1, output: 2}}
            endpoints: [{endpoint}]
    """)
    assert found == {"models.m.endpoints[0].litellm": f"litellm is not installed; get it by {INSTALL}"}


@given(st.decimals(0, 1_000_000, places=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_price_keeps_every_decimal_on_its_way_to_pico_usd(read: Read, usd: Decimal):
    config = read(MINIMAL.replace("input: 0.05, output: 0.10", f"input: {usd:f}, output: {usd}"))
    price = config.models["llama"].price.price()
    assert price.input_pico_usd == price.output_pico_usd
    assert Decimal(price.input_pico_usd).scaleb(-6) == usd


@pytest.mark.parametrize(
    "price", ["0.0000001", "1e-7", "-0.01", "1000001", "1e999999", ".inf", ".nan", "true", "[]"]
)
def test_a_price_that_is_none_is_refused(problems: Problems, price: str):
    assert problems(MINIMAL.replace("0.05", price)).keys() == {"models.llama.price.input"}


def test_an_empty_secret_is_an_error(problems: Problems):
    found = problems(with_endpoint(worker="http://h:1", api_key="${KEY}"), {"KEY": ""})
    assert found.keys() == {"models.llama.endpoints[0].api_key"}


@pytest.mark.parametrize("key", ["sk-1\n", "sk 1", "sk-1\r\nx: y", "schlüssel"])
def test_a_key_that_is_no_header_is_an_error(problems: Problems, key: str):
    found = problems(with_endpoint(openai="https://h/v1", api_key="${KEY}"), {"KEY": key})
    assert found == {
        "models.llama.endpoints[0].api_key": "should be printable ASCII characters without spaces or line breaks"
    }


KEYS = "models.llama.endpoints[0].api_keys"


def test_an_openai_endpoint_may_have_one_key_or_several(read: Read):
    text = with_endpoint(openai="https://h/v1", api_keys=["k1", "${KEY}"])
    several = read(text, {"KEY": "k2"}).models["llama"].endpoints[0]
    assert [key.get_secret_value() for key in several.keys] == ["k1", "k2"]
    one = read(with_endpoint(openai="https://h/v1", api_key="k")).models["llama"].endpoints[0]
    assert [key.get_secret_value() for key in one.keys] == ["k"]
    assert read(MINIMAL).models["llama"].endpoints[0].keys == ()


def test_several_keys_are_given_in_one_place_and_only_where_they_are_used(problems: Problems):
    both = with_endpoint(openai="https://h/v1", api_keys=["a", "b"], api_key="c")
    assert problems(both) == {KEYS: "stands in place of api_key; give one of the two"}
    worker = with_endpoint(worker="http://h:1", api_keys=["a"])
    assert problems(worker) == {KEYS: "is for openai endpoints; use api_key"}
    for keys in ([], ["k"] * 101):
        assert problems(with_endpoint(openai="https://h/v1", api_keys=keys)).keys() == {KEYS}
    empty = with_endpoint(openai="https://h/v1", api_keys=["a", ""])
    assert problems(empty).keys() == {f"{KEYS}[1]"}


EVENTS, REPLAY = "tcp://10.0.0.5:5557", "tcp://[::1]:5558"


def test_a_worker_may_publish_what_is_in_its_cache(read: Read):
    found = (
        read(with_endpoint(worker="http://h:1", kv_events=EVENTS, kv_replay=REPLAY))
        .models["llama"]
        .endpoints[0]
    )
    assert (found.kv_events, found.kv_replay) == (EVENTS, REPLAY)


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ({"worker": "http://h:1", "kv_replay": REPLAY}, "kv_replay", "is of use only with kv_events"),
        ({"openai": "https://h/v1", "kv_events": EVENTS}, "kv_events", "is for workers"),
        ({"worker": "http://h:1", "kv_events": "http://h:5557"}, "kv_events", "such as tcp://10.0.0.5:5557"),
        ({"worker": "http://h:1", "kv_events": "tcp://*:5557"}, "kv_events", "such as tcp://10.0.0.5:5557"),
    ],
)
def test_events_are_followed_where_a_worker_publishes_them(
    problems: Problems, section: dict[str, str], key: str, message: str
):
    found = problems(with_endpoint(**section))
    assert found.keys() == {f"models.llama.endpoints[0].{key}"}
    assert message in found[f"models.llama.endpoints[0].{key}"]


def test_an_endpoint_takes_from_its_model_what_it_does_not_declare(read: Read):
    text = MINIMAL.replace("price:", "capabilities: [tools]\n    context_tokens: 100\n    price:")
    text += "      - {worker: 'http://b', capabilities: [], context_tokens: 7}\n"
    first, second = read(text).endpoints_of("llama")
    assert (first.capabilities, first.context_tokens) == (frozenset({"tools"}), 100)
    assert (second.name, second.capabilities, second.context_tokens) == ("b:80", frozenset(), 7)


def test_a_ca_file_must_exist_and_needs_https(read: Read, problems: Problems, tmp_path: Path):
    ca = tmp_path / "ca.pem"
    assert problems(with_endpoint(worker="https://h", ca_file=str(ca))) == {
        "models.llama.endpoints[0].ca_file": "no such file"
    }
    ca.write_text("nothing of the kind")
    assert problems(with_endpoint(worker="https://h", ca_file=str(ca))) == {
        "models.llama.endpoints[0].ca_file": "should hold a certificate in PEM"
    }
    trustme.CA().cert_pem.write_to_path(ca)
    assert read(with_endpoint(worker="https://h", ca_file=str(ca))).models["llama"].endpoints[0].ca_file == ca
    assert (
        "https"
        in problems(with_endpoint(worker="http://h", ca_file=str(ca)))["models.llama.endpoints[0].ca_file"]
    )
