from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec import structs
from sqlalchemy import column, insert, table, text
from usage_rows import a_row, a_share, summed

from gateway.database import HEAD, SchemaTooNew, StoreAway, StoreError, alembic_config, engine_for
from gateway.ledger import Share, UsageRow
from gateway.ledger_tables import MEASURES
from gateway.store import RowsRefused, Store
from gateway.tables import METADATA, SHARES, USAGE

if TYPE_CHECKING:
    from pathlib import Path

OLD_COLUMNS = UsageRow.__struct_fields__[: UsageRow.__struct_fields__.index("waste_nano_usd")]


@pytest.fixture
def url(either_url: str) -> str:
    """What a database is to do, it does in SQLite and in PostgreSQL."""
    return either_url


@pytest.mark.usefixtures("store")
def test_the_migrations_make_the_tables_that_the_queries_are_built_from(url: str):
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415  slow to import
    from alembic.migration import MigrationContext  # noqa: PLC0415  as above

    engine = engine_for(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_the_head_in_the_code_is_the_last_migration():
    from alembic.script import ScriptDirectory  # noqa: PLC0415  slow to import

    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == HEAD


def test_every_field_of_a_usage_row_has_its_column_in_the_same_order():
    assert (*USAGE.columns.keys(), "shares") == UsageRow.__struct_fields__


@pytest.mark.usefixtures("store")
def test_a_database_that_is_up_to_date_is_opened_without_alembic(url: str):
    program = (
        "import sys; from gateway.store import Store\n"
        f"with Store.open({url!r}): print('alembic' in sys.modules)"
    )
    opened = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert opened.stdout == "False\n"


def test_many_processes_may_open_a_new_database_at_once_and_it_gets_one_secret(url: str):
    program = (
        f"from gateway.store import Store\nwith Store.open({url!r}) as store: print(store.key_secret().hex())"
    )
    openings = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    secrets = {opening.communicate()[0] for opening in openings}
    assert [opening.returncode for opening in openings] == [0] * 4
    assert len(secrets) == 1
    assert len(secrets.pop().strip()) == 64


def test_a_database_of_a_newer_version_is_refused(url: str):
    with Store.open(url) as store, store.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNew, match="9999"), Store.open(url):
        pass


def test_a_database_that_cannot_be_opened_is_away_and_says_which(tmp_path: Path):
    with pytest.raises(StoreAway, match="nowhere"), Store.open(f"sqlite:///{tmp_path}/nowhere/x.db"):
        pass


@pytest.mark.parametrize("url", ["mysql://h/x", "nonsense", "sqlite://", "sqlite:///:memory:"])
def test_other_kinds_of_database_are_refused(url: str):
    with pytest.raises(StoreError), Store.open(url):
        pass


def test_the_password_of_a_database_is_not_in_the_error():
    with pytest.raises(StoreError) as error, Store.open("postgresql://joe:hunter2@127.0.0.1:1/x"):
        pass
    assert "hunter2" not in str(error.value)


# Usage


@pytest.mark.parametrize("count", [199, 200, 201, 450])
def test_many_rows_at_once_are_counted_once_each(store: Store, count: int):
    rows = [a_row(f"{number:04}", prompt_tokens=number) for number in range(count)]
    assert store.record(rows[: count // 2]) == count // 2
    assert store.record(rows) == count - count // 2
    assert store.record(rows) == 0
    (total,) = summed(store, "tenant").values()
    assert (total.calls, total.prompt_tokens) == (count, sum(range(count)))


def test_a_call_recorded_twice_counts_once(store: Store):
    assert store.record([a_row("1"), a_row("2")]) == 2
    assert store.record([a_row("2"), a_row("3"), a_row("3")]) == 1
    assert store.record([]) == 0
    assert summed(store, "tenant")["acme"].calls == 3


def test_every_field_of_a_row_arrives_unchanged(store: Store, url: str):
    rows = [
        a_row("1", ttft_ms=None, stream=False, estimated=True),
        a_row("2", charge_nano_usd=2**62, endpoint="", model="m'\"é☃"),
    ]
    store.record(rows)
    engine = engine_for(url)
    with engine.connect() as connection:
        stored = [UsageRow(*row) for row in connection.execute(USAGE.select().order_by(USAGE.c.call_id))]
    engine.dispose()
    assert stored == rows


def test_a_batch_with_a_row_that_no_database_can_hold_is_refused_whole(store: Store):
    with pytest.raises(RowsRefused):
        store.record([a_row("1"), a_row("2", charge_nano_usd=2**63)])
    assert summed(store, "tenant") == {}


RESUMED = a_row(
    "resumed",
    cost_nano_usd=7,
    waste_nano_usd=11,
    charge_nano_usd=3,
    shares=(
        a_share("w1", "answer", charge_nano_usd=2, cost_nano_usd=1, prompt_tokens=10, completion_tokens=5),
        a_share("w2", "read_again", charge_nano_usd=0, cost_nano_usd=4, waste_nano_usd=4, prompt_tokens=15),
        a_share("w2", "answer", charge_nano_usd=1, cost_nano_usd=2, prompt_tokens=0, completion_tokens=15),
        a_share("w3", "late", charge_nano_usd=0, cost_nano_usd=0, waste_nano_usd=7, estimated=True),
    ),
)


def test_by_endpoint_a_call_counts_at_each_that_has_worked_for_it(store: Store):
    failed = a_row(
        "failed",
        endpoint="",
        outcome="upstream_error",
        shares=(a_share("w3", "failed", charge_nano_usd=0, cost_nano_usd=0, waste_nano_usd=9),),
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=0,
        waste_nano_usd=9,
        charge_nano_usd=0,
        cost_nano_usd=0,
    )
    store.record([RESUMED, failed, a_row("plain")])
    by_endpoint = summed(store, "endpoint")
    assert by_endpoint.keys() == {"w1", "w2", "w3", ""}
    calls = {name: (each.calls, each.errors, each.helped_calls) for name, each in by_endpoint.items()}
    assert calls == {"w1": (2, 0, 0), "w2": (0, 0, 1), "w3": (0, 0, 2), "": (1, 1, 0)}
    assert (by_endpoint["w2"].prompt_tokens, by_endpoint["w2"].completion_tokens) == (0, 15)
    assert by_endpoint["w2"].wasted_tokens == 15 + 20
    assert by_endpoint["w1"].completion_tokens == 20 + 5
    all_of_them = summed(store, "tenant")["acme"]
    for amount in MEASURES:
        assert sum(getattr(total, amount) for total in by_endpoint.values()) == getattr(all_of_them, amount)
    assert (all_of_them.calls, all_of_them.errors, all_of_them.waste_nano_usd) == (3, 1, 20)
    assert [by_endpoint[name].waste_nano_usd for name in ("w1", "w2", "w3")] == [0, 4, 16]


def test_a_calls_shares_are_kept_once_however_often_it_is_recorded(store: Store, url: str):
    for _ in range(2):
        store.record([RESUMED, a_row("plain")])
    engine = engine_for(url)
    with engine.connect() as connection:
        rows = connection.execute(SHARES.select().order_by(SHARES.c.number)).all()
    engine.dispose()
    assert [(row[0], row[1], Share(*row[2:])) for row in rows] == [
        ("resumed", number, share) for number, share in enumerate(RESUMED.shares)
    ]


def test_shares_that_no_database_can_hold_take_their_row_with_them(store: Store):
    with pytest.raises(RowsRefused):
        store.record([a_row("1"), a_row("2", shares=(a_share("w1", "late", waste_nano_usd=2**63),))])
    assert summed(store, "endpoint") == {}


def test_a_database_from_before_there_were_shares_is_brought_up_to_date(url: str):
    from alembic import command  # noqa: PLC0415  slow to import

    engine = engine_for(url)
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        row = {name: value for name, value in structs.asdict(a_row("old")).items() if name in OLD_COLUMNS}
        connection.execute(insert(table("usage", *map(column, row))), row)
    engine.dispose()
    with Store.open(url) as store:
        total = summed(store, "endpoint")["w1"]
        assert (total.calls, total.cost_nano_usd, total.waste_nano_usd) == (1, 2, 0)


def test_usage_is_summed_by_what_is_asked_for_over_a_half_open_span(store: Store):
    store.record(
        [
            a_row("1", time_ms=999, charge_nano_usd=1000),
            a_row("2", time_ms=1000, charge_nano_usd=5, key_id="key_2"),
            a_row("3", time_ms=1999, outcome="client_left", estimated=True, charge_nano_usd=7),
            a_row(
                "4", time_ms=1500, outcome="upstream_timeout", tenant="zeta", model="qwen", charge_nano_usd=30
            ),
            a_row("5", time_ms=2000, charge_nano_usd=1000),
        ]
    )
    by_tenant = summed(store, "tenant", 1000, 2000)
    assert list(by_tenant) == ["zeta", "acme"]
    zeta, acme = by_tenant.values()
    assert (zeta.calls, zeta.errors, zeta.charge_nano_usd) == (1, 1, 30)
    assert (acme.calls, acme.errors, acme.estimated_calls) == (2, 0, 1)
    assert (acme.prompt_tokens, acme.cached_tokens, acme.completion_tokens) == (20, 8, 40)
    assert (acme.charge_nano_usd, acme.cost_nano_usd) == (12, 4)
    assert summed(store, "key", 1000, 2000).keys() == {"key_1", "key_2"}
    assert summed(store, "model", 1000, 2000).keys() == {"llama", "qwen"}
    assert summed(store, "endpoint", 1000, 2000).keys() == {"w1"}


def test_usage_by_time_reads_an_index(store: Store):
    query = "SELECT tenant, sum(charge_nano_usd) FROM usage WHERE time_ms >= 1 AND time_ms < 2 GROUP BY 1"
    with store.reading() as connection:
        how = "QUERY PLAN" if connection.dialect.name == "sqlite" else ""
        assert "usage_time_ms" in str(connection.execute(text(f"EXPLAIN {how} {query}")).all())


def test_a_store_leaves_no_connection_behind(sqlite_url: str, tmp_path: Path):
    with Store.open(sqlite_url) as store:
        store.record([a_row("1")])
    assert not (tmp_path / "tidegate.db-wal").exists()
