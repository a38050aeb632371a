"""Many streams at once against a budget that is enough for few of them: one gateway, and four that share a Redis.

What holds then holds to the nano-USD: what the clients got, the journal, the ledger, the accounts in Redis and what the
worker itself has counted are the same figures.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
from gateway_process import Gateway, database_url, gateway_beside
from msgspec import convert
from pool import LIMIT_S, endpoint
from sqlalchemy import select

from gateway.ledger import UsageRow
from gateway.ledger_tables import LEDGER_ENTRIES, USAGE_HOURS
from gateway.policy import Policy
from gateway.store import Store
from gateway.subjects import Subjects
from gateway.tables import USAGE
from loadtest import redis_server
from loadtest.redis_server import Server
from loadtest.worker import SimWorker, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALLS = 500
ADMITTED = 40
TOKENS = 20
PROMPT = "Low water at a quarter to six."
PRICE = {"input": 1, "output": 2}
"""Of a token, 1000 and 2000 nano-USD: what is found in a cache costs the same, so that all calls do."""


class Ended(NamedTuple):
    request_id: str
    code: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    """As the stream said at its end; of one that is broken, what had come by then."""


_numbers = count()


async def call(gateway: Gateway | SimWorker, key: str, begun: asyncio.Event | None = None) -> Ended:
    """A stream to its end, or to that of the connection. `begun`: when its client has read more than its role."""
    request_id = f"call-{next(_numbers)}"
    body = json.dumps(
        {
            "model": "llama" if isinstance(gateway, Gateway) else "sim",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": TOKENS,
            "min_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    reply = b""
    try:
        reader, writer = await asyncio.open_connection(*urlsplit(gateway.url).netloc.split(":"))
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {key}\r\nconnection: close\r\n"
            f"x-request-id: {request_id}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )
        while block := await reader.read(65536):
            reply += block
            if begun is not None and reply.count(b"data: {") > 1:
                begun.set()
        writer.close()
    except OSError:  # the gateway is gone
        pass
    head, _, rest = reply.partition(b"\r\n\r\n")
    if head and b" 200 " not in head[:14]:
        return Ended(request_id, json.loads(rest)["error"]["code"])
    events = [line.removeprefix(b"data: ") for line in rest.split(b"\n") if line.startswith(b"data: {")]
    if b"[DONE]" not in rest:
        return Ended(request_id, "broken", 0, sum(shows(json.loads(event)) for event in events))
    usage = json.loads(events[-1])["usage"]
    return Ended(request_id, "", usage["prompt_tokens"], usage["completion_tokens"])


def shows(event: Any) -> bool:
    return any(choice["delta"].get("content") for choice in event["choices"])


async def insistent(gateway: Gateway, key: str) -> Ended:
    """The same, again and again while all that stands in the way is what others hold, as the SDKs do it."""
    while True:
        ended = await call(gateway, key)
        if ended.code != "budget_held":
            return ended
        await asyncio.sleep(0.2)


def charge(ended: Ended) -> int:
    return ended.prompt_tokens * 1000 + ended.completion_tokens * 2000


def key_with_budget(database: str, nano_usd: int) -> str:
    with Store.open(database) as store:
        return Subjects(store).create_key("acme", policy=Policy(budgets={"month": nano_usd})).secret


class Ledger(NamedTuple):
    """What is in a database."""

    rows: list[UsageRow]
    by_hour: int
    """Charged, by the sums that usage is shown from and budgets go by."""
    entered: int
    """The same by double entry."""


def ledger_in(database: str) -> Ledger:
    with Store.open(database) as store, store.reading() as connection:
        rows = [
            convert({str(name): value for name, value in row.items()}, UsageRow, strict=False)
            for row in connection.execute(select(USAGE)).mappings()
        ]
        hours = connection.execute(select(USAGE_HOURS.c.charge_nano_usd)).scalars()
        owed = select(LEDGER_ENTRIES.c.amount_nano_usd).where(LEDGER_ENTRIES.c.account == "tenant:acme")
        return Ledger(rows, sum(hours), sum(connection.execute(owed).scalars()))


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


async def cost_of_one(worker: SimWorker) -> tuple[int, int]:
    """What such a call is charged, by what the worker says, and what is held for it."""
    ended = await call(worker, "none")
    assert ended.code == "", ended
    one = charge(ended)
    messages = json.dumps([{"role": "user", "content": PROMPT}])
    return one, (len(messages) + 256) * 1000 + TOKENS * 2000


async def test_five_hundred_streams_at_once_spend_no_more_than_a_budget_for_forty(tmp_path: Path):
    async with SimWorker(spec()) as worker:
        one, held = await cost_of_one(worker)
        # The last of the forty needs what is held for it, which is more than it costs.
        budget = (ADMITTED - 1) * one + held
        home = tmp_path / "all"
        home.mkdir()
        key = key_with_budget(database_url(home), budget)
        before = generated_tokens(worker)
        async with gateway_beside(home, models(worker)) as gateway:
            ended = await asyncio.gather(*(insistent(gateway, key) for _ in range(CALLS)))
            await settled(gateway)
            assert await metric(gateway, "tidegate_limits_charges_cut_total") == 0
        codes = Counter(each.code for each in ended)
        assert codes == {"": ADMITTED, "insufficient_quota": CALLS - ADMITTED}
        spent = sum(charge(each) for each in ended)
        assert spent <= budget
        rows = ledger_in(database_url(home)).rows
        assert sum(row.charge_nano_usd for row in rows) == spent
        assert generated_tokens(worker) - before == sum(row.completion_tokens for row in rows)


async def test_four_gateways_that_share_a_redis_do_so_too_though_one_is_killed_in_the_midst(
    tmp_path: Path, redis: Server, either_url: str
):
    async with SimWorker(spec()) as worker, AsyncExitStack() as stack:
        one, held = await cost_of_one(worker)
        budget = (ADMITTED - 1) * one + held
        key = key_with_budget(either_url, budget)
        before = len(worker.requests)

        def gateway_in(name: str):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            shared = {
                "database": either_url,
                "journal": {"folder": f"{tmp_path}/journal"},
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
        ended += await asyncio.gather(*(insistent(gateways[0], key) for _ in range(ADMITTED)))
        await settled(*gateways)
        account, journal = await given_back(redis), journal_in(tmp_path / "journal")
        # Of each call, what the worker has made, until whoever asked for it was gone.
        made = {request.header(b"x-request-id"): request.tokens_made for request in worker.requests[before:]}

    assert {each.code for each in ended} == {"", "broken", "insufficient_quota"}
    ledger = ledger_in(either_url)
    spent = sum(row.charge_nano_usd for row in ledger.rows)
    # Nobody was refused while money was free: there is less left than such a call may cost.
    assert budget - held < spent <= budget
    assert int(account["spent"]) == ledger.by_hour == ledger.entered == spent
    assert set(leases(account)) <= {"0"}
    assert len(journal) > 0
    assert all(row in ledger.rows for row in journal)
    assert_every_token_is_accounted_for(ended, {row.request_id: row for row in ledger.rows}, made)


def assert_every_token_is_accounted_for(
    ended: list[Ended], rows: dict[str, UsageRow], made: dict[str | None, int]
) -> None:
    """Call by call, what its client got, what its row says and what the worker has made."""
    known = {each.request_id: each for each in ended}
    assert rows.keys() <= made.keys() <= known.keys()
    for request_id, tokens in made.items():
        client, row = known[str(request_id)], rows.get(str(request_id))
        if client.code == "":
            assert row is not None
            assert (row.outcome, row.estimated, row.prompt_tokens) == ("ok", False, client.prompt_tokens)
            assert row.charge_nano_usd == charge(client)
            assert client.completion_tokens == row.completion_tokens == tokens
        elif row is None:
            # The gateway was killed before the first token had got there: nobody has got or owes anything.
            assert (client.code, client.completion_tokens) == ("broken", 0)
        elif row.outcome == "ok":
            # It was killed between the row and the last byte.
            assert (client.code, row.completion_tokens) == ("broken", tokens)
        else:
            # What its client has got it has passed on, and what it has passed on is in the row. What the worker has made
            # since then, until it saw that nobody read any more, nobody owes: it is the only difference there is.
            assert (client.code, row.outcome) == ("broken", "gateway_died")
            assert client.completion_tokens <= row.completion_tokens <= tokens <= TOKENS


def journal_in(folder: Path) -> list[UsageRow]:
    """Rows of gateways that run: those of others are only in the database."""
    lines = [line for path in folder.glob("*.journal") for line in path.read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=UsageRow) for line in lines]


MISHAPS: dict[str, tuple[Callable[[Server], None], Callable[[Server], None]]] = {
    "stopped, and started with its data": (Server.stop, Server.start),
    "stopped, and started empty": (Server.stop, lambda redis: redis.start_empty()),
    "hanging": (Server.hang, Server.go_on),
}


@pytest.mark.parametrize(
    ("mishap", "when_away"),
    [*((mishap, "closed") for mishap in MISHAPS), ("stopped, and started empty", "open")],
)
async def test_a_redis_that_is_away_in_the_midst_costs_no_money_and_comes_back_by_itself(
    tmp_path: Path, mishap: str, when_away: str
):
    program = redis_server.program()
    if program is None:
        pytest.skip("Redis is not installed: there is no redis-server on PATH")
    begin, end = MISHAPS[mishap]
    (tmp_path / "redis").mkdir()
    async with SimWorker(spec()) as worker, AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server.running(program, tmp_path / "redis"))
        one, held = await cost_of_one(worker)
        budget = 150 * one + held
        key = key_with_budget(database_url(tmp_path), budget)
        shared = {
            "database": database_url(tmp_path),
            "shared_state": redis.url,
            "limits": {"when_store_is_away": when_away},
        }
        gateways = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            running = gateway_beside(tmp_path / name, models(worker), **shared)
            gateways.append(await stack.enter_async_context(running))
        told: Counter[str] = Counter()
        calling = [asyncio.create_task(until_spent(gateways[n % 2], key, told)) for n in range(24)]
        await told_more(told, "", 20)
        begin(redis)
        if when_away == "closed":
            await told_more(told, "limits_unavailable", 5)
        else:
            await counted(gateways, "tidegate_limits_let_go_total", 5)
        assert sum([await metric(gateway, "tidegate_limits_store_away") for gateway in gateways]) > 0
        end(redis)
        ended = [each for calls in await asyncio.gather(*calling) for each in calls]
        await settled(*gateways)
        account = await given_back(redis)
        away = [await metric(gateway, "tidegate_limits_store_away") for gateway in gateways]

    ledger = ledger_in(database_url(tmp_path))
    spent = sum(map(charge, ended))
    assert int(account["spent"]) == ledger.by_hour == ledger.entered == spent
    assert away == [0, 0]
    assert set(told) <= {"", "insufficient_quota", "limits_unavailable", "budget_held"}
    assert budget - held < spent
    if when_away == "closed":
        assert spent <= budget
    logs = [(tmp_path / name / "gateway.log").read_text() for name in ("a", "b")]
    assert any("limits cannot be looked up" in log for log in logs)
    for log in logs:
        # Once for each time that it went away.
        assert log.count("limits cannot be looked up") == log.count("limits are held again") <= 3


async def until_spent(gateway: Gateway, key: str, told: Counter[str]) -> list[Ended]:
    """Call after call until the budget is spent."""
    found = []
    while True:
        ended = await call(gateway, key)
        told[ended.code] += 1
        if ended.code == "insufficient_quota":
            return found
        if ended.code:
            await asyncio.sleep(0.1)
        else:
            found.append(ended)


async def told_more(told: Counter[str], code: str, times: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while told[code] < times:  # noqa: ASYNC110 - other tasks do it
            await asyncio.sleep(0.01)


async def counted(gateways: list[Gateway], name: str, least: int) -> None:
    async with asyncio.timeout(LIMIT_S):
        while sum([await metric(gateway, name) for gateway in gateways]) < least:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


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
