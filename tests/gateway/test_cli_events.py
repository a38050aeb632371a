from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from config_files import MINIMAL
from typer.testing import CliRunner
from usage_rows import a_row

from gateway.audit import entries
from gateway.billing import Order, enter
from gateway.cli import app
from gateway.event_store import Failure, Outbox, Outcome, Refusal
from gateway.subjects import Subjects

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.store import Store


@pytest.fixture
def config(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "tidegate.yaml"
    path.write_text(f"database: {url}\n{MINIMAL}")
    return path


@pytest.fixture
def told(store: Store) -> Outbox:
    """One event has arrived, two were refused, and one waits."""
    outbox = Outbox(store, "a")
    outbox.register(["om"])
    store.record([a_row(f"c{n}", time_ms=1_000 * n) for n in range(3)])
    Subjects(store).create_tenant("other")
    enter(store, Order("credit", "other", 7, "k"))
    window = outbox.take("om", 60, 10)
    items = [each.item for each in window.told]
    refused = (Refusal(items[1], "", "acme", "400: no"), Refusal(items[3], "", "other", "400: never"))
    assert outbox.settle("om", Outcome(items[3].after, 2, refused), 60)
    store.record([a_row("c3")])
    outbox.settle("om", Outcome(None, 0, (), Failure("the receiver says 503", 3600)), 60)
    return outbox


def run(config: Path, *arguments: str) -> Any:
    done = CliRunner().invoke(app, ["events", *arguments, "--config", str(config), "--format", "json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refusal(config: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["events", *arguments, "--config", str(config)])
    return done.exit_code, done.stderr.strip()


@pytest.mark.usefixtures("told")
def test_status_says_how_far_a_webhook_has_been_told_and_what_keeps_it(config: Path):
    (status,) = run(config, "status")
    assert {name: status[name] for name in ("webhook", "waiting", "sent", "set_aside", "failure")} == {
        "webhook": "om",
        "waiting": 1,
        "sent": 2,
        "set_aside": 2,
        "failure": "the receiver says 503",
    }
    assert status["oldest"]
    assert status["last_sent"]
    assert status["failing_since"]
    assert status["retry"]
    table = CliRunner().invoke(app, ["events", "status", "--config", str(config)]).stdout
    assert table.splitlines()[0].split()[:5] == ["webhook", "waiting", "oldest", "sent", "last_sent"]


@pytest.mark.usefixtures("told")
def test_what_was_refused_is_shown_and_sent_again_and_the_log_knows_who_asked(config: Path, store: Store):
    shown = [(each["id"], each["tenant"], each["reason"]) for each in run(config, "refused", "om")]
    assert shown == [("c1", "acme", "400: no"), ("credit:k", "other", "400: never")]
    assert [each["id"] for each in run(config, "refused", "om", "--tenant", "other")] == ["credit:k"]
    assert [each["id"] for each in run(config, "refused", "om", "--most", "1")] == ["c1"]
    assert run(config, "resend", "om")[0]["queued"] == 2
    assert run(config, "refused", "om") == []
    assert run(config, "status")[0]["waiting"] == 3
    (entry,) = entries(store, most=1, tenant=None, subject="webhook:om")
    assert (entry.action, entry.after["count"]) == ("events.resend", 2)
    assert entry.actor.startswith("cli:")


@pytest.mark.usefixtures("told")
def test_a_span_of_time_is_sent_again(config: Path):
    queued = run(config, "resend", "om", "--from", "1970-01-01T00:00:01", "--to", "1970-01-01T00:00:03")
    assert queued == [{"webhook": "om", "tenant": None, "queued": 2}]
    assert refusal(config, "resend", "om", "--to", "2026-01-01")[0] == 2


@pytest.mark.usefixtures("told")
def test_a_webhook_that_is_configured_is_not_forgotten(config: Path):
    plain = config.read_text()
    config.write_text(plain + "events: {om: {url: 'https://x'}}\n")
    code, message = refusal(config, "forget", "om")
    assert code == 2
    assert "take it out first" in message
    config.write_text(plain)
    assert run(config, "forget", "om") == [{"webhook": "om", "sent": 2, "set_aside": 2}]
    assert run(config, "status") == []


@pytest.mark.usefixtures("told")
def test_a_webhook_that_nobody_knows_is_named(config: Path):
    for command in ("refused", "resend", "forget"):
        assert refusal(config, command, "mo") == (1, "there is no webhook mo; known are om")
