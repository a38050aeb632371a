"""Tenants, projects, keys of administrators and the audit log on the command line, over the database."""

from __future__ import annotations

import csv
import getpass
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from gateway.cli import app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    path = tmp_path / "tidegate.yaml"
    path.write_text(
        f"database: sqlite:///{tmp_path}/tidegate.db\n"
        "models: {llama: {price: {input: 1, output: 1}, endpoints: [{worker: 'http://127.0.0.1:1'}]}}\n"
    )
    return lambda *words: CliRunner().invoke(app, [*words, "--config", str(path)])


@pytest.fixture
def rows(run: Callable[..., Result]) -> Callable[..., list[dict[str, Any]]]:
    def rows(*words: str) -> list[dict[str, Any]]:
        result = run(*words, "--format", "json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return rows


Rows = "Callable[..., list[dict[str, Any]]]"


def test_a_tenant_is_made_changed_suspended_and_resumed(rows: Rows, run: Callable[..., Result]):
    (made,) = rows("tenants", "create", "acme", "--metadata", "crm=1", "--budget-month", "12.5")
    assert (made["policy"], made["metadata"]) == ({"budgets": {"month": "12.50"}}, {"crm": "1"})
    assert rows("tenants", "change", "acme", "--suspend")[0]["suspended"].endswith("Z")
    (after,) = rows("tenants", "change", "acme", "--resume", "--tiers", "flex")
    assert (after["suspended"], after["policy"], after["metadata"]) == (
        None,
        {"tiers": ["flex"]},
        {"crm": "1"},
    )
    assert rows("tenants", "list") == [after]
    assert "tiers flex" in run("tenants", "list").stdout
    assert rows("tenants", "change", "acme", "--no-policy")[0]["policy"] is None


def test_a_project_is_of_a_tenant(rows: Rows, run: Callable[..., Result]):
    (made,) = rows("projects", "create", "web", "--tenant", "acme", "--apis", "chat")
    assert (made["tenant"], made["name"], made["policy"]) == ("acme", "web", {"apis": ["chat"]})
    assert rows("projects", "change", "web", "--tenant", "acme", "--suspend")[0]["suspended"]
    assert [each["name"] for each in rows("projects", "list", "--tenant", "acme")] == ["web"]
    for words in (["list", "--tenant", "zeta"], ["change", "app", "--tenant", "acme", "--suspend"]):
        assert run("projects", *words).exit_code == 1


def test_more_than_a_page_is_listed_whole(rows: Rows, tmp_path: Path):
    from gateway.store import Store  # noqa: PLC0415  takes time to import
    from gateway.subjects import Subjects  # noqa: PLC0415  as above

    with Store.open(f"sqlite:///{tmp_path}/tidegate.db") as store:
        for number in range(1001):
            Subjects(store).create_tenant(f"t{number:04}")
    assert [each["name"] for each in rows("tenants", "list")] == [f"t{number:04}" for number in range(1001)]
    assert len(rows("audit", "--most", "1001")) == 1001


def test_keys_of_administrators_are_made_listed_and_revoked(rows: Rows, run: Callable[..., Result]):
    (made,) = rows("admin-keys", "create", "--role", "read", "--name", "ops", "--expires", "90d")
    assert made["key"].startswith("tga-")
    (listed,) = rows("admin-keys", "list")
    assert "key" not in listed
    assert (listed["role"], listed["name"], listed["revoked"]) == ("read", "ops", None)
    assert rows("admin-keys", "revoke", made["id"])[0]["revoked"]
    assert run("admin-keys", "create").exit_code == 2
    assert run("admin-keys", "revoke", "adm_").exit_code == 1


def test_the_audit_log_names_who_ran_a_command(rows: Rows, run: Callable[..., Result]):
    rows("tenants", "create", "acme")
    rows("tenants", "change", "acme", "--suspend")
    rows("tenants", "create", "zeta")
    newest, oldest = rows("audit", "--tenant", "acme")
    assert (newest["action"], oldest["action"]) == ("tenant.change", "tenant.create")
    assert newest["actor"] == f"cli:{getpass.getuser()}"
    assert newest["before"] == {"suspended_ms": None}
    assert [each["subject"] for each in rows("audit", "--most", "1")] == ["tenant:zeta"]
    (row,) = csv.DictReader(io.StringIO(run("audit", "--subject", "tenant:zeta", "--format", "csv").stdout))
    assert json.loads(row["after"])["name"] == "zeta"
