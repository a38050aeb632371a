from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import httpx2
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr
from receiver import Answer, Received, Receiver
from sqlalchemy import func, select, update
from usage_rows import a_row, a_share

from gateway.billing import Order, enter
from gateway.config_events import WebhookSection
from gateway.event_desk import forget, refused, send_refused, send_span
from gateway.event_store import Failure, Outbox, Outcome, standings
from gateway.event_tables import EVENT_BATCHES, EVENT_WEBHOOKS
from gateway.events import Sender, telling
from gateway.issuing import invoice
from gateway.store import Store
from gateway.subjects import Change, NotFound, Subjects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

LIMIT_S = 60
KEY = "om_secret"


@pytest.fixture
def url(either_url: str) -> str:
    """What is kept, is kept in SQLite and in PostgreSQL."""
    return either_url


@asynccontextmanager
async def sending(
    store: Store, receiver: Receiver, holder: str = "a", **changes: Any
) -> AsyncIterator[Sender]:
    """A sender for the webhook `om`, which is known from now on."""
    section = WebhookSection(url=receiver.url, api_key=SecretStr(KEY), **changes)
    outbox = Outbox(store, holder)
    outbox.register(["om"])
    async with httpx2.AsyncClient(timeout=section.timeout_s, verify=False) as client:
        yield Sender("om", section, outbox, client)


async def until(sender: Sender, true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await sender.work()
            await asyncio.sleep(0.02)


def record(store: Store, *call_ids: str, **changes: Any) -> None:
    store.record([a_row(call_id, **changes) for call_id in call_ids])


def hurry(store: Store) -> None:
    """No pause is waited for."""
    with store.writing() as connection:
        connection.execute(update(EVENT_WEBHOOKS).values(retry_ms=0))


def says(status: int, ids: Iterable[str], body: bytes = b"") -> Callable[[Received], Answer]:
    """So it answers what has one of these in it."""
    some = set(ids)
    return lambda received: Answer(status, body) if some & set(received.ids) else Answer()


async def test_usage_is_told_in_the_order_in_which_it_was_recorded_and_once(store: Store):
    record(store, "before")
    async with Receiver() as receiver, sending(store, receiver) as sender:
        record(store, "c3", "c1", "c2")
        record(store, "c0", "c1")  # c1 is known
        enter(store, Order("refund", "c1", 1, "r1", "sorry"))
        await sender.work()
        await sender.work()
        assert receiver.ids == ["c3", "c1", "c2", "c0", "refund:r1"]
        record(store, "c4")
        await sender.work()
        assert receiver.ids[5:] == ["c4"]
        (standing,) = standings(store)
        assert (standing.waiting, standing.sent, standing.set_aside, standing.failure) == (0, 6, 0, None)
    with store.reading() as connection:
        assert connection.execute(select(func.count()).select_from(EVENT_BATCHES)).scalar_one() == 1


async def test_what_nobody_is_told_of_is_not_kept(store: Store):
    record(store, "c1")
    enter(store, Order("credit", "acme", 5, "k"))
    with store.reading() as connection:
        assert connection.execute(select(EVENT_BATCHES)).all() == []


async def test_an_event_says_what_the_tenant_used_and_not_what_serving_it_cost(store: Store):
    answered = a_share(
        "w2", "answer", prompt_tokens=7, cached_tokens=2, completion_tokens=5, charge_nano_usd=9
    )
    again = a_share("w3", "read_again", charge_nano_usd=0, waste_nano_usd=4)
    async with Receiver() as receiver, sending(store, receiver) as sender:
        record(store, "alone", customer="cus", project="p", prompt_tokens=10, reasoning_tokens=3)
        record(store, "shared", charge_nano_usd=9, cost_nano_usd=4, shares=(answered, again))
        record(store, "nothing", prompt_tokens=0, cached_tokens=0, completion_tokens=0, charge_nano_usd=0)
        await sender.work()
        alone, shared = (event["data"] for event in receiver.received[0].json)
    assert alone == {
        "tenant": "acme",
        "project": "p",
        "key_id": "key_1",
        "customer": "cus",
        "model": "llama",
        "tier": "default",
        "api": "chat",
        "outcome": "ok",
        "request_id": "r",
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "completion_tokens": 20,
        "reasoning_tokens": 3,
        "estimated": False,
        "charge_nano_usd": 3,
        "charge_usd": "0.000000003",
    }
    tokens = ("prompt_tokens", "cached_tokens", "completion_tokens", "charge_nano_usd")
    assert [shared[name] for name in tokens] == [7, 2, 5, 9]


async def test_each_webhook_is_told_of_everything_at_its_own_pace(store: Store):
    async with Receiver() as receiver, sending(store, receiver, batch=2) as sender:
        Outbox(store, "b").register(["other"])
        record(store, "c1", "c2", "c3")
        await sender.work()
        other = Outbox(store, "b").take("other", 10, 10)
        assert [told.item.id for told in other.told] == ["c1", "c2", "c3"]
    assert [received.ids for received in receiver.received] == [["c1", "c2"], ["c3"]]


async def test_what_fails_is_sent_again_under_the_same_ids_until_it_has_arrived(store: Store):
    failing = iter([500, 502, 503])
    async with Receiver(lambda _: Answer(next(failing, 202))) as receiver, sending(store, receiver) as sender:
        record(store, "c1", "c2")
        await sender.work()
        (standing,) = standings(store)
        assert standing.failure == "the receiver says 500 Said"
        assert (standing.attempts, standing.waiting, standing.sent) == (1, 2, 0)
        assert 400 < standing.retry_ms - standing.failing_since_ms <= 1000
        await sender.work()
        assert len(receiver.received) == 1  # not before its time
        await until(sender, lambda: standings(store)[0].waiting == 0)
    told = [received.ids for received in receiver.received]
    assert told[0] == ["c1", "c2"]
    assert list(chain(*told[3:])) == ["c1", "c2"]
    assert len({received.headers.get("webhook-id") for received in receiver.received}) == 1
    assert sender.failures == {"500": 1, "502": 1, "503": 1}
    assert standings(store)[0].failure is None


async def test_a_receiver_that_asks_to_be_left_alone_is(store: Store):
    replies = iter([Answer(429, headers={"retry-after": "2"})])
    async with Receiver(lambda _: next(replies, Answer())) as receiver, sending(store, receiver) as sender:
        record(store, "c1")
        await until(sender, lambda: len(receiver.received) == 2)
    first, second = receiver.received
    assert second.began_s - first.began_s >= 1.9
    assert first.body == second.body


async def test_a_receiver_that_says_nothing_is_given_up_in_time_and_asked_again(store: Store):
    replies = iter([Answer(after_s=LIMIT_S)])
    async with (
        Receiver(lambda _: next(replies, Answer())) as receiver,
        sending(store, receiver, timeout_s=0.3) as sender,
    ):
        record(store, "c1", "c2")
        await sender.work()
        assert standings(store)[0].failure == "no reply within 0.3 s"
        await until(sender, lambda: standings(store)[0].waiting == 0)
    assert receiver.received[0].ids == ["c1", "c2"]
    assert receiver.ids[2:] == ["c1", "c2"]


async def test_a_receiver_that_is_not_there_is_waited_for(store: Store):
    async with Receiver() as gone:
        pass
    async with sending(store, gone) as sender:
        record(store, "c1")
        await sender.work()
    (standing,) = standings(store)
    assert standing.failure
    assert sender.failures == {"unreachable": 1}


@pytest.mark.parametrize("status", [301, 401, 403, 404, 410, 415])
async def test_a_receiver_that_wants_nothing_at_all_keeps_all_events_waiting(store: Store, status: int):
    async with Receiver(lambda _: Answer(status)) as receiver, sending(store, receiver) as sender:
        record(store, "c1", "c2")
        await sender.work()
    (standing,) = standings(store)
    assert (standing.waiting, standing.set_aside) == (2, 0)
    assert f"{status}" in standing.failure


async def test_events_that_are_refused_are_found_and_set_aside_and_the_others_go_on_in_order(store: Store):
    bad = {"c3", "c8"}
    async with (
        Receiver(says(400, bad, b'{"title": "no such\nsubject"}')) as receiver,
        sending(store, receiver) as sender,
    ):
        record(store, *(f"c{n}" for n in range(10)))
        await sender.work()
        taken = [one for received in receiver.received if not bad & set(received.ids) for one in received.ids]
        assert taken == ["c0", "c1", "c2", "c4", "c5", "c6", "c7", "c9"]
        assert [(each.id, each.tenant) for each in refused(store, "om")] == [("c3", "acme"), ("c8", "acme")]
        assert refused(store, "om")[0].reason == '400: {"title": "no such subject"}'
        record(store, "c10")
        await sender.work()
        assert receiver.received[-1].ids == ["c10"]
        (standing,) = standings(store)
        assert (standing.set_aside, standing.sent, standing.waiting) == (2, 9, 0)
        # The accountant has mended it over there.
        receiver.answer = lambda _: Answer()
        assert send_refused(store, "om", "nobody") == 0
        assert send_refused(store, "om", "acme") == 2
        await sender.work()
        assert receiver.received[-1].ids == ["c3", "c8"]
        assert refused(store, "om") == []


async def test_what_is_too_large_at_once_is_sent_in_parts(store: Store):
    def most_three(received: Received) -> Answer:
        return Answer(413 if len(received.ids) > 3 else 204)

    async with Receiver(most_three) as receiver, sending(store, receiver) as sender:
        record(store, *(f"c{n}" for n in range(10)))
        await sender.work()
        taken = [one for received in receiver.received if len(received.ids) <= 3 for one in received.ids]
        assert taken == [f"c{n}" for n in range(10)]
        assert standings(store)[0].set_aside == 0


async def test_an_event_that_a_receiver_always_fails_on_is_set_aside_in_the_end(store: Store):
    async with Receiver(says(500, ["c4"])) as receiver, sending(store, receiver, batch=8) as sender:
        record(store, *(f"c{n}" for n in range(8)))
        for _ in range(40):
            await sender.work()
            hurry(store)
        assert [each.reason for each in refused(store, "om")] == [
            "the receiver says 500 Said, 10 times in a row"
        ]
        taken = [one for received in receiver.received if "c4" not in received.ids for one in received.ids]
        assert taken == ["c0", "c1", "c2", "c3", "c5", "c6", "c7"]


async def test_while_a_receiver_is_down_for_long_next_to_nothing_is_set_aside(store: Store):
    async with Receiver(lambda _: Answer(500)) as receiver, sending(store, receiver, batch=1) as sender:
        record(store, *(f"c{n}" for n in range(30)))
        for _ in range(25):
            await sender.work()
            hurry(store)
        assert [each.id for each in refused(store, "om")] == ["c0", "c1"]


async def test_single_events_of_a_tenant_are_sent_one_after_the_other_and_those_of_others_beside_them(
    store: Store,
):
    tenants = ["a", "b", "c", "d"]
    async with (
        Receiver(lambda _: Answer(after_s=0.02)) as receiver,
        sending(store, receiver, batch=1) as sender,
    ):
        store.record([a_row(f"{tenant}{n}", tenant=tenant) for n in range(5) for tenant in tenants])
        await sender.work()
        for tenant in tenants:
            assert [one for one in receiver.ids if one[0] == tenant] == [f"{tenant}{n}" for n in range(5)]
        assert 2 <= receiver.at_once <= 4
        assert {received.headers["content-type"] for received in receiver.received} == {
            "application/cloudevents+json"
        }


async def test_a_tenant_whose_event_fails_does_not_keep_the_others_of_a_window_waiting(store: Store):
    async with Receiver(says(503, ["a1"])) as receiver, sending(store, receiver, batch=1) as sender:
        store.record([a_row(f"{tenant}{n}", tenant=tenant) for n in range(3) for tenant in "ab"])
        await sender.work()
        assert [one for one in receiver.ids if one[0] == "b"] == ["b0", "b1", "b2"]
        receiver.answer = lambda _: Answer()
        hurry(store)
        await sender.work()
        assert [one for one in receiver.ids if one[0] == "a"] == ["a0", "a1", "a1", "a2"]
        assert [one for one in receiver.ids if one[0] == "b"] == ["b0", "b1", "b2"]  # not once more
        assert standings(store)[0].sent == 6


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


async def test_only_who_has_the_lease_tells_a_webhook(store: Store):
    async with (
        Receiver() as receiver,
        sending(store, receiver, "a") as first,
        sending(store, receiver, "b") as second,
    ):
        record(store, "c1")
        mine, others = Outbox(store, "a"), Outbox(store, "b")
        assert [told.item.id for told in mine.take("om", 1.0, 10).told] == ["c1"]
        assert not others.due("om")
        assert others.take("om", 1.0, 10) is None
        await second.work()
        assert receiver.received == []
        # The first dies here, or hangs: it is over with its lease.
        await until(second, lambda: bool(receiver.received))
        assert not mine.settle("om", Outcome(None, 1, (), Failure("late", 60)), 1.0)
        assert not mine.renew("om", 1.0)
        await first.work()
        (standing,) = standings(store)
        assert (standing.sent, standing.failure) == (1, None)
        others.release()
        record(store, "c2")
        await first.work()
        assert receiver.ids == ["c1", "c2"]


async def test_what_was_sent_by_a_process_that_died_before_it_said_so_is_sent_again_under_its_id(
    store: Store,
):
    async with Receiver() as receiver, sending(store, receiver, "a", secrets=[SECRET]) as first:
        record(store, "c1", "c2")
        window = Outbox(store, "a").take("om", 0.2, 10)
        await first._send(first._events(window)[0], first._before, 0)  # and is gone
        async with sending(store, receiver, "b", secrets=[SECRET]) as second:
            await until(second, lambda: len(receiver.received) == 2)
    before, after = receiver.received
    assert before.body == after.body
    assert before.headers["webhook-id"] == after.headers["webhook-id"]


SECRET = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


def test_no_row_is_ever_passed_over_however_many_write(url: str, store: Store):
    """Readers never see a batch before those with lower numbers: nothing comes up behind them."""
    reader = Outbox(store, "reader")
    reader.register(["om"])
    writers, each = 4, 40
    done = threading.Event()
    seen: list[str] = []

    def write(writer: int) -> None:
        with Store.open(url) as own:
            for n in range(each):
                name = f"{writer}-{n:03}"
                _ = record(own, name) if n % 4 else enter(own, Order("credit", "acme", 1, name))

    def read() -> None:
        last = False
        while not last:
            last = done.is_set()
            while window := reader.take("om", 60, 7):
                seen.extend(told.item.id for told in window.told)
                reader.settle("om", Outcome(window.told[-1].item.after, 7), 60)

    record(store, "first")
    threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
    reading = threading.Thread(target=read)
    for thread in (*threads, reading):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reading.join()
    ids = [one.removeprefix("credit:") for one in seen[1:]]
    assert len(ids) == len(set(ids)) == writers * each
    for writer in range(writers):
        mine = [one for one in ids if one.startswith(f"{writer}-")]
        assert mine == sorted(mine)


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


async def test_a_span_of_time_can_be_sent_again_or_for_the_first_time(store: Store):
    record(store, "old", time_ms=1_000)
    record(store, "c2", time_ms=3_000)
    record(store, "c1", time_ms=2_000)
    record(store, "theirs", time_ms=2_000, tenant="other")
    enter(store, Order("credit", "acme", 5, "k"), 2_500)
    async with Receiver() as receiver, sending(store, receiver) as sender:
        Outbox(store, "b").register(["other"])
        record(store, "now", time_ms=9_000)
        assert send_span(store, "om", 2_000, 9_000, "acme") == 3
        await sender.work()
        assert receiver.ids == ["now", "c1", "c2", "credit:k"]
        assert [told.item.id for told in Outbox(store, "b").take("other", 1, 9).told] == ["now"]


async def test_a_webhook_that_is_forgotten_leaves_nothing_behind(store: Store):
    async with Receiver(lambda _: Answer(400)) as receiver, sending(store, receiver) as sender:
        record(store, "c1")
        await sender.work()
        record(store, "c2")
        assert Outbox(store, "b").register(["new"]) == ["om"]
        assert (forget(store, "om").set_aside, [each.webhook for each in standings(store)]) == (1, ["new"])
        forget(store, "new")
    with store.reading() as connection:
        assert connection.execute(select(EVENT_BATCHES)).all() == []
    with pytest.raises(NotFound, match="there is no webhook om; a gateway"):
        refused(store, "om")


async def test_a_webhook_that_is_forgotten_too_early_is_told_of_what_comes_after(store: Store):
    async with Receiver() as receiver, sending(store, receiver) as sender:
        forget(store, "om")
        record(store, "c1")
        await sender.work()
        record(store, "c2")
        await sender.work()
        assert receiver.ids == ["c2"]


async def test_a_gateway_tells_by_itself_and_its_metrics_say_how_it_stands(store: Store):
    registry = CollectorRegistry()
    async with Receiver(says(400, ["c2"])) as receiver:
        section = WebhookSection(url=receiver.url)
        async with telling({"om": section}, store, registry), asyncio.timeout(LIMIT_S):
            record(store, "c1", "c2")
            page = b""
            # How many wait is looked up by itself, now and then.
            shown = (
                b'tidegate_events_refused_total{webhook="om"} 1.0',
                b'tidegate_events_waiting{webhook="om"}',
            )
            while not all(each in page for each in shown):
                await asyncio.sleep(0.02)
                page = generate_latest(registry)
            assert b'tidegate_events_sent_total{webhook="om"} 1.0' in page
            assert b'tidegate_events_waiting{webhook="om"}' in page
            assert b'tidegate_events_lag_seconds{webhook="om"}' in page
            assert b'tidegate_events_set_aside{webhook="om"}' in page
    # Others need not wait for the lease to end.
    record(store, "c3")
    assert Outbox(store, "b").take("om", 1, 9) is not None
