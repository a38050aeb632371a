"""What Stripe and Lago are told, in their own shapes, and that all of it adds up to the invoice."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import httpx2
import pytest
from event_sending import KEY, record, sending
from receiver import Answer, Received, Receiver

from gateway.billing import Order, enter
from gateway.event_desk import refused, send_refused
from gateway.event_store import standings
from gateway.issuing import invoice
from gateway.subjects import Change, Subjects

if TYPE_CHECKING:
    from gateway.store import Store


@pytest.fixture
def url(either_url: str) -> str:
    """What is kept, is kept in SQLite and in PostgreSQL."""
    return either_url


async def test_stripe_is_told_of_each_meter_by_itself_and_what_it_has_counts_as_told(store: Store):
    subjects = Subjects(store)
    subjects.create_tenant("acme", metadata={"stripe_customer_id": "cus_1"})
    subjects.create_tenant("ours", metadata={"stripe_customer_id": ""})
    subjects.create_tenant("new")
    there = b'{"error": {"message": "An event already exists with identifier c2:in.", "type": "invalid_request_error"}}'

    def answer(received: Received) -> Answer:
        form = parse_qs(received.body.decode())
        return Answer(400, there) if form["identifier"] == ["c2:in"] else Answer(200, b"{}")

    meters = {"in": "prompt_tokens", "out": "completion_tokens", "thought": "reasoning_tokens"}
    async with (
        Receiver(answer) as receiver,
        sending(store, receiver, shape="stripe", meters=meters) as sender,
    ):
        record(store, "c1", "c2")
        record(store, "c3", tenant="ours")
        record(store, "c4", tenant="new")
        record(store, "c5", tenant="master")
        await sender.work()
        forms = [parse_qs(received.body.decode()) for received in receiver.received]
        assert [form["identifier"] for form in forms] == [["c1:in"], ["c1:out"], ["c2:in"], ["c2:out"]]
        assert forms[0] == {
            "event_name": ["in"],
            "identifier": ["c1:in"],
            "timestamp": ["1700000000"],
            "payload[stripe_customer_id]": ["cus_1"],
            "payload[value]": ["10"],
        }
        assert receiver.received[0].headers["authorization"] == f"Bearer {KEY}"
        aside = refused(store, "om")
        assert [(each.id, each.part, each.tenant) for each in aside] == [
            ("c4", "in", "new"),
            ("c4", "out", "new"),
        ]
        assert aside[0].reason == "the tenant has no metadata stripe_customer_id"
        subjects.change_tenant("new", Change(metadata={"stripe_customer_id": "cus_2"}))
        send_refused(store, "om")
        await sender.work()
        forms = [parse_qs(received.body.decode()) for received in receiver.received[4:]]
        assert [form["identifier"] for form in forms] == [["c4:in"], ["c4:out"]]
        assert standings(store)[0].waiting == 0


async def test_a_page_that_is_not_the_receivers_is_not_taken_for_its_word(store: Store):
    meters = {"tokens": "prompt_tokens"}
    async with (
        Receiver(lambda _: Answer(200, b"<html>Sign in</html>")) as receiver,
        sending(store, receiver, shape="lago", meters=meters) as sender,
    ):
        record(store, "c1")
        await sender.work()
        (standing,) = standings(store)
        assert (standing.waiting, standing.sent) == (1, 0)
        assert "is the url right?" in standing.failure
        assert sender.failures == {"not_json": 1}


async def test_lago_is_told_in_batches_and_what_it_has_counts_as_told(store: Store):
    def answer(received: Received) -> Answer:
        wrong = {}
        for place, event in enumerate(received.json["events"]):
            if event["transaction_id"] == "c1:tokens" and place:
                wrong[place] = {"transaction_id": ["value_already_exist"]}
            if event["transaction_id"] == "c2:usd":
                wrong[place] = {"external_subscription_id": ["subscription_not_found"]}
        return (
            Answer(200, b"{}")
            if not wrong
            else Answer(
                422,
                httpx2.Response(
                    422,
                    json={
                        "status": 422,
                        "error": "Unprocessable Entity",
                        "code": "validation_errors",
                        "error_details": wrong,
                    },
                ).content,
            )
        )

    meters = {"tokens": "uncached_tokens", "usd": "charge_nano_usd"}
    async with Receiver(answer) as receiver, sending(store, receiver, shape="lago", meters=meters) as sender:
        record(store, "c0", "c1", "c2", charge_nano_usd=1_234_567)
        enter(store, Order("refund", "c0", 1_000_000, "r"))
        enter(store, Order("payment", "acme", 1_000_000, "p"))
        await sender.work()
        first, second = (received.json["events"] for received in receiver.received)
        assert [event["transaction_id"] for event in first] == [
            *("c0:tokens", "c0:usd", "c1:tokens", "c1:usd", "c2:tokens", "c2:usd", "refund:r:usd")
        ]
        assert [event["transaction_id"] for event in second] == [
            *("c0:tokens", "c0:usd", "c1:usd", "c2:tokens", "refund:r:usd")
        ]
        assert (first[0]["code"], first[0]["external_subscription_id"]) == ("tokens", "acme")
        assert first[0]["properties"]["uncached_tokens"] == 6
        assert first[0]["timestamp"] == 1_700_000_000
        assert "precise_total_amount_cents" not in first[0]
        assert first[1]["precise_total_amount_cents"] == "0.1234567"
        assert first[-1]["precise_total_amount_cents"] == "-0.1000000"
        assert [(each.id, each.part) for each in refused(store, "om")] == [("c2", "usd")]
        assert "subscription_not_found" in refused(store, "om")[0].reason


async def test_what_was_told_adds_up_to_the_invoice(store: Store):
    async with Receiver() as receiver, sending(store, receiver, batch=3) as sender:
        for n in range(10):
            record(store, f"c{n}", charge_nano_usd=101 * n)
        enter(store, Order("refund", "c9", 100, "r"), 1_700_000_000_001)
        enter(store, Order("credit", "acme", 7, "k"), 1_700_000_000_002)
        enter(store, Order("correction", "acme", 3, "c"), 1_700_000_000_003)
        enter(store, Order("payment", "acme", 50, "p"), 1_700_000_000_004)
        await sender.work()
    total = paid = 0
    for event in (one for received in receiver.received for one in received.json):
        data = event["data"]
        if event["type"] == "tidegate.payment":
            paid += data["amount_nano_usd"]
        else:
            total += data.get("charge_nano_usd", 0) + data.get("amount_nano_usd", 0)
    month = invoice(store, "acme", "2023-11")
    assert total == month.total_nano_usd == 101 * 45 - 100 - 7 + 3
    assert total + paid == month.closing_nano_usd
