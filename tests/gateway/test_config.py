from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import trustme
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.litellm_thread import INSTALL, is_installed
from gateway.config import Config, ConfigError, config_reference, load
from routing.types import Price, Trust

if TYPE_CHECKING:
    from pathlib import Path

Read = Callable[..., Config]
Problems = Callable[..., dict[str, str]]

MINIMAL = """
models:
  llama:
    price: {input: 0.05, output: 0.10}
    endpoints:
      - worker: http://10.0.0.5:8000
"""

CONTRACT = """
listen: {host: 127.0.0.1, port: 8000}
database: sqlite:///tidegate.db           # or postgresql://user:pw@host/db
shared_state: memory://
auth: {mode: keys, master_key: ${TIDEGATE_MASTER_KEY}}      # mode: keys | none
models:
  llama-3.1-8b:
    aliases: [gpt-4o-mini]
    price: {input: 0.05, output: 0.10, cached_input: 0.025}
    endpoints:
      - worker: http://10.0.0.5:8000
        model: meta-llama/Llama-3.1-8B-Instruct
        gpu: rtx-4090
        region: eu-west
        trust: community
        cost: {input: 0.02, output: 0.04}
      - openai: https://api.example.com/v1
        api_key: ${EXAMPLE_API_KEY}
tiers:
  priority: {max_ttft_ms: 1000, waiting_usd_per_hour: 100}
  default:  {max_ttft_ms: 5000, waiting_usd_per_hour: 4}
  flex:     {max_ttft_ms: 600000, waiting_usd_per_hour: 0}
"""


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str, environ: dict[str, str] | None = None, **listen: Any) -> Config:
        path = tmp_path / "tidegate.yaml"
        path.write_text(text)
        return load(path, environ or {}, listen)

    return read


@pytest.fixture
def problems(read: Read):
    def problems(text: str, environ: dict[str, str] | None = None, **listen: Any) -> dict[str, str]:
        with pytest.raises(ConfigError) as caught:
            read(text, environ, **listen)
        return dict(caught.value.problems)

    return problems


def with_endpoint(**endpoint: Any) -> str:
    model = {"price": {"input": 1, "output": 2}, "endpoints": [endpoint]}
    return yaml.safe_dump({"models": {"llama": model}})


def test_the_example_of_the_contract_is_read_as_it_says(read: Read):
    config = read(CONTRACT, {"TIDEGATE_MASTER_KEY": "m", "EXAMPLE_API_KEY": "e"})
    worker, hosted = config.endpoints_of("llama-3.1-8b")
    assert (worker.name, worker.url, worker.kind) == ("10.0.0.5:8000", "http://10.0.0.5:8000", "worker")
    assert (worker.served_model, worker.trust) == ("meta-llama/Llama-3.1-8B-Instruct", Trust.COMMUNITY)
    assert worker.cost == Price(20_000, 40_000, None)
    assert (hosted.name, hosted.url) == ("api.example.com:443", "https://api.example.com/v1")
    assert (hosted.served_model, hosted.trust) == ("llama-3.1-8b", Trust.PROVIDER)
    model = config.models["llama-3.1-8b"]
    assert model.price.price() == Price(50_000, 100_000, 25_000)
    assert model.endpoints[1].api_key.get_secret_value() == "e"
    assert config.auth.master_key.get_secret_value() == "m"
    assert config.tier("priority").waiting_nano_usd_per_s == pytest.approx(100e9 / 3600)
    assert config.tier("flex").max_ttft_s == 600


def test_a_minimal_file_gets_every_default(read: Read):
    config = read(MINIMAL)
    assert (config.listen.host, config.listen.port, config.auth.mode) == ("127.0.0.1", 8000, "keys")
    assert config.database.get_secret_value() == "sqlite:///tidegate.db"
    assert (config.tier("default").max_ttft_s, config.tier("flex").waiting_nano_usd_per_s) == (5, 0)


def test_the_tree_cannot_be_changed(read: Read):
    config = read(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.listen.port = 1


def test_every_problem_is_reported_at_once_with_its_path(problems: Problems):
    found = problems("""
        listen: {host: 0.0.0.0, prot: 1}
        auth: {mode: none}
        shared_state: redis://localhost:6379/0
        models:
          llama:
            aliases: [small, other, small]
            price: {input: 0.0500001, output: -1}
            endpoints:
              - worker: http://10.0.0.5:8000/v1
              - {worker: http://a:1, openai: http://a:1/v1}
              - {litellm: claude, cost: {input: 1, output: 2}}
              - {}
              - {worker: http://b:1, timeout: 5}
              - {worker: http://b:1/, trust: nobody, capabilities: [dancing]}
          other:
        limits: {attempts: yes, body_bytes: 1.5, reply_bytes: true}
    """)
    assert found.keys() == {
        "listen.prot",
        "auth.mode",
        "shared_state",
        "models.llama.aliases[1]",
        "models.llama.aliases[2]",
        "models.llama.price.input",
        "models.llama.price.output",
        "models.llama.endpoints[0].worker",
        "models.llama.endpoints[1]",
        "models.llama.endpoints[2].litellm",
        "models.llama.endpoints[3]",
        "models.llama.endpoints[4].timeout",
        "models.llama.endpoints[5]",
        "models.llama.endpoints[5].trust",
        "models.llama.endpoints[5].capabilities[0]",
        "models.other.price",
        "models.other.endpoints",
        "limits.attempts",
        "limits.body_bytes",
        "limits.reply_bytes",
    }
    assert found["listen.prot"] == "unknown key; did you mean port?"
    assert "allow_public" in found["auth.mode"]
    assert "not supported by this version" in found["shared_state"]
    assert "leave out the path" in found["models.llama.endpoints[0].worker"]
    assert "another `name`" in found["models.llama.endpoints[5]"]


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


BREAKAGES = {
    ("listen", "port"): "99999",
    ("limits", "attempts"): 0,
    ("timeouts", "silence_s"): "soon",
    ("health", "interval_s"): -1,
    ("auth", "mode"): "maybe",
    ("database",): "mysql://h/d",
    ("tiers", "flex", "max_ttft_ms"): None,
    ("journal", "fodler"): "x",
    ("cors", "origins", 0): "https://example.com/",
    ("models", "a", "price", "input"): "free",
    ("models", "a", "endpoints", 0, "worker"): "ftp://x",
    ("models", "a", "endpoints", 1, "gpu"): "no spaces",
    ("models", "b", "context_tokens"): 1.5,
    ("models", "b", "endpoints", 0, "cost", "output"): -1,
}


@given(st.sets(st.sampled_from(sorted(BREAKAGES, key=str)), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_whatever_is_broken_exactly_that_is_reported(problems: Problems, broken: set[tuple[str | int, ...]]):
    price = {"input": 1, "output": 2}
    tree: dict[str, Any] = {
        "models": {
            "a": {"price": {**price}, "endpoints": [{"worker": "http://a:1"}, {"worker": "http://a:2"}]},
            "b": {"price": {**price}, "endpoints": [{"openai": "http://b/v1", "cost": {**price}}]},
        },
        "cors": {"origins": ["*"]},
    }
    for keys in broken:
        place: Any = tree
        for key in keys[:-1]:
            place = place[key] if isinstance(key, int) else place.setdefault(key, {})
        place[keys[-1]] = BREAKAGES[keys]
    expected = {re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, keys))) for keys in broken}
    assert problems(yaml.safe_dump(tree)).keys() == expected


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


def test_values_come_from_the_environment(read: Read):
    text = (
        MINIMAL + 'listen: {port: "${PORT}", host: ${HOST:-localhost}}\ntimeouts: {total_s: ${TOTAL:-1.5}}\n'
    )
    config = read(text, {"PORT": "1234"})
    assert (config.listen.port, config.listen.host, config.timeouts.total_s) == (1234, "localhost", 1.5)


def test_an_empty_value_takes_the_default_and_an_empty_default_means_nothing(read: Read):
    text = MINIMAL + "auth: {master_key: ${KEY:-}}\nlisten: {port: ${PORT:-81}}\n"
    config = read(text, {"PORT": ""})
    assert config.auth.master_key is None
    assert config.listen.port == 81


def test_a_dollar_doubled_stands_for_itself(read: Read):
    config = read(with_endpoint(worker="http://h:1", model="a/$${HOME}/$HOME/$$"), {"HOME": "no"})
    assert config.endpoints_of("llama")[0].served_model == "a/${HOME}/$HOME/$$"


@given(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_value_from_the_environment_cannot_add_structure(read: Read, value: str):
    config = read(with_endpoint(worker="http://h:1", model="${KEY}"), {"KEY": value})
    assert config.models["llama"].endpoints[0].model == value


def test_an_unset_name_is_an_error_with_its_path_and_the_only_one_there(problems: Problems):
    assert problems(with_endpoint(worker="${WORKER}")) == {
        "models.llama.endpoints[0].worker": "the environment has no WORKER"
    }


def test_a_malformed_reference_is_an_error(problems: Problems):
    assert problems(with_endpoint(worker="http://h:1", model="${1X}")).keys() == {
        "models.llama.endpoints[0].model"
    }


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


def test_a_key_that_stands_twice_is_an_error(problems: Problems):
    found = problems(MINIMAL + "listen: {port: 1}\nlisten: {port: 2}\n")
    assert found == {"listen": "the key stands here a second time (line 8)"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n", "should be a mapping"),
        ("word", "should be a mapping"),
        ("a: [1\nb: 2\n", "line 2, column 2"),
        ("a: 'x\n", "line 2, column 1"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: *nowhere\n", "line 1, column 4"),
        ("[" * 5000, "nested too deeply"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_a_clear_error(problems: Problems, text: str, message: str):
    assert message in problems(text)[""]


def test_a_missing_file_a_folder_and_bytes_are_clear_errors(tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    for name, message in (("none.yaml", "no such file"), (".", "cannot read"), ("binary", "not UTF-8")):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name, {})


def test_an_anchor_serves_twice_and_may_not_contain_itself(read: Read, problems: Problems):
    text = MINIMAL.replace("price: {", "price: &p {").replace("8000\n", "8000\n        cost: *p\n")
    assert read(text).endpoints_of("llama")[0].cost == Price(50_000, 100_000, None)
    assert "contain itself" in problems("listen: &l {host: *l}\n")["listen.host"]


def test_a_word_is_no_boolean_and_tags_are_refused(read: Read, problems: Problems):
    assert read(MINIMAL + "        region: no\n").endpoints_of("llama")[0].region == "no"
    assert "tags" in problems(MINIMAL + "listen: !!python/object:os.system {}\n")["listen"]
    assert "tags" in problems(MINIMAL + "database: !vault abc\n")["database"]


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL + "database: postgresql://user:hunter2@host\n",
        MINIMAL + "shared_state: redis://:hunter2@host:6379/0\n",
        MINIMAL + "auth: {master_key: [hunter2]}\n",
        MINIMAL + "auth: {master_key: {hunter2: 1}}\n",
        MINIMAL + "auth: {master_key: *hunter2}\n",
        MINIMAL + "auth: {master_key: !hunter2 x}\n",
        MINIMAL + "auth: {master_key: '${hunter2 2}'}\n",
        MINIMAL + "auth: {master_key: 'hunter2}\n",
        MINIMAL + 'auth: {master_key: "\\hunter2"}\n',
        MINIMAL + "auth: {mode: hunter2}\n",
        MINIMAL + "auth: hunter2\n",
        with_endpoint(worker="http://user:hunter2@host:1"),
        with_endpoint(openai="https://host/v1?key=hunter2"),
        with_endpoint(openai="hunter2"),
        with_endpoint(openai="https://host:hunter2/"),
    ],
)
def test_no_error_quotes_what_may_be_a_secret(tmp_path: Path, text: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert "hunter2" not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_secrets_are_masked_in_every_print(read: Read):
    secret = {"KEY": "hunter2"}
    text = with_endpoint(openai="https://h/v1", api_keys=["${KEY}", "${KEY}-2"])
    text += "auth: {master_key: ${KEY}}\ndatabase: postgresql://user:${KEY}@host/db?password=${KEY}\n"
    config = read(text, secret)
    shown = f"{config} {config!r} {config.model_dump()} {config.model_dump_json()} {config.database_shown()}"
    assert "hunter2" not in shown
    assert config.database_shown() == "postgresql://host/db"


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("sqlite:///tidegate.db", True),
        ("sqlite:////var/lib/tidegate.db", True),
        ("postgresql://u:p@h/db", True),
        ("postgresql+psycopg://u:p@h:5432/db?sslmode=require", True),
        ("sqlite://", False),
        ("sqlite:///:memory:", False),
        ("tidegate.db", False),
    ],
)
def test_databases_that_keep_what_they_are_given_are_accepted(
    *, read: Read, problems: Problems, url: str, allowed: bool
):
    text = MINIMAL + f"database: '{url}'\n"
    assert read(text).database.get_secret_value() == url if allowed else problems(text).keys() == {"database"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
@pytest.mark.parametrize("allow", ["false", "0", "no", "off", "f", "n"])
def test_no_keys_on_a_public_address_is_refused_unless_it_is_meant(
    read: Read, problems: Problems, host: str, allow: str
):
    text = MINIMAL + f"auth: {{mode: none, allow_public: {allow}}}\nlisten: {{host: '{host}'}}\n"
    assert problems(text).keys() == {"auth.mode"}
    assert read(text.replace(f"public: {allow}", "public: true")).auth.allow_public
    assert read(text, host="localhost").listen.is_loopback


def test_the_command_line_wins_over_the_file_and_is_checked_with_it(read: Read, problems: Problems):
    text = MINIMAL + "auth: {mode: none}\nlisten: {port: 1}\n"
    assert read(text, port=2).listen.port == 2
    assert problems(text, host="0.0.0.0").keys() == {"auth.mode"}
    assert problems(MINIMAL + "listen: 8000\n", port=2) == {"listen": "should be a mapping"}


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


def test_nothing_to_serve_is_an_error(problems: Problems):
    assert problems("models: {}\n") == {"models": "needs at least one model"}
    assert problems("listen: {}\n") == {"models": "is required"}
    empty = MINIMAL.partition("endpoints:")[0] + "endpoints: []\n"
    assert problems(empty) == {"models.llama.endpoints": "needs at least one endpoint"}


def test_a_config_made_in_code_is_checked_like_one_from_a_file():
    endpoint = {"worker": "http://a:1"}
    model = {"price": {"input": "1", "output": "2"}, "endpoints": [endpoint, endpoint]}
    with pytest.raises(ValueError, match="another `name`"):
        Config.model_validate({"models": {"llama": model}})


def test_the_reference_names_every_key_with_a_meaning():
    rows = config_reference().splitlines()[2:]
    keys = [row.split("`")[1] for row in rows]
    assert len(keys) == len(set(keys)) > 50
    assert all(not row.endswith("|  |") for row in rows)
    assert "| `listen.port` | `8000` |" in config_reference()
    assert "models.NAME.endpoints[].cost.cached_input" in keys
