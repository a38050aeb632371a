"""Double entry, balances and sums by the hour, with what follows from the usage rows there are.

Until now nobody wrote down whether an endpoint was a node's or a provider's, nor what was reasoning: what there is counts
as nodes', and as none.
"""

# ruff: noqa: S608 - the SQL is made of names in the code

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

DIMENSIONS = ("tenant", "project", "key_id", "model", "endpoint", "tier")
MEASURES = (
    *("calls", "errors", "estimated_calls", "helped_calls"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "wasted_tokens"),
    *("charge_nano_usd", "cost_nano_usd", "waste_nano_usd"),
)


def upgrade() -> None:
    for table in ("usage", "usage_shares"):
        op.add_column(table, sa.Column("reasoning_tokens", sa.BigInteger, nullable=False, server_default="0"))
        op.add_column(table, sa.Column("hosted", sa.Boolean, nullable=False, server_default=sa.false()))
    _create_ledger()
    _create_hours("usage_hours", DIMENSIONS)
    _create_hours("usage_customer_hours", (*DIMENSIONS, "customer"))
    for statement in (*_ENTER, *_PROTECT[op.get_bind().dialect.name]):
        op.execute(sa.text(statement))


def _create_ledger() -> None:
    op.create_table(
        "ledger_transactions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False, server_default=""),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ledger_transactions_beside_calls",
        "ledger_transactions",
        ["time_ms"],
        sqlite_where=sa.text("kind <> 'call'"),
        postgresql_where=sa.text("kind <> 'call'"),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("transaction_id", sa.Text, primary_key=True),
        sa.Column("account", sa.Text, primary_key=True),
        sa.Column("amount_nano_usd", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ledger_balances",
        sa.Column("account", sa.Text, primary_key=True),
        sa.Column("amount_nano_usd", sa.BigInteger, nullable=False),
        sa.CheckConstraint(
            "amount_nano_usd BETWEEN -9000000000000000000 AND 9000000000000000000", name="ledger_balances_fit"
        ),
    )


def _create_hours(name: str, dimensions: tuple[str, ...]) -> None:
    op.create_table(
        name,
        sa.Column("hour_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(each, sa.Text, primary_key=True) for each in dimensions),
        *(sa.Column(each, sa.BigInteger, nullable=False) for each in MEASURES),
        sqlite_with_rowid=False,
    )
    op.create_index(f"{name}_tenant", name, ["tenant", "hour_ms"])


_SHARED = "EXISTS (SELECT 1 FROM usage_shares s WHERE s.call_id = u.call_id)"
_PIECES = f"""
SELECT time_ms, tenant, project, key_id, model, endpoint, tier, customer, 1 AS calls,
    CASE WHEN outcome IN ('ok', 'client_left') THEN 0 ELSE 1 END AS errors,
    CASE WHEN estimated THEN 1 ELSE 0 END AS estimated_calls, 0 AS helped_calls,
    CASE WHEN {_SHARED} THEN 0 ELSE prompt_tokens END AS prompt_tokens,
    CASE WHEN {_SHARED} THEN 0 ELSE cached_tokens END AS cached_tokens,
    CASE WHEN {_SHARED} THEN 0 ELSE completion_tokens END AS completion_tokens,
    0 AS reasoning_tokens, 0 AS wasted_tokens,
    CASE WHEN {_SHARED} THEN 0 ELSE charge_nano_usd END AS charge_nano_usd,
    CASE WHEN {_SHARED} THEN 0 ELSE cost_nano_usd END AS cost_nano_usd,
    CASE WHEN {_SHARED} THEN 0 ELSE waste_nano_usd END AS waste_nano_usd
FROM usage u
UNION ALL
SELECT u.time_ms, u.tenant, u.project, u.key_id, u.model, s.endpoint, u.tier, u.customer, 0, 0, 0,
    CASE WHEN s.endpoint <> u.endpoint AND NOT EXISTS (SELECT 1 FROM usage_shares e
        WHERE e.call_id = s.call_id AND e.endpoint = s.endpoint AND e.number < s.number) THEN 1 ELSE 0 END,
    CASE WHEN s.purpose = 'answer' THEN s.prompt_tokens ELSE 0 END,
    CASE WHEN s.purpose = 'answer' THEN s.cached_tokens ELSE 0 END,
    CASE WHEN s.purpose = 'answer' THEN s.completion_tokens ELSE 0 END, 0,
    CASE WHEN s.purpose = 'answer' THEN 0 ELSE s.prompt_tokens + s.completion_tokens END,
    s.charge_nano_usd, s.cost_nano_usd, s.waste_nano_usd
FROM usage u JOIN usage_shares s ON s.call_id = u.call_id
"""
_SUMS = ", ".join(f"sum({each})" for each in MEASURES)
_HOUR = "time_ms - time_ms % 3600000"
_ENTER = (
    """INSERT INTO ledger_transactions (id, kind, call_id, time_ms)
    SELECT call_id, 'call', call_id, time_ms FROM usage WHERE charge_nano_usd <> 0 OR cost_nano_usd <> 0""",
    f"""INSERT INTO ledger_entries (transaction_id, account, amount_nano_usd)
    SELECT call_id, account, sum(amount) FROM (
        SELECT call_id, 'tenant:' || tenant AS account, charge_nano_usd AS amount FROM usage
        UNION ALL SELECT call_id, 'revenue', -charge_nano_usd FROM usage
        UNION ALL SELECT call_id, 'cost', cost_nano_usd FROM usage u WHERE NOT {_SHARED}
        UNION ALL SELECT call_id, 'payout:' || endpoint, -cost_nano_usd FROM usage u WHERE NOT {_SHARED}
        UNION ALL SELECT call_id, CASE WHEN purpose = 'answer' THEN 'cost' ELSE 'waste' END, cost_nano_usd FROM usage_shares
        UNION ALL SELECT call_id, 'payout:' || endpoint, -cost_nano_usd FROM usage_shares
    ) AS sides GROUP BY call_id, account HAVING sum(amount) <> 0""",
    """INSERT INTO ledger_balances (account, amount_nano_usd)
    SELECT account, sum(amount_nano_usd) FROM ledger_entries GROUP BY account""",
    f"""INSERT INTO usage_hours (hour_ms, tenant, project, key_id, model, endpoint, tier, {", ".join(MEASURES)})
    SELECT {_HOUR}, tenant, project, key_id, model, endpoint, tier, {_SUMS}
    FROM ({_PIECES}) AS p GROUP BY {_HOUR}, tenant, project, key_id, model, endpoint, tier""",
    f"""INSERT INTO usage_customer_hours
        (hour_ms, tenant, project, key_id, model, endpoint, tier, customer, {", ".join(MEASURES)})
    SELECT {_HOUR}, tenant, project, key_id, model, endpoint, tier, customer, {_SUMS}
    FROM ({_PIECES}) AS p GROUP BY {_HOUR}, tenant, project, key_id, model, endpoint, tier, customer""",
)

_TABLES = ("ledger_transactions", "ledger_entries")
_PROTECT = {
    "sqlite": [
        f"CREATE TRIGGER {table}_no_{act} BEFORE {act} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in _TABLES
        for act in ("UPDATE", "DELETE")
    ]
    # INSERT OR REPLACE deletes without asking the triggers above.
    + [
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same}) "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table, same in (
            ("ledger_transactions", "id = NEW.id"),
            ("ledger_entries", "transaction_id = NEW.transaction_id AND account = NEW.account"),
        )
    ],
    "postgresql": [
        """CREATE FUNCTION tidegate_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END $$""",
        *(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION tidegate_append_only()"
            for table in _TABLES
        ),
        """CREATE FUNCTION tidegate_sums_to_zero() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF EXISTS (SELECT 1 FROM entered GROUP BY transaction_id HAVING sum(amount_nano_usd) <> 0) THEN
                RAISE EXCEPTION 'a transaction does not sum to zero' USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            RETURN NULL;
        END $$""",
        """CREATE TRIGGER ledger_entries_sum_to_zero AFTER INSERT ON ledger_entries REFERENCING NEW TABLE AS entered
        FOR EACH STATEMENT EXECUTE FUNCTION tidegate_sums_to_zero()""",
    ],
}
