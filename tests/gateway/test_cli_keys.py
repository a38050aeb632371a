from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from gateway.cli_keys import app
from gateway.config_file import ConfigError
from gateway.policy import Policy
from gateway.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tidegate.yaml"
    path.write_text(
        f"database: sqlite:///{tmp_path}/tidegate.db\n"
        "models: {llama: {aliases: [small], price: {input: 1, output: 1}, endpoints: [{worker: 'http://127.0.0.1:1'}]}}\n"
    )
    return path


def keys(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--config", str(config)])


def created(config: Path, *arguments: str) -> dict[str, str]:
    return json.loads(keys(config, "create", "--format", "json", *arguments).stdout)[0]


def test_a_created_key_works_and_is_shown_with_the_warning_that_this_is_the_only_time(
    config: Path, tmp_path: Path
):
    result = keys(config, "create", "--tenant", "acme", "--name", "ci")
    assert result.exit_code == 0
    assert "cannot be shown again" in result.stderr
    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        record = store.list_keys()[0]
    shown = [word for word in result.stdout.split() if word.startswith("tg-")]
    assert [len(word) for word in shown] == [46]
    assert (shown[0][:7], shown[0][-4:]) == (record.prefix, record.last4)


def test_as_json_stdout_is_nothing_but_the_key(config: Path):
    key = created(config, "--tenant", "acme", "--name", "ci")
    assert set(key) == {"id", "key", "tenant", "name", "prefix", "last4", "created", "policy"}
    assert (key["tenant"], key["name"]) == ("acme", "ci")
    assert key["key"].startswith(key["prefix"])
    assert key["key"].endswith(key["last4"])


def test_listed_keys_show_no_secret(config: Path):
    key = created(config, "--tenant", "acme")
    result = keys(config, "list", "--tenant", "acme")
    assert key["id"] in result.stdout
    assert key["key"] not in result.stdout
    rows = list(csv.DictReader(io.StringIO(keys(config, "list", "--format", "csv").stdout)))
    assert rows == [
        {
            "id": key["id"],
            "tenant": "acme",
            "name": "",
            "prefix": key["prefix"],
            "last4": key["last4"],
            "created": key["created"],
            "revoked": "",
            "policy": "",
        }
    ]
    assert json.loads(keys(config, "list", "--tenant", "zeta", "--format", "json").stdout) == []


def test_a_revoked_key_is_listed_as_such(config: Path):
    key = created(config, "--tenant", "acme")
    assert keys(config, "revoke", key["id"][:12], "--tenant", "acme").exit_code == 0
    assert json.loads(keys(config, "list", "--format", "json").stdout)[0]["revoked"].endswith("Z")


def test_revoking_what_is_not_there_fails_with_one_line(config: Path):
    result = keys(config, "revoke", "key_0123456789")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "no keys have an id starting with 'key_0123456789'\n"


def test_a_key_is_not_revoked_by_what_any_key_may_begin_with(config: Path):
    created(config, "--tenant", "acme")
    result = keys(config, "revoke", "key_")
    assert result.exit_code == 1
    assert result.stderr == "'key_' is too little of a key's id: at least 8 characters\n"


def test_a_bad_name_of_a_tenant_fails_with_one_line(config: Path):
    result = keys(config, "create", "--tenant", "a b")
    assert result.exit_code == 1
    assert "'a b' cannot be a tenant's name" in result.stderr


def test_a_database_that_cannot_be_opened_is_named(config: Path, tmp_path: Path):
    config.write_text(config.read_text().replace("tidegate.db", "nowhere/tidegate.db"))
    result = keys(config, "list")
    assert result.exit_code == 1
    assert f"{tmp_path}/nowhere/tidegate.db" in result.stderr


def test_a_tenant_has_to_be_named(config: Path):
    assert keys(config, "create").exit_code == 2


def test_a_key_may_be_bounded_and_says_so_wherever_it_is_shown(config: Path, tmp_path: Path):
    bounds = ["--models", "llama, small", "--tiers", "flex,default", "--least-trust", "verified"]
    bounds += ["--regions", "eu", "--max-price-input", "0.5", "--max-price-output", "2"]
    key = created(config, "--tenant", "acme", *bounds)
    words = "models llama, small; tiers default, flex; trust verified; regions eu; input up to 0.5; output up to 2"
    assert key["policy"] == words
    assert words in keys(config, "list").stdout
    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        assert store.list_keys()[0].policy == Policy(
            models=frozenset({"llama", "small"}),
            tiers=frozenset({"default", "flex"}),
            least_trust="verified",
            regions=frozenset({"eu"}),
            max_input_pico_usd=500_000,
            max_output_pico_usd=2_000_000,
        )


def test_bounds_that_make_no_sense_are_told_at_their_options_and_no_key_is_made(config: Path):
    wrong = ["--models", "llama,lama", "--tiers", "fast", "--least-trust", "blind"]
    wrong += ["--regions", ",", "--max-price-output", "cheap"]
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(
            app,
            ["create", "--tenant", "acme", "--config", str(config), *wrong],
            catch_exceptions=False,
        )
    assert [problem.path for problem in refused.value.problems] == [
        "--models",
        "--tiers",
        "--least-trust",
        "--regions",
        "--max-price-output",
    ]
    assert refused.value.problems[0].message == "there is no model lama; did you mean llama?"
    assert json.loads(keys(config, "list", "--format", "json").stdout) == []
