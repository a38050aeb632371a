"""What follows from usage rows, in the transaction that keeps them: double entries, balances, sums by hour and by day,
and what webhooks are to be told.

A call's transaction, where there is anything to pay (positive: owed to us, or spent; negative: owed by us, or earned):

    tenant:NAME          + charge        what it owes, or what is taken from what it has paid in advance
    revenue              - charge
    cost                 + what the endpoints are paid for the answer
    waste                + what they are paid for work that reached no client
    payout:NODE          - what that node is paid
    provider:ENDPOINT    - what that provider is paid

Statements are the same in SQLite and PostgreSQL and work on all the rows of a batch at once: the interpreter, which calls
under way are waiting for, has nothing to do meanwhile. A batch is a JSON array of ids.
"""

# ruff: noqa: S608 - the SQL is made of names in the code

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import text

from gateway.event_tables import announce_sql
from gateway.ledger_tables import DIMENSIONS, MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Dialect, TextClause

    from gateway.ledger import UsageRow

NO_ERRORS = ("ok", "client_left")
"""Outcomes of calls that were not in vain."""
_ALL = (*DIMENSIONS, "customer")
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

_LOCK = 0x7469_6465_626F_6F6B  # "tidebook": whoever writes to the books of a PostgreSQL
_IDS = {
    "sqlite": "SELECT value FROM json_each(:ids)",
    "postgresql": "SELECT json_array_elements_text(CAST(:ids AS json))",
}
_BATCH = "SELECT usage.* FROM batch CROSS JOIN usage WHERE usage.call_id = batch.call_id"

_TRANSACTIONS = """
INSERT INTO ledger_transactions (id, kind, call_id, time_ms)
SELECT call_id, 'call', call_id, time_ms FROM calls WHERE charge_nano_usd <> 0 OR cost_nano_usd <> 0
"""
_PAID_BY = "CASE WHEN hosted THEN 'provider:' ELSE 'payout:' END || endpoint"
_ENTRIES = f""",
sides(side) AS (VALUES (1), (2), (3), (4))
INSERT INTO ledger_entries (transaction_id, account, amount_nano_usd)
SELECT call_id,
    CASE side WHEN 1 THEN 'cost' WHEN 2 THEN {_PAID_BY} WHEN 3 THEN 'revenue' ELSE 'tenant:' || tenant END,
    CASE side WHEN 1 THEN cost_nano_usd WHEN 2 THEN -cost_nano_usd WHEN 3 THEN -charge_nano_usd ELSE charge_nano_usd END
FROM calls CROSS JOIN sides WHERE CASE WHEN side <= 2 THEN cost_nano_usd ELSE charge_nano_usd END <> 0
"""
"""Of calls that one endpoint alone has worked for: in the order of the table's key, which is the cheapest to write."""
_ENTRIES_OF_SHARES = f""",
shares AS (
    SELECT worked.call_id, worked.endpoint, worked.hosted, worked.cost_nano_usd,
        CASE WHEN worked.purpose = 'answer' THEN 'cost' ELSE 'waste' END AS side
    FROM calls CROSS JOIN usage_shares AS worked WHERE worked.call_id = calls.call_id
),
sides AS (
    SELECT call_id, 'tenant:' || tenant AS account, charge_nano_usd AS amount FROM calls
    UNION ALL SELECT call_id, 'revenue', -charge_nano_usd FROM calls
    UNION ALL SELECT call_id, side, cost_nano_usd FROM shares
    UNION ALL SELECT call_id, {_PAID_BY}, -cost_nano_usd FROM shares
)
INSERT INTO ledger_entries (transaction_id, account, amount_nano_usd)
SELECT call_id, account, sum(amount) FROM sides GROUP BY call_id, account HAVING sum(amount) <> 0
"""
_BALANCES = """
INSERT INTO ledger_balances (account, amount_nano_usd)
SELECT account, sum(amount_nano_usd) FROM batch CROSS JOIN ledger_entries
WHERE transaction_id = batch.call_id GROUP BY account ORDER BY account
ON CONFLICT (account) DO UPDATE SET amount_nano_usd = ledger_balances.amount_nano_usd + excluded.amount_nano_usd
"""


_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
_MONEY = ("charge_nano_usd", "cost_nano_usd", "waste_nano_usd")
_AT_CALL = ", ".join(f"calls.{each} AS {each}" for each in _ALL)
_COUNTED = {
    "calls": "1",
    "errors": f"CASE WHEN calls.outcome IN ({', '.join(map(repr, NO_ERRORS))}) THEN 0 ELSE 1 END",
    "estimated_calls": "CASE WHEN calls.estimated THEN 1 ELSE 0 END",
}


def pieces(calls: str) -> str:
    """What the rows of `calls` add to sums: SQL of rows with `time_ms`, all dimensions, `customer` and all measures."""
    shared = "EXISTS (SELECT 1 FROM usage_shares WHERE usage_shares.call_id = calls.call_id)"
    some = f"(SELECT * FROM {calls} AS calls WHERE {{}} {shared})"
    return f"{_pieces(some.format('NOT'))} UNION ALL {_pieces_of_shares(some.format(''))}"


def _pieces(calls: str) -> str:
    """Those of calls that one endpoint alone has worked for."""
    measured = _measured(_COUNTED | {each: f"calls.{each}" for each in (*_TOKENS, *_MONEY)})
    return f"SELECT calls.time_ms, {_AT_CALL}, {measured} FROM {calls} AS calls"


def _pieces_of_shares(calls: str) -> str:
    """Those of calls with shares. Their tokens and money are counted where the shares are: those of the answer as such,
    the rest as wasted.
    """
    at_share = _AT_CALL.replace("calls.endpoint", "shares.endpoint")
    answered = "CASE WHEN shares.purpose = 'answer' THEN shares.{0} ELSE 0 END"
    shared = {
        **{each: answered.format(each) for each in _TOKENS},
        "wasted_tokens": "CASE WHEN shares.purpose = 'answer' THEN 0 ELSE shares.prompt_tokens + shares.completion_tokens END",
        **{each: f"shares.{each}" for each in _MONEY},
    }
    at_shares = (
        f"FROM {calls} AS calls CROSS JOIN usage_shares AS shares WHERE shares.call_id = calls.call_id"
    )
    return f"""
    SELECT calls.time_ms, {_AT_CALL}, {_measured(_COUNTED)} FROM {calls} AS calls
    UNION ALL SELECT calls.time_ms, {at_share}, {_measured(shared)} {at_shares}
    UNION ALL SELECT calls.time_ms, {at_share}, {_measured({"helped_calls": "1"})} {at_shares}
        AND shares.endpoint <> calls.endpoint AND NOT EXISTS (
            SELECT 1 FROM usage_shares AS earlier WHERE earlier.call_id = shares.call_id
            AND earlier.endpoint = shares.endpoint AND earlier.number < shares.number)
    """


def _measured(values: dict[str, str]) -> str:
    return ", ".join(f"{values.get(each, '0')} AS {each}" for each in MEASURES)


_MAKE_SUMS = f"""
CREATE TEMPORARY TABLE IF NOT EXISTS batch_sums
({", ".join(("hour_ms BIGINT", *(f"{each} TEXT" for each in _ALL), *(f"{each} BIGINT" for each in MEASURES)))})
"""
"""What a batch adds, worked out once for all four tables of sums."""


def _fill_sums(pieces: str) -> str:
    by, added = ", ".join(_ALL), ", ".join(f"sum({each})" for each in MEASURES)
    return f"""
    INSERT INTO batch_sums (hour_ms, {by}, {", ".join(MEASURES)})
    SELECT time_ms - time_ms % {HOUR_MS} AS start_ms, {by}, {added}
    FROM ({pieces}) AS pieces GROUP BY start_ms, {by}
    """


def _add_sums(table: str, unit: str, width_ms: int, dimensions: Sequence[str]) -> str:
    by = ", ".join(dimensions)
    added = ", ".join(f"{each} = {table}.{each} + excluded.{each}" for each in MEASURES)
    return f"""
    INSERT INTO {table} ({unit}, {by}, {", ".join(MEASURES)})
    SELECT hour_ms - hour_ms % {width_ms} AS start_ms, {by}, {", ".join(f"sum({each})" for each in MEASURES)}
    FROM batch_sums WHERE true GROUP BY start_ms, {by}
    ON CONFLICT ({unit}, {by}) DO UPDATE SET {added}
    """


class Books:
    """The statements in the words of one kind of database."""

    def __init__(self, dialect: Dialect) -> None:
        batch = f"WITH batch(call_id) AS ({_IDS[dialect.name]})"
        calls = f"{batch}, calls AS ({_BATCH})"
        self._known = text(
            f"{batch} SELECT usage.call_id FROM batch JOIN usage ON usage.call_id = batch.call_id"
        )
        add_sums = [
            _add_sums(f"{table}_{unit}s", f"{unit}_ms", width_ms, dimensions)
            for table, dimensions in (("usage", DIMENSIONS), ("usage_customer", _ALL))
            for unit, width_ms in (("hour", HOUR_MS), ("day", DAY_MS))
        ]

        def following(entries: str, pieces: str) -> list[TextClause]:
            books = [calls + _TRANSACTIONS, calls + entries, batch + _BALANCES]
            sums = [_MAKE_SUMS, "DELETE FROM batch_sums", calls + _fill_sums(pieces), *add_sums]
            return [text(sql) for sql in (*books, *sums)]

        self._following = following(_ENTRIES, _pieces("calls"))
        self._following_shared = following(_ENTRIES_OF_SHARES, _pieces_of_shares("calls"))
        self._announce_calls = text(announce_sql(dialect.name, "calls"))
        self._announce_movement = text(announce_sql(dialect.name, "ledger"))
        self._locks = dialect.name == "postgresql"

    def lock(self, connection: Connection) -> None:
        """Whoever else writes to the books waits until this transaction has ended. In SQLite only one writes anyway."""
        if self._locks:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})

    def announce(self, connection: Connection, transaction_id: str) -> None:
        """Whoever is told of usage is told of this transaction beside calls. The lock is held."""
        connection.execute(self._announce_movement, _batch([transaction_id]))

    def known(self, connection: Connection, call_ids: Sequence[str]) -> set[str]:
        """Those of the ids that have a row."""
        return set(connection.execute(self._known, _batch(call_ids)).scalars())

    def follow(self, connection: Connection, rows: Sequence[UsageRow]) -> None:
        """All that follows from these, which have just been inserted, shares included."""
        alone = [row.call_id for row in rows if not row.shares]
        shared = [row.call_id for row in rows if row.shares]
        for call_ids, statements in ((alone, self._following), (shared, self._following_shared)):
            batch = _batch(call_ids)
            for statement in statements if call_ids else ():
                connection.execute(statement, batch if ":ids" in statement.text else {})
        connection.execute(self._announce_calls, _batch([row.call_id for row in rows]))


def _batch(call_ids: Sequence[str]) -> dict[str, str]:
    return {"ids": msgspec.json.encode(call_ids).decode()}
