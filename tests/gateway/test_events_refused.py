"""Receivers that fail, refuse, or are not there: nothing is lost, nothing counts twice, and nobody waits for another."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import pytest
from event_sending import LIMIT_S, hurry, record, says, sending, until
from receiver import Answer, Received, Receiver
from usage_rows import a_row

from gateway.event_desk import refused, send_refused
from gateway.event_store import standings

if TYPE_CHECKING:
    from gateway.store import Store


@pytest.fixture
def url(either_url: str) -> str:
    """What is kept, is kept in SQLite and in PostgreSQL."""
    return either_url


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
