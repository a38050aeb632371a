"""`litellm` endpoints in the configuration."""

import pytest
from typer.testing import CliRunner

from backends.litellm_thread import INSTALL, is_installed
from gateway.cli import app
from gateway.config import Config, load
from gateway.config_file import ConfigError
from routing.types import Price, Trust

if not is_installed():
    pytest.skip(f"litellm is not installed: {INSTALL}", allow_module_level=True)
PRICED = "cost: {input: 1, output: 2}"


def read(tmp_path, *endpoints: str, environ=None, **model: str) -> Config:
    lines = "\n".join(f"      - {{{endpoint}}}" for endpoint in endpoints)
    more = "\n".join(f"    {key}: {value}" for key, value in model.items())
    path = tmp_path / "tidegate.yaml"
    path.write_text(f"models:\n  m:\n    price: {{input: 5, output: 25}}\n{more}\n    endpoints:\n{lines}\n")
    return load(path, environ or {})


def problems(tmp_path, *endpoints: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, *endpoints)
    return {path.removeprefix("models.m.endpoints[0]"): text for path, text in caught.value.problems}


def test_what_is_not_said_comes_from_litellms_table(tmp_path):
    (endpoint,) = read(tmp_path, "litellm: anthropic/claude-sonnet-4-5").endpoints_of("m")
    assert (endpoint.name, endpoint.served_model) == (
        "anthropic/claude-sonnet-4-5",
        "anthropic/claude-sonnet-4-5",
    )
    assert (endpoint.kind, endpoint.trust, endpoint.context_tokens) == ("litellm", Trust.PROVIDER, 200_000)
    assert endpoint.cost == Price(3_000_000, 15_000_000, 300_000)
    assert endpoint.capabilities == {"tools", "vision", "json_schema"}


def test_what_is_said_wins(tmp_path):
    said = f"litellm: anthropic/claude-sonnet-4-5, name: claude, {PRICED}, capabilities: [tools], context_tokens: 1000"
    (endpoint,) = read(tmp_path, said).endpoints_of("m")
    assert (endpoint.name, endpoint.cost) == ("claude", Price(1_000_000, 2_000_000))
    assert (endpoint.capabilities, endpoint.context_tokens) == ({"tools"}, 1000)
    (endpoint,) = read(tmp_path, "litellm: anthropic/claude-sonnet-4-5", context_tokens="500").endpoints_of(
        "m"
    )
    assert endpoint.context_tokens == 500


def test_a_model_without_a_known_price_needs_one(tmp_path):
    found = problems(tmp_path, "litellm: azure/our-deployment")
    assert found.keys() == {".litellm"}
    assert "give one as `cost`" in found[".litellm"]
    assert read(tmp_path, f"litellm: azure/our-deployment, {PRICED}").endpoints_of("m")


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        (f"litellm: claude, {PRICED}", ".litellm"),
        (f"litellm: anthropic/x, {PRICED}, model: y", ".model"),
        (f"litellm: anthropic/x, {PRICED}, api_keys: [a, b]", ".api_keys"),
        (f"litellm: anthropic/x, {PRICED}, params: {{api_key: x}}", ".params"),
        (f"litellm: anthropic/x, {PRICED}, params: {{num_retries: 5}}", ".params"),
        (f"litellm: anthropic/x, {PRICED}, params: [x]", ".params"),
        ("openai: https://api.example.com/v1, params: {x: y}", ".params"),
    ],
)
def test_what_makes_no_sense_is_an_error_at_its_place(tmp_path, endpoint, path):
    assert problems(tmp_path, endpoint).keys() == {path}


def test_two_endpoints_of_one_model_at_one_provider_need_names(tmp_path):
    twice = [f"litellm: anthropic/x, {PRICED}"] * 2
    with pytest.raises(ConfigError, match="another `name`"):
        read(tmp_path, *twice)


def test_check_shows_the_price_and_no_secret(tmp_path):
    said = "litellm: bedrock/meta.llama3-1-8b-instruct-v1:0, params: {aws_secret_access_key: harbour-secret}, api_key: harbour-key"
    read(tmp_path, said)
    for words in (["check"], ["check", "--format", "json"]):
        done = CliRunner().invoke(app, [*words, str(tmp_path / "tidegate.yaml")], catch_exceptions=False)
        assert done.exit_code == 0
        assert "harbour" not in done.stdout
    done = CliRunner().invoke(app, ["check", str(tmp_path / "tidegate.yaml")], catch_exceptions=False)
    assert "input 0.22, output 0.22 USD per million tokens, by litellm's table" in done.stdout


def test_params_come_from_the_environment_too(tmp_path):
    said = f"litellm: bedrock/x, {PRICED}, params: {{aws_region_name: '${{REGION}}'}}"
    config = read(tmp_path, said, environ={"REGION": "eu-west-1"})
    assert config.models["m"].endpoints[0].params.get_secret_value() == {"aws_region_name": "eu-west-1"}
