"""`tidegate explain` as it is run: by a configuration alone, and over a decision log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec
import pytest
from test_replay import line
from typer.testing import CliRunner

from gateway.cli import app
from gateway.policy import Policy
from gateway.store import Store
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

CONFIG = """
tenants: {acme: {policy: {regions: [eu]}}}
models:
  llama:
    price: {input: 1, output: 1}
    endpoints:
      - {worker: 'http://10.0.0.1:8000', name: cheap, region: eu, cost: {input: 1, output: 1}}
      - {worker: 'http://10.0.0.2:8000', name: dear, gpu: h100, cost: {input: 50, output: 50}}
"""
CALL = {"model": "llama", "messages": [{"role": "user", "content": "High water?"}], "max_tokens": 10}


def explain(home: Path, *arguments: str, call: object = CALL) -> subprocess.CompletedProcess[str]:
    """Run it where tidegate.yaml is, with the call on standard input."""
    (home / "tidegate.yaml").write_text(CONFIG)
    text = call if isinstance(call, str) else json.dumps(call)
    return subprocess.run(
        [sys.executable, "-m", "gateway", "explain", *arguments],
        cwd=home,
        env={**os.environ, "COLUMNS": "200"},
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def inside(home: Path, *arguments: str, call: object = CALL) -> Result:
    """The same in this process, which saves a second or two."""
    (home / "tidegate.yaml").write_text(CONFIG)
    text = call if isinstance(call, str) else json.dumps(call)
    config = [] if "--config" in arguments else ["--config", str(home / "tidegate.yaml")]
    return CliRunner().invoke(app, ["explain", *arguments, *config], input=text, catch_exceptions=False)


def plan(home: Path, *arguments: str, call: object = CALL) -> dict:
    shown = inside(home, "-", "--format", "json", *arguments, call=call)
    assert (shown.exit_code, shown.stderr) == (0, "")
    return json.loads(shown.stdout)


def names(plan: dict) -> list[str]:
    return [candidate["endpoint"] for candidate in plan["candidates"]]


def test_a_plan_is_made_by_the_configuration_alone_and_always_the_same(tmp_path: Path):
    first = plan(tmp_path)
    assert names(first) == ["cheap", "dear"]
    assert (first["model"], first["tier"], first["output_tokens"]) == ("llama", "default", 10)
    assert first["candidates"][0]["cost_nano_usd"] == (first["prompt_tokens"] + 10) * 1000
    assert first["candidates"][1]["ttft_s"] < first["candidates"][0]["ttft_s"]
    assert plan(tmp_path) == first


def test_what_the_call_and_its_headers_ask_for_counts(tmp_path: Path):
    assert names(plan(tmp_path, call={**CALL, "model": "llama:nitro"})) == ["dear", "cheap"]
    only = plan(tmp_path, "--header", "X-Tidegate-Regions: eu")
    assert names(only) == ["cheap"]
    assert only["rejected"] == [
        {
            "endpoint": "dear",
            "filter": "region",
            "reason": "declares no region, asked for eu",
            "retry_after_s": None,
        }
    ]
    assert names(plan(tmp_path, "--tenant", "acme")) == ["cheap"]
    embedded = plan(tmp_path, "--api", "embeddings", call={"model": "llama", "input": "x" * 400})
    assert (embedded["prompt_tokens"], names(embedded)) == (100, ["cheap", "dear"])


def test_a_key_is_asked_about_by_its_id_and_its_policy_is_shown(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    with Store.open(url) as store:
        key = Subjects(store).create_key("acme", policy=Policy(max_input_pico_usd=2_000_000)).record
    config = tmp_path / "with-keys.yaml"
    config.write_text(CONFIG.replace("cost: {input: 1,", "cost: {input: 9,") + f"database: {url}\n")
    of_key = plan(tmp_path, "--key-id", key.id[:-2], "--config", str(config))
    assert (of_key["tenant"], of_key["held_to"]) == ("acme", "regions eu; input up to 2")
    assert [(each["endpoint"], each["filter"]) for each in of_key["rejected"]] == [
        ("cheap", "price"),
        ("dear", "region"),
    ]
    shown = inside(tmp_path, "-", "--key-id", key.id, "--config", str(config))
    assert "held to: regions eu; input up to 2" in shown.stdout.splitlines()
    unknown = inside(tmp_path, "-", "--key-id", "key_unknown", "--config", str(config))
    assert unknown.exit_code == 2
    assert "no keys in force have an id starting with 'key_unknown'" in unknown.stderr


def test_the_table_has_a_line_for_every_endpoint(tmp_path: Path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({**CALL, "routing": {"regions": ["eu"]}}))
    shown = explain(tmp_path, str(request))
    assert shown.returncode == 0
    title, head, cheap, head_of_rejected, dear = shown.stdout.splitlines()
    assert title.startswith("model llama, tier default: about ")
    assert head.split() == [
        *("place", "endpoint", "ttft_s", "ms_per_token", "imposed_s", "cached_tokens", "cost_usd"),
        *("score_usd", "on_time"),
    ]
    assert (cheap.split()[:2], cheap.split()[-1]) == (["1", "cheap"], "yes")
    assert head_of_rejected.split() == ["endpoint", "filter", "reason", "retry_after_s"]
    assert dear.split()[:2] == ["dear", "region"]


@pytest.mark.parametrize(
    ("arguments", "call", "code", "message"),
    [
        ([], CALL, 2, "needs REQUEST.json or --replay FILE, and not both"),
        (["-", "--replay", "-"], CALL, 2, "needs REQUEST.json or --replay FILE, and not both"),
        (["none.json"], CALL, 2, "cannot read none.json: No such file or directory"),
        (["-"], "{", 2, "the gateway would refuse it: the body is no JSON"),
        (["-"], {**CALL, "model": "lama"}, 2, "Did you mean llama? (model_not_found)"),
        (["-", "--api", "images"], CALL, 2, "--api is one of chat, completions, embeddings, not 'images'"),
        (["-", "--header", "trust"], CALL, 2, "--header takes `name: value`, not 'trust'"),
        (["-", "--url", "http://127.0.0.1:9"], CALL, 1, "cannot ask http://127.0.0.1:9/admin/explain: "),
        (["-", "--url", "nowhere"], CALL, 1, "cannot ask nowhere/admin/explain: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    tmp_path: Path, arguments: list[str], call: object, code: int, message: str
):
    shown = inside(tmp_path, *arguments, call=call)
    assert (shown.exit_code, shown.stdout) == (code, "")
    assert message in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_configuration_that_is_not_there_is_said_in_one_line(tmp_path: Path):
    shown = explain(tmp_path, "-", "--config", "none.yaml")
    assert (shown.returncode, shown.stdout, shown.stderr) == (2, "", "no such file: none.yaml\n")


def test_a_log_is_replayed_by_itself_and_against_a_configuration(tmp_path: Path):
    log = tmp_path / "decisions.jsonl"
    log.write_bytes(b"".join(msgspec.json.encode(line(f"call-{n}")) + b"\n" for n in range(3)) + b'{"torn')
    alone = explain(tmp_path, "--replay", str(log))
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout.startswith("3 decisions, 3 of them with the very same ranking again\n1 lines could")
    shown = inside(tmp_path, "--replay", str(log), "--format", "json")
    report = json.loads(shown.stdout)
    assert (report["decisions"], report["same"], report["changed"]) == (3, 3, 0)
    table = inside(tmp_path, "--replay", "-", call=log.read_text()).stdout
    assert "0 would have gone to another endpoint first" in table
    assert ["llama", "cheap", "3", "3"] in [row.split() for row in table.splitlines()]
