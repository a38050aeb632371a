from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from gateway.active_keys import active_keys
from gateway.cli_keys import app
from gateway.config_file import ConfigError
from gateway.policy import Policy
from gateway.store import Store
from gateway.subjects import Subjects

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
        record = Subjects(store).list_keys()[0]
    shown = [word for word in result.stdout.split() if word.startswith("tg-")]
    assert [len(word) for word in shown] == [46]
    assert (shown[0][:7], shown[0][-4:]) == (record.prefix, record.last4)


def test_as_json_stdout_is_nothing_but_the_key(config: Path):
    key = created(config, "--tenant", "acme", "--name", "ci")
    fields = {"id", "key", "tenant", "project", "name", "prefix", "last4", "created", "expires", "revoked"}
    assert set(key) == {*fields, "policy", "metadata"}
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
            "project": "",
            "name": "",
            "prefix": key["prefix"],
            "last4": key["last4"],
            "created": key["created"],
            "expires": "",
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
    assert result.exit_code == 2
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
    assert key["policy"] == {
        "models": ["llama", "small"],
        "tiers": ["default", "flex"],
        "least_trust": "verified",
        "regions": ["eu"],
        "max_price": {"input": "0.5", "output": "2"},
    }
    assert words in keys(config, "list").stdout
    assert words in keys(config, "list", "--format", "csv").stdout
    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        assert Subjects(store).list_keys()[0].policy == Policy(
            models=frozenset({"llama", "small"}),
            tiers=frozenset({"default", "flex"}),
            least_trust="verified",
            regions=frozenset({"eu"}),
            max_input_pico_usd=500_000,
            max_output_pico_usd=2_000_000,
        )


def test_limits_may_be_given_as_well(config: Path):
    bounds = ["--apis", "chat", "--networks", "10.0.0.0/8,fd00::/8", "--requests-per-min", "60"]
    bounds += ["--tokens-per-min", "1000", "--concurrency", "2", "--budget-day", "0.5", "--budget-total", "9"]
    assert created(config, "--tenant", "acme", *bounds)["policy"] == {
        "apis": ["chat"],
        "networks": ["10.0.0.0/8", "fd00::/8"],
        "requests_per_min": 60,
        "tokens_per_min": 1000,
        "concurrency": 2,
        "budgets": {"day": "0.50", "total": "9.00"},
    }


def test_bounds_that_make_no_sense_are_told_at_their_options_and_no_key_is_made(config: Path):
    wrong = ["--tiers", "fast", "--least-trust", "blind", "--regions", ",", "--max-price-output", "cheap"]
    wrong += ["--networks", "here", "--concurrency", "0", "--budget-day", "-1"]
    with pytest.raises(ConfigError) as refused:
        CliRunner().invoke(
            app,
            ["create", "--tenant", "acme", "--config", str(config), *wrong],
            catch_exceptions=False,
        )
    assert {problem.path for problem in refused.value.problems} == {
        "--tiers",
        "--least-trust",
        "--regions",
        "--max-price-output",
        "--networks",
        "--concurrency",
        "--budget-day",
    }
    result = keys(config, "create", "--tenant", "acme", "--models", "llama,lama")
    assert (result.exit_code, result.stderr) == (2, "there is no model lama; did you mean llama?\n")
    assert json.loads(keys(config, "list", "--format", "json").stdout) == []


def test_what_is_given_in_a_change_takes_the_place_of_what_was_and_the_rest_stays(config: Path):
    key = created(config, "--tenant", "acme", "--name", "ci", "--models", "llama", "--expires", "30d")
    assert key["expires"] > key["created"]

    def changed(*arguments: str) -> dict[str, Any]:
        return json.loads(keys(config, "change", key["id"], "--format", "json", *arguments).stdout)[0]

    assert changed("--tiers", "flex")["policy"] == {"tiers": ["flex"]}
    after = changed("--no-policy", "--no-expiry", "--metadata", "team=a", "--metadata", "cost = 7")
    assert (after["name"], after["policy"], after["expires"]) == ("ci", None, None)
    assert after["metadata"] == {"team": "a", "cost": "7"}
    assert changed("--expires", "2099-01-31")["expires"] == "2099-01-31T00:00:00Z"


def test_a_rotated_key_shows_its_new_secret_this_once(config: Path, tmp_path: Path):
    key = created(config, "--tenant", "acme")
    result = keys(config, "rotate", key["id"][:12], "--overlap", "7d", "--format", "json")
    assert "cannot be shown again" in result.stderr
    (rotated,) = json.loads(result.stdout)
    assert rotated["id"] == key["id"]
    assert rotated["key"] != key["key"]
    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        ends_ms = [each.ends_ms for each in active_keys(store).keys]
    assert sorted(ends is None for ends in ends_ms) == [False, True]
    assert keys(config, "rotate", key["id"], "--overlap", "0").exit_code == 0
    for overlap in ("x", "5", "1y"):
        assert keys(config, "rotate", key["id"], "--overlap", overlap).exit_code == 2


@pytest.mark.parametrize("expires", ["soon", "2020-01-01", "1y"])
def test_an_end_that_is_none_or_over_is_refused(config: Path, expires: str):
    assert keys(config, "create", "--tenant", "acme", "--expires", expires).exit_code == 2
