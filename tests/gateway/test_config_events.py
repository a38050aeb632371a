from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from config_files import MINIMAL
from typer.testing import CliRunner

from gateway.cli import app
from gateway.config_reference import config_reference

if TYPE_CHECKING:
    from pathlib import Path

    from config_files import Problems, Read

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LAGO = {
    "url": "https://api.getlago.com/api/v1/events/batch",
    "shape": "lago",
    "api_key": "k",
    "meters": {"in": "calls"},
}


def with_webhook(**section: Any) -> str:
    return MINIMAL + yaml.safe_dump({"events": {"om": section}})


def test_a_webhook_takes_little(read: Read):
    config = read(
        with_webhook(url="https://openmeter.cloud/api/v1/events", api_key="${KEY}"), {"KEY": "om_1"}
    )
    webhook = config.events["om"]
    assert (webhook.shape, webhook.batch, webhook.resolved_customer_from) == ("cloudevents", 100, None)
    assert webhook.api_key.get_secret_value() == "om_1"


def test_stripe_customers_are_known_by_their_metadata(read: Read):
    stripe = LAGO | {"url": "https://api.stripe.com/v1/billing/meter_events", "shape": "stripe"}
    assert read(with_webhook(**stripe)).events["om"].resolved_customer_from == "stripe_customer_id"
    named = read(with_webhook(**stripe, customer_from="stripe_test")).events["om"]
    assert named.resolved_customer_from == "stripe_test"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8888/api/v1/events", "http://localhost/x", "http://[::1]:1/x"]
)
def test_plain_http_is_for_this_machine(read: Read, problems: Problems, url: str):
    assert read(with_webhook(url=url))
    assert problems(with_webhook(url="http://billing.internal/x")) == {
        "events.om.url": "should be https; set allow_http: true if that is meant"
    }
    assert read(with_webhook(url="http://billing.internal/x", allow_http=True))


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({}, {"events.om.url": "is required"}),
        ({"url": "ftp://x"}, {"events.om.url": "should be a URL such as http://10.0.0.5:8000"}),
        (
            {"url": "https://u:p@x"},
            {"events.om.url": "should have no user or password in the URL; use api_key"},
        ),
        (
            {**LAGO, "meters": {}, "api_key": None},
            {
                "events.om.meters": "is required where the shape is lago",
                "events.om.api_key": "is required where the shape is lago",
            },
        ),
        ({**LAGO, "batch": 101}, {"events.om.batch": "should be 100 at most: more is refused by Lago"}),
        (
            {"url": "https://x", "meters": {"in": "calls"}},
            {"events.om.meters": "is for lago and stripe; CloudEvents carry all quantities"},
        ),
        (
            {"url": "http://[::1", "allow_http": True},
            {"events.om.url": "should be a URL with a valid host and port"},
        ),
    ],
)
def test_what_is_wrong_with_a_webhook_is_said(
    problems: Problems, section: dict[str, Any], found: dict[str, str]
):
    assert problems(with_webhook(**section)) == found


@pytest.mark.parametrize(
    "secret", ["hunter2", "whsec_", "whsec_c2hvcnQ=", "whsec_!!", SECRET.removeprefix("whsec_")]
)
def test_a_secret_is_as_standard_webhooks_writes_it_and_never_shown(problems: Problems, secret: str):
    (message,) = problems(with_webhook(url="https://x", secrets=[secret])).values()
    assert message == "should be whsec_ and 24 to 64 random bytes in base64"


def test_a_quantity_that_is_none_is_named(problems: Problems):
    (path,) = problems(with_webhook(**LAGO | {"meters": {"in": "tokens"}}))
    assert path == "events.om.meters.in"


def test_check_shows_webhooks_without_their_secrets(tmp_path: Path):
    path = tmp_path / "tidegate.yaml"
    path.write_text(with_webhook(url="https://x/y", api_key="om_1", secrets=[SECRET]))
    shown = CliRunner().invoke(app, ["check", str(path)])
    assert "events    om: cloudevents to https://x/y" in shown.stdout.splitlines()
    whole = CliRunner().invoke(app, ["check", str(path), "--format", "json"]).stdout
    assert json.loads(whole)["config"]["events"]["om"]["url"] == "https://x/y"
    assert "om_1" not in shown.stdout + whole
    assert SECRET not in shown.stdout + whole


def test_its_keys_are_in_the_reference():
    assert "| `events.NAME.url` | required |" in config_reference()
