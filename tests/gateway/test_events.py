"""Usage events: told in order, once, by one process at a time, to each webhook by itself."""

from __future__ import annotations

import asyncio
import threading

import pytest
from event_sending import LIMIT_S, SECRET, record, says, sending, until
from prometheus_client import CollectorRegistry, generate_latest
from receiver import Answer, Receiver
from sqlalchemy import func, select
from usage_rows import a_share

from gateway.billing import Order, enter
from gateway.config_events import WebhookSection
from gateway.event_desk import forget, refused, send_span
from gateway.event_store import Failure, Outbox, Outcome, standings
from gateway.event_tables import EVENT_BATCHES
from gateway.events import telling
from gateway.store import Store
from gateway.subjects import NotFound


@pytest.fixture
def url(either_url: str) -> str:
    """What is kept, is kept in SQLite and in PostgreSQL."""
    return either_url


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
