"""Usage events as whoever bills by them sees them: gateways that are killed, and several on one database."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from hashlib import sha256
from hmac import digest
from typing import TYPE_CHECKING, Any

import httpx2
from gateway_process import LIMIT_S, gateway_beside, rows_in
from pool import HELLO, INSTANT, endpoint
from pool import gateway as pool_gateway
from receiver import Answer, Received, Receiver
from sqlalchemy import select

from gateway.store import Store
from gateway.tables import USAGE
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway_process import Gateway

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CHAT = {"model": "llama", "max_tokens": 3, "messages": [{"role": "user", "content": "High water?"}]}


def models(worker: SimWorker) -> dict[str, Any]:
    return {"llama": {"price": {"input": 1, "output": 2}, "endpoints": [endpoint(worker)]}}


def webhook(receiver: Receiver, **changes: Any) -> dict[str, Any]:
    return {"ours": {"url": receiver.url, "secrets": [SECRET], "timeout_s": 1, **changes}}


async def call(gateway: Gateway, key: str, times: int = 1) -> None:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S, verify=False) as client:
        for _ in range(times):
            reply = await client.post(
                "/v1/chat/completions", json=CHAT, headers={"authorization": f"Bearer {key}"}
            )
            assert reply.status_code == 200, reply.text


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - another process does it, and tells nobody
            await asyncio.sleep(0.05)


def verified(received: Received) -> bool:
    """As https://www.standardwebhooks.com says, step by step."""
    headers = received.headers
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), received.body])
    expected = b64encode(digest(b64decode(SECRET[6:]), signed, sha256)).decode()
    return headers["webhook-signature"] == f"v1,{expected}"


async def test_what_a_killed_gateway_had_sent_but_not_noted_is_sent_again_under_the_same_ids(tmp_path: Path):
    async with Receiver(lambda _: Answer(after_s=LIMIT_S)) as receiver, SimWorker(spec=INSTANT) as worker:
        sections = {"events": webhook(receiver, timeout_s=20)}
        async with gateway_beside(tmp_path, models(worker), **sections) as gateway:
            key = await asyncio.to_thread(gateway.new_key, "acme")
            await call(gateway, key, 3)
            await until(lambda: len(receiver.received) == 1)
            await asyncio.to_thread(gateway.kill)
        (lost,) = receiver.received
        receiver.answer = lambda _: Answer()
        sections = {"events": webhook(receiver)}
        async with gateway_beside(tmp_path, models(worker), **sections) as gateway:
            await call(gateway, key, 2)
            await until(
                lambda: {row.call_id for row in rows_in(tmp_path)} <= set(receiver.ids[len(lost.ids) :])
            )
            assert (await asyncio.to_thread(gateway.command, "events", "status"))[0]["webhook"] == "ours"
            assert 'tidegate_events_sent_total{webhook="ours"}' in await asyncio.to_thread(gateway.metrics)
    again = receiver.received[1:]
    assert [one for received in again for one in received.ids][: len(lost.ids)] == lost.ids
    assert len(set(receiver.ids)) == len(rows_in(tmp_path)) == 5
    assert all(map(verified, receiver.received))
    secrets = (SECRET, SECRET[6:], key)
    assert not any(secret in (tmp_path / "gateway.log").read_text() for secret in secrets)


async def test_of_two_gateways_on_one_database_one_tells_and_the_other_takes_over(
    tmp_path: Path, postgresql_url: str
):
    first_home, second_home = tmp_path / "first", tmp_path / "second"
    first_home.mkdir()
    second_home.mkdir()
    async with Receiver(lambda _: Answer(after_s=0.05)) as receiver, SimWorker(spec=INSTANT) as worker:
        sections = {"events": webhook(receiver, batch=4), "database": postgresql_url}
        async with (
            gateway_beside(first_home, models(worker), **sections) as first,
            gateway_beside(second_home, models(worker), **sections) as second,
        ):
            keys = [await asyncio.to_thread(second.new_key, tenant) for tenant in ("one", "two")]
            await until(lambda: first.admits(keys[0]))
            await asyncio.gather(call(first, keys[0], 25), call(second, keys[1], 25))
            await until(lambda: len(set(receiver.ids)) == 50)
            # Whichever it is that tells, it dies in the midst of a request; so does what it had not noted.
            tells, other = (first, second) if sent(first) else (second, first)
            before = len(receiver.received)
            calls = asyncio.create_task(call(other, keys[0], 25))
            await until(lambda: len(receiver.received) > before)
            await asyncio.to_thread(tells.kill)
            await calls
            await until(lambda: len(set(receiver.ids)) == 75)
            assert await asyncio.to_thread(sent, other)
    assert receiver.at_once == 1
    assert all(map(verified, receiver.received))
    with Store.open(postgresql_url) as store, store.reading() as connection:
        rows = connection.execute(select(USAGE.c.call_id, USAGE.c.tenant)).all()
    assert {row.call_id for row in rows} == set(receiver.ids)
    # A tenant's calls were made one after the other, at one gateway at a time.
    once = list(dict.fromkeys(receiver.ids))
    for tenant in ("one", "two"):
        mine = {row.call_id for row in rows if row.tenant == tenant}
        told = [one for one in once if one in mine]
        assert told == sorted(told)


def sent(gateway: Gateway) -> bool:
    return 'tidegate_events_sent_total{webhook="ours"} 0.0' not in gateway.metrics()


async def test_administrators_see_over_http_what_was_refused_and_have_it_sent_again(tmp_path: Path):
    master = "sk-master-0123456789"
    async with (
        Receiver(lambda _: Answer(422, b"no such customer")) as receiver,
        SimWorker(spec=INSTANT) as worker,
    ):
        sections = {"events": webhook(receiver), "auth": {"master_key": master}}
        async with pool_gateway(tmp_path, worker, **sections) as gw:

            async def ask(method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
                headers = {"authorization": f"Bearer {master}"}
                reply = await gw.http.request(method, f"/admin/events{path}", json=body, headers=headers)
                return reply.status_code, reply.json() if reply.content else None

            await gw.client().chat.completions.create(**HELLO)
            async with asyncio.timeout(LIMIT_S):
                while not (aside := (await ask("GET", "/ours/refused"))[1]):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
            assert [(each["tenant"], each["reason"]) for each in aside] == [
                ("harbour", "422: no such customer")
            ]
            status, (standing,) = await ask("GET")
            assert (status, standing["webhook"], standing["set_aside"]) == (200, "ours", 1)
            receiver.answer = lambda _: Answer()
            assert await ask("POST", "/ours/resend", {}) == (200, {"queued": 1})
            assert await ask("POST", "/ours/resend", {"from": "1h"}) == (200, {"queued": 1})
            await until(lambda: len(receiver.ids) == 3)
            assert len(set(receiver.ids)) == 1
            for wrong in ({"to": "1h"}, {"from": "soon"}, {"tenants": "x"}):
                assert (await ask("POST", "/ours/resend", wrong))[0] == 400
            assert (await ask("GET", "/mine/refused"))[0] == 404
            assert await ask("DELETE", "/ours") == (200, {"sent": 2, "set_aside": 0})
            reply = await gw.http.get("/admin/events", headers={"authorization": f"Bearer {gw.key}"})
            assert reply.status_code == 403
