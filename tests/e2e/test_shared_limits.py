"""Many streams at once against a budget that is enough for few of them: one gateway, and four that share a Redis.

What holds then holds to the nano-USD: what the clients got, the journal, the ledger, the accounts in Redis and what the
worker itself has counted are the same figures.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway_process import Gateway, database_url, gateway_beside, rows_in
from pool import LIMIT_S, endpoint

from gateway.policy import Policy
from gateway.store import Store
from gateway.subjects import Subjects
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

    from redis_server import Server

CALLS = 500
ADMITTED = 40
TOKENS = 20
PROMPT = "Low water at a quarter to six."
PRICE = {"input": 1, "output": 2}
"""Of a token, 1000 and 2000 nano-USD: what is found in a cache costs the same, so that all calls do."""


class Ended(NamedTuple):
    status: int
    code: str
    prompt_tokens: int
    completion_tokens: int


async def call(gateway: Gateway, key: str) -> Ended:
    """A stream to its end, or to that of the connection."""
    body = json.dumps(
        {
            "model": "llama",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": TOKENS,
            "min_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    try:
        reader, writer = await asyncio.open_connection(*gateway.address)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
        reply = await reader.read()
        writer.close()
    except OSError:  # the gateway is gone
        return Ended(0, "broken", 0, 0)
    head, _, rest = reply.partition(b"\r\n\r\n")
    if not head:
        return Ended(0, "broken", 0, 0)
    status = int(head.split()[1])
    if status != 200:
        return Ended(status, json.loads(rest)["error"]["code"], 0, 0)
    usages = [line for line in rest.split(b"\n") if line.startswith(b"data: {") and b'"usage":{' in line]
    if not usages or b"[DONE]" not in rest:
        return Ended(status, "broken", 0, 0)
    usage = json.loads(usages[-1].removeprefix(b"data: "))["usage"]
    return Ended(status, "", usage["prompt_tokens"], usage["completion_tokens"])


async def insistent(gateway: Gateway, key: str) -> Ended:
    """The same, again and again while all that stands in the way is what others hold, as the SDKs do it."""
    while True:
        ended = await call(gateway, key)
        if ended.code != "budget_held":
            return ended
        await asyncio.sleep(0.2)


def charge(ended: Ended) -> int:
    return ended.prompt_tokens * 1000 + ended.completion_tokens * 2000


def key_with_budget(home: Path, nano_usd: int) -> str:
    with Store.open(database_url(home)) as store:
        return Subjects(store).create_key("acme", policy=Policy(budgets={"month": nano_usd})).secret


def models(worker: SimWorker) -> dict[str, Any]:
    return {"llama": {"price": PRICE, "endpoints": [endpoint(worker)]}}


async def metric(gateway: Gateway, name: str) -> float:
    page = await asyncio.to_thread(gateway.metrics)
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


async def settled(*gateways: Gateway) -> None:
    """Until no call holds anything and all that was charged is in the ledger."""
    async with asyncio.timeout(LIMIT_S):
        for gateway in gateways:
            names = ("tidegate_limits_holds", "tidegate_limits_owed")
            while sum([await metric(gateway, name) for name in names]):  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.05)


def generated_tokens(worker: SimWorker) -> int:
    """All that the worker has made, read by a client or not."""
    return worker.engine.generated_tokens


def spec() -> WorkerSpec:
    return WorkerSpec(model="sim", decode_s_per_token=0.01, max_num_seqs=CALLS)


async def cost_of_one(home: Path, worker: SimWorker) -> tuple[int, int]:
    """What such a call is charged, and what is held for it, by what a budget says that is too small for it."""
    home.mkdir()
    key = key_with_budget(home, 10**9)
    async with gateway_beside(home, models(worker)) as gateway:
        one = charge(await call(gateway, key))
    messages = json.dumps([{"role": "user", "content": PROMPT}])
    return one, (len(messages) + 256) * 1000 + TOKENS * 2000


async def test_five_hundred_streams_at_once_spend_no_more_than_a_budget_for_forty(tmp_path: Path):
    async with SimWorker(spec()) as worker:
        one, held = await cost_of_one(tmp_path / "one", worker)
        # The last of the forty needs what is held for it, which is more than it costs.
        budget = (ADMITTED - 1) * one + held
        home = tmp_path / "all"
        home.mkdir()
        key = key_with_budget(home, budget)
        before = generated_tokens(worker)
        async with gateway_beside(home, models(worker)) as gateway:
            ended = await asyncio.gather(*(insistent(gateway, key) for _ in range(CALLS)))
            await settled(gateway)
            assert await metric(gateway, "tidegate_limits_charges_cut_total") == 0
        codes = Counter(each.code for each in ended)
        assert codes == {"": ADMITTED, "insufficient_quota": CALLS - ADMITTED}
        spent = sum(charge(each) for each in ended)
        assert spent <= budget
        rows = rows_in(home)
        assert sum(row.charge_nano_usd for row in rows) == spent
        assert generated_tokens(worker) - before == sum(row.completion_tokens for row in rows)


async def test_four_gateways_that_share_a_redis_do_so_too_though_one_is_killed_in_the_midst(
    tmp_path: Path, redis: Server
):
    async with SimWorker(spec()) as worker, AsyncExitStack() as stack:
        one, held = await cost_of_one(tmp_path / "one", worker)
        budget = (ADMITTED - 1) * one + held
        home = tmp_path / "shared"
        home.mkdir()
        key = key_with_budget(home, budget)
        before = generated_tokens(worker)

        def gateway_in(name: str):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            shared = {
                "database": database_url(home),
                "journal": {"folder": f"{home}/journal"},
                "shared_state": redis.url,
            }
            return gateway_beside(folder, models(worker), **shared)

        names = ("a", "b", "c", "d")
        gateways = await asyncio.gather(*(stack.enter_async_context(gateway_in(name)) for name in names))
        calling = [asyncio.create_task(insistent(gateways[n % 4], key)) for n in range(CALLS)]
        await under_way(worker, calling)
        gateways[0].kill()
        gateways[0] = await stack.enter_async_context(gateway_in("a"))
        ended = await asyncio.gather(*calling)
        more = await asyncio.gather(*(insistent(gateways[0], key) for _ in range(ADMITTED)))
        await settled(*gateways)
        account = await given_back(redis)

    codes = Counter(each.code for each in (*ended, *more))
    assert codes["insufficient_quota"] > 0
    rows = rows_in(home)
    spent = sum(row.charge_nano_usd for row in rows)
    # Nobody was refused while money was free: there is less left than such a call may cost.
    assert budget - held < spent <= budget
    assert set(leases(account)) <= {"0"}
    assert int(account["spent"]) == spent
    assert hours_in(home) == spent
    died = [row for row in rows if row.outcome == "gateway_died"]
    assert len(rows) - len(died) >= codes[""] >= ADMITTED - CALLS / 4
    assert sum(row.charge_nano_usd for row in rows if row.outcome == "ok") >= sum(
        map(charge, (*ended, *more))
    )
    # What the worker made for calls of the gateway that was killed, and that had not got there: those whose first token was
    # on its way have no row, and of the others what came behind the last block that it had read is not in theirs.
    lost = generated_tokens(worker) - before - sum(row.completion_tokens for row in rows)
    assert 0 <= lost <= TOKENS * codes["broken"]
    assert len(died) <= codes["broken"]


async def under_way(worker: SimWorker, calling: list[asyncio.Task[Ended]]) -> None:
    """Until some calls have ended and others are in their midst."""
    async with asyncio.timeout(LIMIT_S):
        while sum(each.done() for each in calling) < 5 or len(worker.engine.running) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def given_back(redis: Server) -> dict[str, str]:
    """The account of the budget, once nobody has anything of it on lease."""
    with redis.client() as client:
        (name,) = client.keys("*/usd/*")
        async with asyncio.timeout(LIMIT_S):
            while any(lease != "0" for lease in leases(client.hgetall(name))):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
        return client.hgetall(name)


def leases(account: dict[str, str]) -> list[str]:
    return [value for field, value in account.items() if field.startswith("l:")]


def hours_in(home: Path) -> int:
    connection = sqlite3.connect(home / "tidegate.db")
    (charged,) = connection.execute("SELECT sum(charge_nano_usd) FROM usage_hours").fetchone()
    connection.close()
    return charged
