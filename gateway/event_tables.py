"""The tables of usage events: what receivers are to be told, how far each has been told, and what they would not take.

A batch names, in order, the calls of one transaction that has kept usage rows, or one transaction beside calls, and is
written in that very transaction. Whoever writes to the books waits for the one before (`gateway.bookkeeping`), so batches
become visible in the order of their numbers: a reader that has seen one will never miss an earlier one, however many
gateways write. Where there is no webhook, nothing is written.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from gateway.tables import METADATA

EVENT_BATCHES = Table(
    "event_batches",
    METADATA,
    # SQLite makes numbers by itself only for its own INTEGER.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("created_ms", BigInteger, nullable=False),
    Column("webhook", String(128)),  # whom it is for; of most: all that there are
    Column("kind", String(8), nullable=False),  # calls or ledger: what the ids are of
    Column("size", Integer, nullable=False),
    Column(
        "ids", Text, nullable=False
    ),  # JSON: an id each, or [id, part] where only a part of what it makes is meant
    sqlite_autoincrement=True,  # a number is never used again
)

EVENT_WEBHOOKS = Table(
    "event_webhooks",
    METADATA,
    Column("name", String(128), primary_key=True),
    Column("batch_number", BigInteger, nullable=False),  # the batch that it has come to
    Column("done", Integer, nullable=False),  # how many of its ids are done with
    Column("holder", String(32)),  # which process sends
    Column("held_until_ms", BigInteger, nullable=False),  # by the database's clock
    Column("sent", BigInteger, nullable=False),  # events that it has taken, ever
    Column("last_sent_ms", BigInteger),
    Column("attempts", Integer, nullable=False),  # that have failed since it last took something
    Column("failing_since_ms", BigInteger),
    Column("failure", Text),
    Column("retry_ms", BigInteger, nullable=False),  # not before
)

EVENT_REFUSALS = Table(
    "event_refusals",  # set aside, until they are sent again
    METADATA,
    Column("webhook", String(128), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("id", Text, primary_key=True),
    Column("part", String(128), primary_key=True),
    Column("number", BigInteger, nullable=False),  # of the batch that it was in
    Column("tenant", Text, nullable=False),
    Column("refused_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Index("event_refusals_tenant", "webhook", "tenant"),
)

NOW_MS = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
}
"""The database's clock, which is the same for all gateways."""


def announce_sql(dialect: str, kind: str) -> str:
    """Writes down that receivers are to be told of `:ids`, a JSON array. Whoever writes it holds the lock of the books."""
    size = {
        "sqlite": "json_array_length(:ids)",
        "postgresql": "json_array_length(CAST(:ids AS json))",
    }[dialect]
    return (
        "INSERT INTO event_batches (created_ms, kind, size, ids)"  # noqa: S608 - made of names in the code
        f" SELECT {NOW_MS[dialect]}, '{kind}', {size}, CAST(:ids AS TEXT)"
        " WHERE EXISTS (SELECT 1 FROM event_webhooks)"
    )
