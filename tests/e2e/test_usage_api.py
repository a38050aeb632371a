"""What was used, asked over HTTP: by administrators of everybody, by tenants of themselves, as OpenAI's clients ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest_asyncio
from openai import AsyncOpenAI
from pool import HELLO, INSTANT, LIMIT_S, TENANT, Gateway, gateway
from sqlalchemy import text

from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.ledger import UsageRow

MASTER = "sk-master-0123456789"
DAY_S = 86_400


class Used:
    """A gateway that two tenants have used, and the rows of their calls."""

    def __init__(self, gw: Gateway, rows: list[UsageRow], other_key: str) -> None:
        self.gw = gw
        self.rows = rows
        self.mine = [row for row in rows if row.tenant == TENANT]
        self.other_key = other_key

    async def ask(self, path: str, key: str = MASTER, status: int = 200) -> Any:
        reply = await self.gw.http.get(path, headers={"authorization": f"Bearer {key}"})
        assert reply.status_code == status, reply.text
        return reply.json()


@pytest_asyncio.fixture
async def used(tmp_path: Path) -> AsyncIterator[Used]:
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, auth={"master_key": MASTER}) as gw:
        other_key = await gw.new_key("mill")
        for client, calls in ((gw.client(), 3), (gw.client(other_key), 2)):
            for number in range(calls):
                await client.chat.completions.create(**HELLO, user=f"jo-{number % 2}")
        yield Used(gw, await gw.rows(5), other_key)


async def test_administrators_see_everybodys_usage_in_pages(used: Used):
    everything = await used.ask("/admin/usage?by=tenant,customer")
    assert [(each["tenant"], each["customer"], each["calls"]) for each in everything["data"]] == [
        ("harbour", "jo-0", 2),
        ("harbour", "jo-1", 1),
        ("mill", "jo-0", 1),
        ("mill", "jo-1", 1),
    ]
    assert sum(each["cost_nano_usd"] for each in everything["data"]) == sum(
        r.cost_nano_usd for r in used.rows
    )
    paged, cursor = [], ""
    while cursor is not None:
        page = await used.ask(f"/admin/usage?by=tenant,customer&limit=3{cursor and f'&cursor={cursor}'}")
        paged += page["data"]
        cursor = page["next_cursor"]
    assert paged == everything["data"]
    (mill,) = (await used.ask("/admin/usage?by=tenant&tenant=mill&from=1h"))["data"]
    assert mill["charge_nano_usd"] == sum(row.charge_nano_usd for row in used.rows if row.tenant == "mill")
    assert (await used.ask("/admin/usage?by=tenant&from=2001-01-01&to=2001-02-01"))["data"] == []
    await used.ask("/admin/usage", key=used.other_key, status=403)
    for wrong in ("by=colour", "from=then", "by=tenant&cursor=bm8", "by=tenant&cursor=%25"):
        assert (await used.ask(f"/admin/usage?{wrong}", status=400))["error"]["code"] == "invalid_value"


async def test_a_tenant_sees_its_own_usage_and_nothing_of_what_it_costs_us(used: Used):
    (mine,) = (await used.ask("/v1/usage", used.gw.key))["data"]
    assert mine == {
        "calls": 3,
        "errors": 0,
        "estimated_calls": 0,
        "prompt_tokens": sum(row.prompt_tokens for row in used.mine),
        "cached_tokens": sum(row.cached_tokens for row in used.mine),
        "completion_tokens": sum(row.completion_tokens for row in used.mine),
        "reasoning_tokens": 0,
        "charge_nano_usd": sum(row.charge_nano_usd for row in used.mine),
    }
    by_model = (await used.ask("/v1/usage?by=model,customer", used.gw.key))["data"]
    assert [(each["model"], each["customer"], each["calls"]) for each in by_model] == [
        ("llama", "jo-0", 2),
        ("llama", "jo-1", 1),
    ]
    for hidden in ("endpoint", "tenant"):
        await used.ask(f"/v1/usage?by={hidden}", used.gw.key, status=400)
    await used.ask("/v1/usage", "tg-unknown", status=401)


async def test_openais_client_reads_usage_and_costs(used: Used):
    start_s = used.rows[0].time_ms // 1000 - 2 * DAY_S
    async with AsyncOpenAI(
        base_url=f"{used.gw.url}/v1",
        api_key=used.gw.key,
        admin_api_key=used.gw.key,
        max_retries=0,
        timeout=LIMIT_S,
    ) as client:
        asked = client.admin.organization.usage
        page = await asked.completions(start_time=start_s, group_by=["model", "user_id"])
        assert (page.has_more, page.next_page, len(page.data)) == (False, None, 3)
        assert page.data[0].start_time == start_s - start_s % DAY_S
        results = [result for bucket in page.data for result in bucket.results]
        assert [(r.model, r.user_id, r.num_model_requests) for r in results] == [
            ("llama", "jo-0", 2),
            ("llama", "jo-1", 1),
        ]
        assert sum(r.input_tokens for r in results) == sum(row.prompt_tokens for row in used.mine)
        assert sum(r.output_tokens for r in results) == sum(row.completion_tokens for row in used.mine)
        costs = await asked.costs(start_time=start_s, group_by=["line_item"])
        (cost,) = [result for bucket in costs.data for result in bucket.results]
        assert (cost.line_item, cost.amount.currency) == ("llama", "usd")
        assert round(cost.amount.value * 10**9) == sum(row.charge_nano_usd for row in used.mine)
        hours = await asked.completions(start_time=start_s, bucket_width="1h", limit=24)
        seen, pages = list(hours.data), 1
        while hours.has_more:
            hours = await asked.completions(
                start_time=start_s, bucket_width="1h", limit=24, page=hours.next_page
            )
            seen, pages = seen + hours.data, pages + 1
        assert pages >= 2
        assert [bucket.start_time for bucket in seen] == list(
            range(seen[0].start_time, seen[-1].end_time, 3600)
        )
        assert sum(result.num_model_requests for bucket in seen for result in bucket.results) == 3
        nobody = await asked.completions(start_time=start_s, models=["other"])
        assert [result for bucket in nobody.data for result in bucket.results] == []


async def test_a_text_that_the_database_cannot_hold_is_the_askers_mistake(
    tmp_path: Path, postgresql_url: str
):
    sections = {"auth": {"master_key": MASTER}, "database": postgresql_url}
    async with SimWorker(INSTANT) as worker, gateway(tmp_path, worker, **sections) as gw:
        headers = {"authorization": f"Bearer {MASTER}"}
        for path in (
            "/admin/usage?by=tenant&tenant=a%00b",
            "/admin/calls?tenant=a%00b",
            "/admin/audit?tenant=a%00b",
        ):
            reply = await gw.http.get(path, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_value"), path


async def test_while_the_database_is_away_questions_are_told_so_and_when_to_ask_again(used: Used):
    with used.gw.store.writing() as connection:
        for table in ("usage_hours", "usage_days"):
            connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_away"))
    for path, key in (
        ("/admin/usage", MASTER),
        ("/v1/usage", used.other_key),
        ("/v1/organization/costs?start_time=1", used.other_key),
    ):
        reply = await used.gw.http.get(path, headers={"authorization": f"Bearer {key}"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "database_away"), path
        assert int(reply.headers["retry-after"]) >= 1
