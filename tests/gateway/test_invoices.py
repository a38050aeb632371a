from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import Struct, structs
from sqlalchemy import select
from typer.testing import CliRunner
from usage_rows import a_row, a_share

from gateway import focus
from gateway.billing import Order, enter
from gateway.bills import InvoiceShown, LineShown, MovementShown, StatementShown, in_words
from gateway.cli import app
from gateway.invoice import Invoice, Line, Movement, Statement, statement
from gateway.issuing import invoice
from gateway.ledger import amount_nano_usd
from gateway.ledger_tables import LEDGER_ENTRIES, LEDGER_TRANSACTIONS
from gateway.pdf import document
from gateway.reconcile import BadInvoice, compare, read
from gateway.store import Store
from gateway.usage_totals import Question
from routing.types import Price, Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gateway.ledger import UsageRow

MONTH = "2025-11"
START_MS = round(datetime(2025, 11, 1, tzinfo=UTC).timestamp() * 1000)
END_MS = round(datetime(2025, 12, 1, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000
OLD, NEW = Price(50_001, 100_003, 25_000), Price(70_007, 90_000)
COST = Price(20_001, 40_000)


@pytest.fixture
def url(either_url: str) -> str:
    return either_url


def calls() -> list[UsageRow]:
    """A month whose prices change on the 15th, with failed calls, waste, and calls just before and after it."""
    rows = []
    moments = [START_MS - 1, *range(START_MS, END_MS, DAY_MS // 3), END_MS - 1, END_MS]
    for number, time_ms in enumerate(moments):
        failed = number % 7 == 3
        usage = Usage() if failed else Usage(100 + number, number % 50, 37 * number % 91)
        price = OLD if time_ms < START_MS + 14 * DAY_MS else NEW
        charge, cost = amount_nano_usd(price, usage), amount_nano_usd(COST, usage)
        row = a_row(
            f"call-{number:03}",
            time_ms=time_ms,
            tenant="acme" if number % 3 else "zeta",
            project="web" if number % 2 else "",
            endpoint="" if failed else "w1",
            outcome="upstream_error" if failed else "ok",
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            charge_nano_usd=charge,
            cost_nano_usd=cost,
        )
        if number % 5 == 0 and not failed:
            shares = (
                a_share(
                    "w1",
                    "answer",
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    completion_tokens=usage.completion_tokens,
                    charge_nano_usd=charge,
                    cost_nano_usd=cost,
                ),
                a_share("w2", "hedge_lost", charge_nano_usd=0, cost_nano_usd=11, waste_nano_usd=11),
            )
            row = structs.replace(row, cost_nano_usd=cost + 11, waste_nano_usd=11, shares=shares)
        rows.append(row)
    return rows


@pytest.fixture
def month(store: Store) -> list[UsageRow]:
    """The month, with what moved beside its calls: rows of it."""
    rows = calls()
    store.record(rows)
    enter(store, Order("payment", "acme", 1_000_000, "before"), START_MS - 5)
    enter(store, Order("credit", "acme", 777, "c", "a gift"), START_MS + DAY_MS)
    enter(store, Order("refund", "call-011", None, "r"), START_MS + 20 * DAY_MS)
    enter(store, Order("correction", "acme", 13, "k"), END_MS - 1)
    enter(store, Order("payment", "acme", 2_000_000, "p"), START_MS + 9 * DAY_MS)
    enter(store, Order("credit", "acme", 5, "later"), END_MS)
    enter(store, Order("payout", "w1", 1000, "o"), START_MS + 3 * DAY_MS)
    return [row for row in rows if START_MS <= row.time_ms < END_MS]


def test_invoice_ledger_sums_and_focus_agree_to_the_nano_usd(store: Store, month: list[UsageRow]):
    for tenant in ("acme", "zeta"):
        mine = [row for row in month if row.tenant == tenant]
        charged = sum(row.charge_nano_usd for row in mine)
        made = invoice(store, tenant, MONTH)
        assert sum(line.amount_nano_usd for line in made.lines) == charged
        assert sum(line.calls for line in made.lines) == len(mine)
        (total,) = store.usage(Question(START_MS, END_MS, (), {"tenant": tenant}))
        assert total.sums.charge_nano_usd == charged
        account = (
            select(
                LEDGER_TRANSACTIONS.c.kind, LEDGER_TRANSACTIONS.c.time_ms, LEDGER_ENTRIES.c.amount_nano_usd
            )
            .join(LEDGER_ENTRIES, LEDGER_ENTRIES.c.transaction_id == LEDGER_TRANSACTIONS.c.id)
            .where(LEDGER_ENTRIES.c.account == f"tenant:{tenant}")
        )
        with store.reading() as connection:
            entries = connection.execute(account).all()
        assert made.opening_nano_usd == sum(each[2] for each in entries if each[1] < START_MS)
        assert made.closing_nano_usd == sum(each[2] for each in entries if each[1] < END_MS)
        inside = [each for each in entries if START_MS <= each[1] < END_MS]
        assert made.total_nano_usd == sum(each[2] for each in inside if each[0] != "payment")
        assert sum(each[2] for each in inside if each[0] == "call") == charged
        exported = list(focus.rows(store, MONTH, "us", tenant))
        assert sum(Decimal(row["BilledCost"]) for row in exported).scaleb(9) == made.total_nano_usd
        assert {row["BillingAccountId"] for row in exported} == {tenant}
    refunded = [each.kind for name in ("acme", "zeta") for each in invoice(store, name, MONTH).adjustments]
    assert sorted(refunded) == ["correction", "credit", "refund"]


@pytest.mark.parametrize(
    ("kept", "shown"),
    [(Line, LineShown), (Movement, MovementShown), (Invoice, InvoiceShown), (Statement, StatementShown)],
)
def test_all_that_a_bill_has_is_shown_and_every_amount_in_usd_as_well(
    kept: type[Struct], shown: type[BaseModel]
):
    names = {each.name for each in structs.fields(kept)}
    in_usd = {name.replace("_nano_usd", "_usd") for name in names if name.endswith("_nano_usd")}
    expected = {"issued" if name == "issued_ms" else name for name in names | in_usd}
    assert set(shown.model_fields) == expected


def test_what_a_node_has_earned_is_what_its_shares_cost(store: Store, month: list[UsageRow]):
    made = statement(store, "w1", MONTH)
    answers = [(row, [s for s in row.shares if s.endpoint == "w1"]) for row in month]
    earned = sum(
        sum(s.cost_nano_usd for s in shares) if row.shares else row.cost_nano_usd for row, shares in answers
    )
    assert made.total_nano_usd == earned
    assert [each.amount_nano_usd for each in made.payments] == [-1000]
    assert made.closing_nano_usd == made.opening_nano_usd + earned - 1000
    other = statement(store, "w2", MONTH)
    assert other.total_nano_usd == 11 * sum(bool(row.shares) for row in month)


@pytest.mark.usefixtures("month")
def test_an_invoice_is_the_same_bytes_each_time(store: Store):
    once, again = (document(in_words(invoice(store, "acme", MONTH))) for _ in range(2))
    assert once == again
    assert once.startswith(b"%PDF-1.4")
    assert once.endswith(b"%%EOF\n")
    assert b"(Invoice for acme) '" in once
    start = int(once.rsplit(b"startxref\n", 1)[1].split()[0])
    assert once[start:].startswith(b"xref\n")


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="pdftotext (poppler-utils) is not installed")
def test_a_page_can_be_read_by_others(tmp_path: Path):
    path = tmp_path / "x.pdf"
    path.write_bytes(document([f"line {number} (é) \\ ☃" for number in range(130)]))
    read = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True, check=True)
    assert read.stderr == ""
    assert read.stdout.count("\f") == 3
    assert "line 129 (é) \\ ?" in read.stdout


def test_focus_rows_pass_the_public_validator(tmp_path: Path, sqlite_url: str):
    validator = os.environ.get("FOCUS_VALIDATOR") or shutil.which("focus-validator")
    if validator is None:
        pytest.skip(
            "focus-validator is not on PATH, nor named by FOCUS_VALIDATOR (pip install focus-validator 'multimethod<2')"
        )
    config, out = a_config(tmp_path, sqlite_url), tmp_path / "focus.csv"
    run(config, "export", "focus", MONTH, "--validator-names", "--out", str(out))
    # It looks for its table of currencies from where it is started.
    beside = next(Path(validator).resolve().parents[1].glob("lib/python*/site-packages"))
    words = [validator, "--data-file", out, "--validate-version", "1.0"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=beside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout.upper(), done.stdout


def a_config(tmp_path: Path, sqlite_url: str) -> Path:
    config = tmp_path / "tidegate.yaml"
    config.write_text(
        f"database: {sqlite_url}\n"
        "models: {llama: {price: {input: 1, output: 1}, endpoints: [{worker: 'http://127.0.0.1:1'}]}}\n"
    )
    with Store.open(sqlite_url) as store:
        store.record(calls())
        enter(store, Order("credit", "acme", 777, "c", "a gift, é"), START_MS + DAY_MS)
        enter(store, Order("refund", "call-011", None, "r"), START_MS + 20 * DAY_MS)
    return config


def run(config: Path, *words: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*words, "--config", str(config)])
    assert result.exit_code == code, result.output
    return result.stdout


def test_the_command_line_writes_invoices_statements_and_exports(tmp_path: Path, sqlite_url: str):
    config = a_config(tmp_path, sqlite_url)
    made = json.loads(run(config, "invoice", "acme", MONTH))
    lines = list(csv.DictReader(io.StringIO(run(config, "invoice", "acme", MONTH, "--format", "csv"))))
    assert sum(Decimal(line["amount_usd"]) for line in lines) == Decimal(made["total_usd"])
    assert {line["kind"] for line in lines} == {"usage", "credit", "refund"}
    pdf = tmp_path / "i.pdf"
    run(config, "invoice", "acme", MONTH, "--format", "pdf", "--out", str(pdf))
    assert pdf.read_bytes().startswith(b"%PDF")
    assert json.loads(run(config, "payout", "w1", MONTH))["node"] == "w1"
    header = run(config, "export", "focus", MONTH).splitlines()[0]
    assert header.split(",") == list(focus.COLUMNS)
    run(config, "invoice", "acme", "2025-13", code=2)


def test_a_providers_invoice_is_compared_line_by_line(tmp_path: Path, sqlite_url: str):
    config = a_config(tmp_path, sqlite_url)
    with Store.open(sqlite_url) as store:
        ours = {
            total.group: total.sums.cost_nano_usd
            for total in store.usage(Question(START_MS, END_MS, ("day", "model"), {"endpoint": "w1"}))
        }
    bill = tmp_path / "bill.csv"
    lines = [f"{day},theirs,{Decimal(cost).scaleb(-9):f}" for (day, _), cost in sorted(ours.items())]
    bill.write_text("date,model,cost\n" + "\n".join(lines) + "\n")
    asked = (
        "reconcile",
        "--provider",
        "w1",
        "--invoice",
        str(bill),
        "--name",
        "theirs=llama",
        "--format",
        "json",
    )
    assert json.loads(run(config, *asked)) == []
    assert len(json.loads(run(config, *asked, "--all"))) == len(ours)
    lines[3] = lines[3] + "1"
    bill.write_text("date,model,cost\n" + "\n".join([*lines[:5], *lines[6:]]) + "\n2025-11-30,other,2\n")
    wrong = json.loads(run(config, *asked, code=1))
    assert [(each["day"], each["model"]) for each in wrong] == [
        ("2025-11-04", "llama"),
        ("2025-11-06", "llama"),
        ("2025-11-30", "other"),
    ]
    assert (wrong[1]["billed_usd"], wrong[2]["ledger_usd"], wrong[2]["difference_usd"]) == (
        None,
        None,
        "2.000000000",
    )
    bill.write_text("date,model,cost\n2025-11-01,llama,much\n")
    run(config, *asked, code=2)


@pytest.mark.parametrize(
    "text", ["", "a,b\n1,2\n", "date,model,cost\n2025-11-01,m,x\n", "date,model,cost\nsoon,m,1\n"]
)
def test_an_invoice_that_makes_no_sense_is_refused_with_its_line(sqlite_url: str, text: str):
    with pytest.raises(BadInvoice), Store.open(sqlite_url) as store:
        compare(store, "w1", read(io.StringIO(text)))
