from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from datetime import UTC, datetime
from hashlib import sha256
from hmac import new as hmac
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.event_shapes import CloudEvents, Fact, Lago, Request, Stripe, signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLDER = "whsec_" + b64encode(b"o" * 32).decode()


def fact(number: int = 1, **changes: Any) -> Fact:
    about = {"model": "llama", "prompt_tokens": 10}
    quantities = {"calls": 1, "prompt_tokens": 10, "reasoning_tokens": 0, "charge_nano_usd": 1_234_567}
    given = {
        "tenant": "acme",
        "time_ms": 1_700_000_000_123,
        "about": about,
        "quantities": quantities,
        **changes,
    }
    return Fact(f"c{number}", "call", **given)


def cloud_events(*facts: Fact, batch: int = 100) -> Request:
    shape = CloudEvents("eu/tidegate", batch)
    return shape.request([event for each in facts for event in shape.events(each, "acme-inc")])


def expect_cloud_event(event: dict[str, Any]) -> None:
    """What https://github.com/cloudevents/spec, cloudevents.json, asks of one; its JSON schema, written out."""
    assert {"specversion", "id", "source", "type"} <= event.keys()
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in event)
    for name in ("specversion", "id", "type", "source", "subject"):
        assert isinstance(event[name], str)
        assert event[name]
    assert event["specversion"] == "1.0"
    assert re.fullmatch(r"[^\s<>\"{}|\\^`]+", event["source"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", event["time"])
    assert event["datacontenttype"] == "application/json"
    assert isinstance(event["data"], dict)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
def test_a_batch_is_an_array_of_cloud_events(moments: list[int]):
    request = cloud_events(*(fact(n, time_ms=moment) for n, moment in enumerate(moments)))
    assert request.content_type == "application/cloudevents-batch+json"
    events = json.loads(request.body)
    for event, moment in zip(events, moments, strict=True):
        expect_cloud_event(event)
        assert datetime.fromisoformat(event["time"]) == datetime.fromtimestamp(moment // 1000, UTC).replace(
            microsecond=moment % 1000 * 1000
        )


def test_an_event_by_itself_is_no_array():
    request = cloud_events(fact(), batch=1)
    assert request.content_type == "application/cloudevents+json"
    assert json.loads(request.body) == {
        "specversion": "1.0",
        "id": "c1",
        "source": "eu/tidegate",
        "type": "tidegate.call",
        "subject": "acme-inc",
        "time": "2023-11-14T22:13:20.123Z",
        "datacontenttype": "application/json",
        "data": {"tenant": "acme", "model": "llama", "prompt_tokens": 10},
    }


def test_the_same_events_make_the_same_request_whenever_they_are_sent():
    assert cloud_events(fact(1), fact(2)) == cloud_events(fact(1), fact(2))
    assert cloud_events(fact(1), fact(2)).id != cloud_events(fact(1)).id
    assert "." not in cloud_events(fact()).id


def test_a_signature_is_the_one_that_standard_webhooks_publishes():
    request = Request("msg_p5jXN8AQM9LWM0D4loKWxJek", "application/json", b'{"test": 2432232314}')
    assert signature([SECRET], request, 1_614_265_330) == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_a_secret_takes_the_place_of_another_either_verifies():
    request = cloud_events(fact())
    headers = signature([SECRET, OLDER], request, 1)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    signatures = headers["webhook-signature"].split(" ")
    for secret, shown in zip((SECRET, OLDER), signatures, strict=True):
        key = b64decode(secret.removeprefix("whsec_"))
        assert shown == "v1," + b64encode(hmac(key, signed, sha256).digest()).decode()


def test_lago_gets_an_event_for_each_meter_that_has_anything_to_count():
    shape = Lago({"in": "prompt_tokens", "thought": "reasoning_tokens", "usd": "charge_nano_usd"}, 100)
    events = shape.events(fact(), "sub_1")
    assert [event.part for event in events] == ["in", "usd"]
    assert json.loads(shape.request(events).body) == {
        "events": [
            {
                "transaction_id": "c1:in",
                "external_subscription_id": "sub_1",
                "code": "in",
                "timestamp": 1_700_000_000,
                "properties": {"model": "llama", "prompt_tokens": 10},
            },
            {
                "transaction_id": "c1:usd",
                "external_subscription_id": "sub_1",
                "code": "usd",
                "timestamp": 1_700_000_000,
                "properties": {"model": "llama", "prompt_tokens": 10, "charge_nano_usd": 1_234_567},
                "precise_total_amount_cents": "0.1234567",
            },
        ]
    }


@pytest.mark.parametrize(
    ("reply", "settled"),
    [
        (b'{"error_details": {"1": {"transaction_id": ["value_already_exist"]}}}', {1: ""}),
        (b'{"error_details": {"0": {"code": ["not_found"]}}}', {0: '422: {"code":["not_found"]}'}),
        (b'{"error_details": {"7": {"code": ["not_found"]}}}', {}),
        (b'{"error_details": {"events": ["too_many_events"]}}', {}),
        (b'{"error_details": null}', {}),
        (b"[]", {}),
        (b"<html>", {}),
        (b"", {}),
    ],
)
def test_what_lago_says_of_each_event_is_believed_and_what_makes_no_sense_is_not(
    reply: bytes, settled: dict[int, str]
):
    assert Lago({}, 100).settled(422, reply, 3) == settled


def test_stripe_gets_a_form_with_whole_numbers():
    shape = Stripe({"in": "prompt_tokens", "usd": "charge_nano_usd"})
    first, second = (shape.request([event]) for event in shape.events(fact(), "cus_1"))
    assert first.content_type == "application/x-www-form-urlencoded"
    assert parse_qs(second.body.decode()) == {
        "event_name": ["usd"],
        "identifier": ["c1:usd"],
        "timestamp": ["1700000000"],
        "payload[stripe_customer_id]": ["cus_1"],
        "payload[value]": ["1234567"],
    }


def test_an_identifier_is_no_longer_than_stripe_takes():
    shape = Stripe({"m" * 100: "prompt_tokens", "n" * 100: "prompt_tokens"})
    ids = [event.id for event in shape.events(fact(), "cus_1")]
    assert all(len(one) <= 100 for one in ids)
    assert len(set(ids)) == 2
    assert ids == [event.id for event in shape.events(fact(), "cus_1")]


@pytest.mark.parametrize(
    ("status", "reply", "settled"),
    [
        (400, b'{"error": {"message": "An event already exists with identifier c1:in."}}', ""),
        (400, b'{"error": {"message": "Timestamp is too old", "type": "x"}}', "400: Timestamp is too old"),
        (400, b'{"error": "no"}', '400: {"error": "no"}'),
        (422, b"\xff\x00nonsense", "422: nonsense"),
    ],
)
def test_what_stripe_says_of_an_event_is_understood(status: int, reply: bytes, settled: str):
    assert Stripe({}).settled(status, reply, 1) == {0: settled}


def test_a_reason_is_short_whatever_a_receiver_says():
    (reason,) = CloudEvents("x", 100).settled(400, b"a" * 100_000, 1).values()
    assert len(reason) == 300
