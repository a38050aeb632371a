from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from config_files import MINIMAL, Problems, Read, with_endpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import Config, load
from gateway.config_file import ConfigError
from routing.types import Price, Trust

if TYPE_CHECKING:
    from pathlib import Path

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
        shared_state: rabbit://localhost:6379/0
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
    assert found["shared_state"].startswith(
        "should be memory://, redis://HOST:PORT/NUMBER, redis+sentinel://"
    )
    assert "leave out the path" in found["models.llama.endpoints[0].worker"]
    assert "another `name`" in found["models.llama.endpoints[5]"]


@pytest.mark.parametrize(
    ("section", "path", "message"),
    [
        ("cors: {origins: here}", "cors.origins", "should be a list"),
        ("tenants: [acme]", "tenants", "should be a mapping"),
        ("tenants: {acme: {policy: {regions: eu}}}", "tenants.acme.policy.regions", "should be a list"),
        (
            "tenants: {acme: {policy: {max_price: {input: free}}}}",
            "tenants.acme.policy.max_price.input",
            "should be a number",
        ),
        (
            "tenants: {acme: {policy: {max_price: {input: []}}}}",
            "tenants.acme.policy.max_price.input",
            "should be a number",
        ),
        ("limits: {attempts: some}", "limits.attempts", "should be a whole number"),
        ("limits: {attempts: 1.5}", "limits.attempts", "should be a whole number"),
        ("limits: {attempts: []}", "limits.attempts", "should be a whole number"),
        ("health: {interval_s: soon}", "health.interval_s", "should be a number"),
        ("health: {interval_s: []}", "health.interval_s", "should be a number"),
        ("auth: {allow_public: perhaps}", "auth.allow_public", "should be true or false"),
        ("auth: {allow_public: []}", "auth.allow_public", "should be true or false"),
        ("auth: {mode: maybe}", "auth.mode", "should be 'keys' or 'none'"),
        ("journal: {folder: []}", "journal.folder", "should be text"),
        ("listen: {port: 99999}", "listen.port", "should be less than or equal to 65535"),
    ],
)
def test_what_a_value_should_be_is_said_in_words_of_the_file_not_of_python(
    problems: Problems, section: str, path: str, message: str
):
    assert problems(f"{MINIMAL}{section}\n") == {path: message}


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


def test_a_missing_file_a_folder_and_bytes_are_clear_errors(tmp_path: Path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    for name, message in (("none.yaml", "no such file"), (".", "cannot read"), ("binary", "not UTF-8")):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name, {})


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL + "database: postgresql://user:hunter2@host\n",
        MINIMAL + "shared_state: redis://:hunter2@host:six/0\n",
        MINIMAL + "shared_state: redis+sentinel://:hunter2@host:1,host:2\n",
        MINIMAL + "shared_state: redis+cluster://host:1?password=hunter2\n",
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
    ("url", "shown"),
    [
        ("memory://", "memory://"),
        ("redis://user:hunter2@host:6380/1", "redis://host:6380/1"),
        ("redis+sentinel://:hunter2@a,b:26380/tides/2?sentinel_password=hunter2", "redis+sentinel://a,b:26380/tides/2"),
    ],
)  # fmt: skip
def test_where_state_is_shared_is_shown_without_its_password(read: Read, url: str, shown: str):
    config = read(f"{MINIMAL}shared_state: {url}\n").shown()
    assert config["shared_state"] == shown
    assert "hunter2" not in str(config)


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


def test_nothing_to_serve_is_an_error(problems: Problems):
    assert problems("models: {}\n") == {"models": "needs at least one model"}
    assert problems("listen: {}\n") == {"models": "is required"}
    absent = MINIMAL.partition("endpoints:")[0]
    assert problems(absent) == {"models.llama.endpoints": "is required"}


def test_a_model_may_have_no_endpoints_but_those_that_register(read: Read):
    assert read(MINIMAL.partition("endpoints:")[0] + "endpoints: []\n").endpoints_of("llama") == ()


def test_a_config_made_in_code_is_checked_like_one_from_a_file():
    endpoint = {"worker": "http://a:1"}
    model = {"price": {"input": "1", "output": "2"}, "endpoints": [endpoint, endpoint]}
    with pytest.raises(ValueError, match="another `name`"):
        Config.model_validate({"models": {"llama": model}})
