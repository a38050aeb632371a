from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from msgspec import structs
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError
from usage_rows import a_row, a_share

from gateway.database import alembic_config, engine_for
from gateway.ledger import WASTE
from gateway.ledger_tables import (
    CUSTOMER_DAYS,
    CUSTOMER_HOURS,
    LEDGER_BALANCES,
    LEDGER_ENTRIES,
    LEDGER_TRANSACTIONS,
    MEASURES,
    USAGE_DAYS,
    USAGE_HOURS,
)
from gateway.store import Store
from gateway.usage_totals import Question

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Table

    from gateway.ledger import Share, UsageRow

HOUR_MS = 3_600_000
START_MS = 490_000 * HOUR_MS
SPAN_MS = 50 * HOUR_MS
SUMS = (USAGE_HOURS, USAGE_DAYS, CUSTOMER_HOURS, CUSTOMER_DAYS)
BOOKS = (LEDGER_TRANSACTIONS, LEDGER_ENTRIES, LEDGER_BALANCES, *SUMS)


@pytest.fixture
def url(either_url: str) -> str:
    return either_url


def a_month_of_rows(count: int, *, seed: int = 1) -> list[UsageRow]:
    """Calls of all kinds: with shares and without, free, failed, of several tenants, over two days."""
    dice = random.Random(seed)  # noqa: S311  no secret
    rows = []
    for number in range(count):
        shares = tuple(some_shares(dice)) if dice.random() < 0.4 else ()
        answers = [share for share in shares if share.purpose == "answer"]
        counted = {
            field: sum(getattr(share, field) for share in answers) if shares else dice.randrange(50)
            for field in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
        }
        money = {
            field: sum(getattr(share, field) for share in shares) if shares else dice.randrange(99)
            for field in ("charge_nano_usd", "cost_nano_usd")
        }
        rows.append(
            a_row(
                f"{number:05}",
                time_ms=START_MS + dice.randrange(SPAN_MS),
                tenant=dice.choice(("acme", "zeta")),
                key_id=dice.choice(("key_1", "key_2")),
                project=dice.choice(("", "web")),
                customer=dice.choice(("", "jo", "é")),
                tier=dice.choice(("default", "flex")),
                endpoint=answers[0].endpoint if answers else "" if shares else dice.choice(("w1", "gpt")),
                outcome=dice.choice(("ok", "client_left", "upstream_timeout")),
                estimated=dice.random() < 0.1,
                waste_nano_usd=sum(share.waste_nano_usd for share in shares),
                hosted=dice.random() < 0.5,
                shares=shares,
                **counted,
                **money,
            )
        )
    return rows


def some_shares(dice: random.Random) -> list[Share]:
    return [
        a_share(
            dice.choice(("w1", "w2", "gpt")),
            dice.choice(("answer", *WASTE)),
            prompt_tokens=dice.randrange(9),
            cached_tokens=0,
            completion_tokens=dice.randrange(9),
            reasoning_tokens=dice.randrange(3),
            charge_nano_usd=dice.choice((0, 5)),
            cost_nano_usd=dice.choice((0, 3)),
            waste_nano_usd=dice.choice((0, 3)),
            hosted=dice.random() < 0.5,
        )
        for _ in range(dice.randrange(1, 4))
    ]


def content(store: Store, table: Table) -> list[tuple[object, ...]]:
    with store.reading() as connection:
        return sorted(tuple(row) for row in connection.execute(table.select()))


def test_every_transaction_sums_to_zero_and_balances_are_the_sums_of_entries(store: Store):
    rows = a_month_of_rows(400)
    for part in (rows[:150], rows[100:350], rows):
        store.record(part)
    by_transaction: Counter[object] = Counter()
    by_account: Counter[object] = Counter()
    for transaction, account, amount_nano_usd in content(store, LEDGER_ENTRIES):
        by_transaction[transaction] += amount_nano_usd
        by_account[account] += amount_nano_usd
    assert set(by_transaction.values()) == {0}
    assert dict(content(store, LEDGER_BALANCES)) == by_account
    assert by_account["revenue"] == -sum(row.charge_nano_usd for row in rows)
    assert by_account["tenant:acme"] == sum(row.charge_nano_usd for row in rows if row.tenant == "acme")
    assert by_account["cost"] + by_account["waste"] == sum(row.cost_nano_usd for row in rows)
    wasted = [share.cost_nano_usd for row in rows for share in row.shares if share.purpose != "answer"]
    assert by_account["waste"] == sum(wasted)
    paid = sum(
        amount for account, amount in by_account.items() if account.startswith(("payout:", "provider:"))
    )
    assert -paid == sum(row.cost_nano_usd for row in rows)
    assert {entry[0] for entry in content(store, LEDGER_ENTRIES)} == by_transaction.keys()
    with_money = {row.call_id for row in rows if row.charge_nano_usd or row.cost_nano_usd}
    assert {transaction[0] for transaction in content(store, LEDGER_TRANSACTIONS)} == with_money


def test_a_node_and_a_provider_are_owed_what_their_shares_cost(store: Store):
    shares = (
        a_share("w1", "answer", charge_nano_usd=9, cost_nano_usd=4),
        a_share("gpt", "hedge_lost", charge_nano_usd=0, cost_nano_usd=5, hosted=True),
        a_share("w2", "late", charge_nano_usd=0, cost_nano_usd=0, waste_nano_usd=7),
    )
    store.record([a_row("1", charge_nano_usd=9, cost_nano_usd=9, waste_nano_usd=12, shares=shares)])
    assert dict(content(store, LEDGER_BALANCES)) == {
        "tenant:acme": 9,
        "revenue": -9,
        "cost": 4,
        "waste": 5,
        "payout:w1": -4,
        "provider:gpt": -5,
    }


def test_sums_over_any_span_are_those_of_its_rows(store: Store):
    rows = a_month_of_rows(300)
    store.record(rows[:200])
    store.record(rows[200:])
    dice = random.Random(3)  # noqa: S311  no secret
    moments = sorted(START_MS + dice.randrange(SPAN_MS) for _ in range(6))
    whole = (START_MS, START_MS + SPAN_MS)
    for since_ms, until_ms in (whole, (START_MS + 1, START_MS + HOUR_MS), *pairwise(moments)):
        inside = [row for row in rows if since_ms <= row.time_ms < until_ms]
        found = store.usage(Question(since_ms, until_ms, ("tenant", "tier")))
        for total in found:
            mine = [row for row in inside if (row.tenant, row.tier) == total.group]
            assert total.sums.calls == len(mine)
            assert total.sums.errors == sum(row.outcome == "upstream_timeout" for row in mine)
            assert total.sums.estimated_calls == sum(row.estimated for row in mine)
            for field in set(MEASURES) & set(structs.asdict(mine[0])):
                assert getattr(total.sums, field) == sum(getattr(row, field) for row in mine), field
        assert {total.group for total in found} == {(row.tenant, row.tier) for row in inside}


def test_groups_may_be_moments_and_come_in_pages(store: Store):
    store.record(a_month_of_rows(2000))
    asked = Question(START_MS, START_MS + 5 * HOUR_MS, ("hour", "model", "key"), {"tenant": "acme"}, "group")
    everything = store.usage(asked)
    assert len(everything) == 10
    assert [total.group for total in everything] == sorted(total.group for total in everything)
    assert everything[0].group == ("2025-11-24T16Z", "llama", "key_1")
    paged, after = [], None
    while page := store.usage(structs.replace(asked, after=after, limit=3)):
        paged += page
        after = page[-1].group
    assert paged == everything
    (day,) = store.usage(structs.replace(asked, by=("day",)))
    (month,) = store.usage(structs.replace(asked, by=("month",)))
    (in_all,) = store.usage(structs.replace(asked, by=()))
    assert (day.group, month.group, in_all.group) == (("2025-11-24",), ("2025-11",), ())
    assert day.sums == month.sums == in_all.sums
    assert store.usage(structs.replace(asked, by=(), only={"tenant": "nobody"})) == []


@pytest.mark.parametrize("table", ["ledger_transactions", "ledger_entries"])
@pytest.mark.parametrize("act", ["UPDATE {0} SET {1} = {1}", "DELETE FROM {0}"])
def test_nothing_in_the_ledger_is_ever_changed(store: Store, table: str, act: str):
    store.record([a_row("1")])
    field = {"ledger_transactions": "time_ms", "ledger_entries": "amount_nano_usd"}[table]
    before = content(store, LEDGER_ENTRIES)
    with pytest.raises(DatabaseError, match="append-only"), store._writer.begin() as connection:
        connection.execute(text(act.format(table, field)))
    assert content(store, LEDGER_ENTRIES) == before


def test_nothing_in_the_ledger_is_ever_replaced(sqlite_url: str):
    with Store.open(sqlite_url) as store:
        store.record([a_row("1")])
        for table in (LEDGER_TRANSACTIONS, LEDGER_ENTRIES):
            insert = f"INSERT OR REPLACE INTO {table.name} SELECT * FROM {table.name}"  # noqa: S608 - our names
            with pytest.raises(DatabaseError, match="append-only"), store._writer.begin() as connection:
                connection.execute(text(insert))


def test_postgresql_refuses_a_transaction_that_does_not_sum_to_zero(postgresql_url: str):
    with Store.open(postgresql_url) as store:
        entry = {"transaction_id": "x", "account": "cost", "amount_nano_usd": 1}
        with pytest.raises(DatabaseError, match="sum to zero"), store._writer.begin() as connection:
            connection.execute(LEDGER_ENTRIES.insert(), entry)
        assert content(store, LEDGER_ENTRIES) == []


KILLED_AT_EACH_STATEMENT = """
import os, sys
from msgspec import json
from sqlalchemy import event
from gateway.ledger import UsageRow
from gateway.store import Store

rows = json.decode(sys.stdin.buffer.read(), type=list[UsageRow])

def record(last):
    with Store.open(sys.argv[1]) as store:
        left = last
        def step(*_):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
        event.listen(store._engine, "before_cursor_execute", step)
        event.listen(store._engine, "commit", step)
        store.record(rows)
    os._exit(0)

for last in range(100):
    if not (child := os.fork()):
        record(last)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(last)
        break
"""


def test_a_mover_killed_before_any_statement_has_kept_nothing_and_the_next_keeps_all_once(
    store: Store, url: str
):
    from msgspec import json  # noqa: PLC0415  of this test alone

    earlier, rows = a_month_of_rows(20, seed=2), a_month_of_rows(60)[20:]
    store.record(earlier)
    command = [sys.executable, "-c", KILLED_AT_EACH_STATEMENT, url]
    done = subprocess.run(command, input=json.encode(rows), capture_output=True, check=True)
    assert int(done.stdout) >= 8  # statements, and the commit
    once = {table.name: content(store, table) for table in BOOKS}
    assert store.record(rows) == 0
    assert {table.name: content(store, table) for table in BOOKS} == once
    assert sum(total.sums.calls for total in store.usage(Question(0, 2**62, ("tenant",)))) == 60


def test_a_database_from_before_the_ledger_gets_what_follows_from_its_rows(url: str, tmp_path: Path):
    from alembic import command  # noqa: PLC0415  slow to import

    rows = [
        structs.replace(
            row,
            reasoning_tokens=0,
            hosted=False,
            shares=tuple(structs.replace(share, reasoning_tokens=0, hosted=False) for share in row.shares),
        )
        for row in a_month_of_rows(100)
    ]
    later = ("reasoning_tokens", "hosted", "shares")
    engine, config = engine_for(url), alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0006")
        for table, values in (
            ("usage", [structs.asdict(row) for row in rows]),
            (
                "usage_shares",
                [
                    {"call_id": row.call_id, "number": number, **structs.asdict(share)}
                    for row in rows
                    for number, share in enumerate(row.shares)
                ],
            ),
        ):
            kept = [{name: value for name, value in each.items() if name not in later} for each in values]
            names = ", ".join(kept[0])
            marks = ", ".join(f":{name}" for name in kept[0])
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), kept)  # noqa: S608 - names of fields
    engine.dispose()
    with Store.open(url) as store, Store.open(f"sqlite:///{tmp_path}/other.db") as other:
        other.record(rows)
        for table in BOOKS:
            assert content(store, table) == content(other, table), table.name
