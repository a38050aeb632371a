"""Money and bills by the commands and the routes of a gateway that runs: both say the same."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from pool import HELLO, INSTANT, Gateway, gateway
from typer.testing import CliRunner
from usage_rows import a_row

from gateway.cli import app
from loadtest.worker import SimWorker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASTER = "sk-master-0123456789"
MONTH = "2023-11"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gw(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    async with SimWorker(INSTANT) as worker:
        sections: dict[str, Any] = {
            "auth": {"master_key": MASTER},
            "tenants": {"only-here": {"policy": {"tiers": ["flex"]}}, "harbour": {}},
        }
        async with gateway(tmp_path_factory.mktemp("g"), worker, **sections) as running:
            await running.client().chat.completions.create(**HELLO)
            await running.rows(1)
            rows = [a_row(f"old-{n}", charge_nano_usd=100, cost_nano_usd=40) for n in range(3)]
            await asyncio.to_thread(running.store.record, rows)
            yield running


async def run(gw: Gateway, *words: str, key: str = MASTER, code: int = 0) -> str:
    """A command, asked of the gateway."""
    command = [*words, "--url", gw.url, "--key", key]
    result = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


async def rows(gw: Gateway, *words: str) -> list[dict[str, Any]]:
    return json.loads(await run(gw, *words, "--format", "json"))


async def test_money_is_entered_and_read_and_the_audit_log_says_by_whom(gw: Gateway):
    (admin,) = await rows(gw, "admin-keys", "create", "--role", "admin")
    words = ("credit", "acme", "0.5", "--idempotency-key", "c", "--note", "sorry")
    await run(gw, *words, key=admin["key"])
    (again,) = await rows(gw, *words)
    assert (again["new"], again["amount_usd"]) == (False, "-0.50")
    await run(gw, "payment", "acme", "2")
    await run(gw, "refund", "old-0")
    await run(gw, "correct", "acme", "0.25")
    await run(gw, "pay", "w1", "0.00000004")
    (mine,) = await rows(gw, "balance", "tenant:acme")
    assert mine["amount_nano_usd"] == 200 - 500_000_000 - 2_000_000_000 + 250_000_000
    entries = await rows(gw, "audit", "--tenant", "acme")
    assert [(each["action"], each["actor"]) for each in entries] == [
        ("ledger.correction", "master"),
        ("ledger.refund", "master"),
        ("ledger.payment", "master"),
        ("ledger.credit", admin["id"]),
    ]
    assert entries[-1]["after"]["amount_nano_usd"] == -500_000_000
    assert "nothing is known" in await run(gw, "credit", "nobody", "1", code=1)
    assert "0 nano-USD are left" in await run(gw, "refund", "old-0", code=1)
    await run(gw, "credit", "acme", "-1", code=2)


async def test_a_tenant_that_only_the_configuration_knows_can_pay_before_its_first_call(gw: Gateway):
    (paid,) = await rows(gw, "payment", "only-here", "3")
    assert (paid["new"], paid["account"]) == (True, "tenant:only-here")
    (mine,) = await rows(gw, "balance", "tenant:only-here")
    assert mine["amount_nano_usd"] == -3_000_000_000
    (entry,) = await rows(gw, "audit", "--tenant", "only-here")
    assert entry["action"] == "ledger.payment"
    assert "nothing is known of node" in await run(gw, "pay", "only-here", "1", code=1)


async def test_a_key_that_may_only_look_reads_bills_and_enters_nothing(gw: Gateway):
    (reader,) = await rows(gw, "admin-keys", "create", "--role", "read")
    await run(gw, "balance", key=reader["key"])
    await run(gw, "invoice", "acme", MONTH, key=reader["key"])
    assert "may look" in await run(gw, "credit", "acme", "1", key=reader["key"], code=1)
    assert "may look" in await run(gw, "invoice", "acme", MONTH, "--issue", key=reader["key"], code=1)


async def test_invoices_statements_and_exports_come_in_every_format(gw: Gateway, tmp_path: Any):
    made = json.loads(await run(gw, "invoice", "acme", MONTH))
    assert (made["number"], sum(line["calls"] for line in made["lines"])) == (None, 3)
    lines = list(csv.DictReader(io.StringIO(await run(gw, "invoice", "acme", MONTH, "--format", "csv"))))
    assert lines[0]["kind"] == "usage"
    page = tmp_path / "i.pdf"
    await run(gw, "invoice", "acme", MONTH, "--format", "pdf", "--out", str(page))
    assert page.read_bytes().startswith(b"%PDF")
    assert json.loads(await run(gw, "payout", "w1", MONTH))["total_nano_usd"] == 120
    assert len((await run(gw, "export", "focus", MONTH)).splitlines()) == 2
    issued = json.loads(await run(gw, "invoice", "acme", MONTH, "--issue"))
    assert issued["number"] == "INV-000001"
    assert [each["number"] for each in await rows(gw, "invoices", "--tenant", "acme")] == ["INV-000001"]
    assert "no month" in await run(gw, "invoice", "acme", "2023-1", code=2)
    reply = await gw.http.get(
        f"/admin/billing/invoices/acme/{MONTH}?format=pdf", headers={"authorization": f"Bearer {MASTER}"}
    )
    assert (reply.headers["content-type"], reply.content[:4]) == ("application/pdf", b"%PDF")


async def test_usage_prices_and_a_providers_invoice(gw: Gateway, tmp_path: Any):
    by_tenant = await rows(gw, "usage", "--from", "2023-11-01", "--to", "2023-11-30")
    assert [(each["tenant"], each["calls"]) for each in by_tenant] == [("acme", 3)]
    prices = await rows(gw, "prices", "--kind", "charge", "--name", "llama")
    assert [(each["input"], each["output"], each["multiplier"]) for each in prices] == [("1", "2", None)]
    bill = tmp_path / "bill.csv"
    bill.write_text("date,model,cost\n2023-11-14,llama,0.00000012\n2023-11-15,llama,1\n")
    words = ("reconcile", "--provider", "w1", "--invoice", str(bill), "--format", "json")
    await run(gw, *words, code=1)
    bill.write_text("date,model,cost\n2023-11-14,theirs,0.00000012\n")
    (line,) = await rows(gw, *words[:5], "--name", "theirs=llama", "--all")
    assert (line["model"], line["difference_usd"]) == ("llama", "0.000000000")
    bill.write_bytes(b"\xff\xfe")
    assert "UTF-8" in await run(gw, *words, code=2)
    assert "memory://" in await run(gw, "reconcile", "--limits", code=2)


async def test_tenants_of_the_configuration_are_listed_too_and_marked(gw: Gateway):
    listed = {each["name"]: each for each in await rows(gw, "tenants", "list")}
    assert (listed["only-here"]["created"], listed["only-here"]["configured"]) == (None, True)
    assert listed["only-here"]["config_policy"] == {"tiers": ["flex"]}
    assert (listed["harbour"]["configured"], listed["harbour"]["config_policy"]) == (True, None)
    assert listed["harbour"]["created"].endswith("Z")
    headers = {"authorization": f"Bearer {MASTER}"}
    pages, after = [], ""
    while after is not None:
        page = (await gw.http.get(f"/admin/tenants?most=1&after={after}", headers=headers)).json()
        pages += [each["name"] for each in page["data"]]
        after = page["after"]
    assert pages == list(listed)
    one = await gw.http.get("/admin/tenants/only-here", headers=headers)
    assert one.json() == listed["only-here"]
    assert (await gw.http.get("/admin/tenants/nobody", headers=headers)).status_code == 404
